"""The database itself crashes while people vote: what was confirmed is there, and every page goes on with its pair."""

import threading
import time
import uuid

import pytest
from sqlalchemy import create_engine, text

from rlhfkit.feedback.states import StoreSettings
from rlhfkit.feedback.store import Store
from rlhfkit.feedback.votes import Choice, Vote
from tests.databases import running_server
from tests.feedback.labelling import Visitor, numbered_pairs, vote_body

ONE_VOTE = StoreSettings(overlap=1, calibration_overlap=1)


def unwritten_bytes(url):
    """Bytes of the log that a crash would lose; what asks for them writes none itself."""
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        lost = text("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), pg_current_wal_flush_lsn())")
        found = connection.execute(lost).scalar_one()
    engine.dispose()
    return found


def of_store(task, name):
    return Vote(str(uuid.uuid4()), task.pair.id, name, Choice("preference", 1), task.shown_left, 1.0, 1.0)


@pytest.mark.parametrize("options", ["", "%20-csynchronous_commit%3Doff"])
def test_what_postgresql_confirms_is_in_its_log_on_the_disk(postgresql, options):
    url = postgresql + options
    with Store.open(url, settings=ONE_VOTE) as store:
        store.add_pairs(numbered_pairs(9))
        for turn in range(4):
            task = store.lease("ann")
            assert unwritten_bytes(url) == 0, f"the pair that ann sees, {turn}"
            assert store.vote(of_store(task, "ann")) == "recorded"
            assert unwritten_bytes(url) == 0, f"a vote, {turn}"
        store.vote_and_lease(of_store(store.lease("ann"), "ann"))
        assert unwritten_bytes(url) == 0, "a vote with the next pair"
        store.undo("ann", id="undo-undo")
        assert unwritten_bytes(url) == 0, "an undo"
        store.add_annotator("bo")
        assert unwritten_bytes(url) == 0, "a person with a link"


def test_a_server_that_may_lose_what_it_confirmed_is_named(postgresql, tmp_path):
    with Store.open(postgresql) as store:
        (risk,) = store.risks()
        assert "runs with fsync = off, so that a crash of its machine may lose votes" in risk
        assert "set fsync = on in postgresql.conf" in risk
    with Store.open(tmp_path / "labels.db") as store:
        assert store.risks() == []


def label_until_it_breaks(visitor, task, confirmed, stop):
    """The vote that was under way when the database went, as the page would send it again."""
    while not stop.is_set():
        body = vote_body(task["pair_id"])
        answer = visitor.post("/api/vote", body)
        if answer.status_code == 503:
            return body
        assert answer.status_code == 200, answer.text
        confirmed.append(body["id"])
        task = answer.json()["task"]
    return None


@pytest.mark.slow
def test_twenty_crashes_of_postgresql_lose_no_confirmed_vote_and_no_pair_before_a_person():
    names = [f"person {number}" for number in range(4)]
    with running_server() as server, Store.open(server.url, settings=ONE_VOTE) as store:
        assert store.risks() == []
        store.add_pairs(numbered_pairs(6000))
        visitors = [Visitor(store, name) for name in names]
        confirmed, waiting = [], dict.fromkeys(names)
        for crash in range(20):
            before, stop, sent_again, under_way = len(confirmed), threading.Event(), [], {}

            def work(name, visitor, body, stop=stop, sent_again=sent_again, under_way=under_way):
                if body is not None:
                    answer = visitor.post("/api/vote", body)
                    assert answer.status_code == 200, answer.text
                    confirmed.append(body["id"])
                sent_again.append(name)
                under_way[name] = label_until_it_breaks(visitor, visitor.task(), confirmed, stop)

            people = [
                threading.Thread(target=work, args=(name, visitor, waiting[name]))
                for name, visitor in zip(names, visitors, strict=True)
            ]
            for person in people:
                person.start()
            deadline = time.monotonic() + 60
            while (len(confirmed) < before + 10 or len(sent_again) < len(names)) and time.monotonic() < deadline:
                time.sleep(0.005)
            server.crash()
            for person in people:
                person.join(60)
            stop.set()
            assert len(confirmed) >= before + 10, f"crash {crash}"
            assert under_way.keys() == set(names) and None not in under_way.values()
            waiting = under_way
            server.start()
            if crash % 2:  # the page's server is started again, too, and remembers nothing
                visitors = [Visitor(store, name) for name in names]
            kept = {vote.id for vote in store.votes()}
            assert [id for id in confirmed if id not in kept] == []
        for name, visitor in zip(names, visitors, strict=True):
            assert visitor.post("/api/vote", waiting[name]).status_code == 200
        assert len(store.votes()) == len(confirmed) + 4
