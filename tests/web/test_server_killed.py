"""The page's server is killed while people vote, and started again: what it acknowledged is there, once."""

import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest

from rlhfkit.feedback.states import StoreSettings
from rlhfkit.feedback.store import Store
from tests.feedback.labelling import numbered_pairs, vote_body

pytestmark = pytest.mark.thorough

SERVER = """
import sys
from rlhfkit.web.app import create_app
from rlhfkit.web.server import serve
from rlhfkit.feedback.store import Store
with Store.open(sys.argv[1]) as store:
    serve(create_app(store), port=0, on_ready=lambda address: print(address.url, flush=True))
"""


def start(database):
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(database)], stdout=subprocess.PIPE, text=True)
    return server, server.stdout.readline().strip()


def label_until_it_breaks(url, token, acknowledged, unanswered):
    """Votes until the server is gone; what was sent without a reply is sent again by a browser."""
    with httpx.Client(base_url=url, headers={"X-Rlhfkit": "1"}, timeout=10) as http:
        http.get("/", params={"token": token})
        task = http.post("/api/task", json={}).json()["task"]
        while task is not None:
            body = vote_body(task["pair_id"])
            try:
                answer = http.post("/api/vote", json=body).raise_for_status().json()
            except httpx.TransportError:
                unanswered.append((token, body))
                return
            acknowledged.append(body["id"])
            task = answer["task"]


def test_a_killed_server_loses_no_acknowledged_vote_and_counts_none_twice(database):
    with Store.open(database, settings=StoreSettings(overlap=1, calibration_overlap=1)) as store:
        store.add_pairs(numbered_pairs(2000))
        tokens = [store.add_annotator(f"person {number}") for number in range(4)]
    acknowledged, unanswered = [], []
    server, url = start(database)
    people = [
        threading.Thread(target=label_until_it_breaks, args=(url, token, acknowledged, unanswered)) for token in tokens
    ]
    for person in people:
        person.start()
    deadline = time.monotonic() + 60
    while len(acknowledged) < 40 and time.monotonic() < deadline:
        time.sleep(0.01)
    server.kill()
    for person in people:
        person.join(30)
    assert server.wait(10) == -signal.SIGKILL
    assert len(acknowledged) >= 40 and len(unanswered) == 4

    server, url = start(database)
    try:
        for token, body in unanswered:
            with httpx.Client(base_url=url, headers={"X-Rlhfkit": "1"}) as http:
                http.get("/", params={"token": token})
                http.post("/api/vote", json=body).raise_for_status()
    finally:
        server.kill()
        server.wait(10)
    with Store.open(database) as store:
        kept = [vote.id for vote in store.votes()]
    assert sorted(kept) == sorted([*acknowledged, *(body["id"] for _, body in unanswered)])
