"""A store with pairs, and a browser without windows that talks to the labelling page's application."""

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from rlhfkit.feedback.states import StoreSettings
from rlhfkit.feedback.store import Store
from rlhfkit.feedback.votes import Pair
from rlhfkit.web.app import create_app

MODELS = ("secretmodel-one", "secretmodel-two")


def numbered_pairs(count: int) -> list[Pair]:
    return [
        Pair(
            f"pair-{number}",
            f"Prompt {number}",
            f"Alpha {number}",
            f"Beta {number}",
            model_a=MODELS[0],
            model_b=MODELS[1],
            settings={"temperature": 0.123456, "weights": "secretweights"},
            origin="secretfile.jsonl:1",
        )
        for number in range(1, count + 1)
    ]


def open_store(directory: Path, pairs: Sequence[Pair] | int = 3, **settings: Any) -> Store:
    store = Store.open(directory / "votes.db", settings=StoreSettings(**settings))
    store.add_pairs(numbered_pairs(pairs) if isinstance(pairs, int) else pairs)
    return store


class Visitor:
    """A browser with its own cookies."""

    def __init__(
        self,
        store: Store,
        name: str | None = None,
        *,
        address: str = "http://localhost:8571",
        client: str = "127.0.0.1",
        **options: Any,
    ) -> None:
        self.app = create_app(store, title="Test", **options)
        self.http = TestClient(self.app, base_url=address, client=(client, 50000), follow_redirects=False)
        if name is not None:
            self.http.get("/", params={"token": store.add_annotator(name)})

    def post(self, path: str, body: object | None = None, **headers: str) -> Any:
        return self.http.post(path, json=body or {}, headers={"X-Rlhfkit": "1", **headers})

    def task(self) -> dict[str, Any] | None:
        answer: dict[str, Any] = self.post("/api/task").raise_for_status().json()
        return answer["task"]

    def vote(self, pair_id: str, **changes: Any) -> Any:
        return self.post("/api/vote", vote_body(pair_id, **changes))


def vote_body(pair_id: str, **changes: Any) -> dict[str, Any]:
    body = {
        "id": str(uuid.uuid4()),
        "pair_id": pair_id,
        "choice": "preference",
        "side": "left",
        "degree": 4,
        "active_seconds": 2.5,
        "wall_seconds": 4.0,
    }
    return {name: value for name, value in {**body, **changes}.items() if value is not None}
