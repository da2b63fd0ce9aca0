"""A person who labels: finds the page at its address, signs in and votes over HTTP, as a browser does."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx

from tests.feedback.labelling import vote_body

SECONDS = 60.0
"""So long a person waits for the page before the test fails."""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def ctrl_c() -> None:
    """What the terminal sends to this process; the main thread gets it."""
    os.kill(os.getpid(), signal.SIGINT)


class Person(threading.Thread):
    """Votes for the longer response of each pair that the page shows, up to `num` of them, and then does `then`."""

    def __init__(
        self,
        port: int,
        name: str = "Ada",
        *,
        token: str | None = None,
        num: int | None = None,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(daemon=True)
        self.address, self.person, self.token, self.num, self.then = f"http://127.0.0.1:{port}", name, token, num, then
        self.seen: list[dict[str, Any]] = []
        """Tasks in the order they came."""
        self.guidelines = ""
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Label, and keep what went wrong for `finish`."""
        try:
            with httpx.Client(base_url=self.address, headers={"X-Rlhfkit": "1"}, timeout=20) as http:
                self._label(http)
        except BaseException as error:
            self.error = error
        finally:
            self.then()

    def finish(self) -> "Person":
        """This person, when they are through; raises what went wrong."""
        self.join(SECONDS)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error
        return self

    def _label(self, http: httpx.Client) -> None:
        self._wait_for_page(http)
        if self.token is None:
            http.post("/api/session", json={"name": self.person}).raise_for_status()
        else:
            assert http.get("/", params={"token": self.token}).status_code == 303
        self.guidelines = http.get("/api/guidelines").raise_for_status().json()["text"]
        answer = http.post("/api/task", json={}).raise_for_status().json()
        while (task := answer["task"]) is not None and (self.num is None or len(self.seen) < self.num):
            self.seen.append(task)
            side = "left" if len(task["left"]) >= len(task["right"]) else "right"
            body = vote_body(task["pair_id"], side=side, guidelines_version=answer["guidelines_version"])
            answer = http.post("/api/vote", json=body).raise_for_status().json()

    def _wait_for_page(self, http: httpx.Client) -> None:
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                http.get("/api/session").raise_for_status()
                return
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
