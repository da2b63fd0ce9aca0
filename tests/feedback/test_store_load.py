"""The store under many people at once, and when its process is killed."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from rlhfkit.feedback.states import StoreSettings, Undo
from rlhfkit.feedback.store import Store
from rlhfkit.feedback.votes import Choice, Pair, Vote

pytestmark = pytest.mark.thorough

CHOICES = [Choice("preference", 1), Choice("preference", -3), Choice("tie"), Choice("skip", skip_reason="other")]

PERSON = """
import sys, uuid
from rlhfkit.feedback.store import Store
from rlhfkit.feedback.votes import Choice, Vote
name = sys.argv[2]
with Store.open(sys.argv[1]) as store:
    while (task := store.lease(name)) is not None:
        vote = Vote(str(uuid.uuid4()), task.pair.id, name, Choice("preference", 1), task.shown_left, 1.0, 1.0)
        result = store.vote(vote)
        print(vote.id, task.pair.id, result, flush=True)
"""


def make_pairs(number):
    return [
        Pair(f"p{index}", f"prompt {index}", "one", "two", is_calibration=index % 8 == 0) for index in range(number)
    ]


def label(store, name, num_votes, acknowledged):
    """Lease and vote `num_votes` times as a person who also skips, sends twice and takes back."""
    generator = random.Random(name)
    for _ in range(num_votes):
        task = store.lease(name)
        if task is None:
            return
        choice = generator.choices(CHOICES, [6, 6, 2, 1])[0]
        vote = Vote(str(uuid.uuid4()), task.pair.id, name, choice, task.shown_left, 1.0, 1.0)
        acknowledged.append((vote.id, store.vote(vote)))
        if generator.random() < 0.1:
            assert store.vote(vote) == "repeated"
        if generator.random() < 0.05:
            assert store.undo(name, id=f"undo of {vote.id}").id == vote.id


def run_people(database, *, num_people, num_votes, num_stores=2):
    """What was acknowledged to `num_people` threads on several stores over one database."""
    stores = [Store.open(database) for _ in range(num_stores)]
    acknowledged = []
    with ThreadPoolExecutor(num_people) as pool:
        people = [
            pool.submit(label, stores[index % num_stores], f"person {index}", num_votes, acknowledged)
            for index in range(num_people)
        ]
        for person in people:
            person.result(timeout=200)
    for store in stores:
        store.close()
    return acknowledged


def check_promises(store, acknowledged, *, overlap, calibration_overlap):
    """No vote lost, none double, none counted beyond what its pair needed, even before an undo."""
    events = store.events()
    kept = {event.id: event for event in events if isinstance(event, Vote)}
    assert sorted(kept) == sorted(id for id, _ in acknowledged)
    assert {id: "surplus" if vote.is_surplus else "recorded" for id, vote in kept.items()} == dict(acknowledged)
    base = {pair.id: calibration_overlap if pair.is_calibration else overlap for pair in store.pairs()}
    standing, counted = Counter(), {id: Counter() for id in base}
    for event in events:
        vote = kept[event.vote_id] if isinstance(event, Undo) else event
        by = -1 if isinstance(event, Undo) else 1
        standing[vote.pair_id, vote.annotator] += by
        assert standing[vote.pair_id, vote.annotator] in (0, 1)
        if vote.choice.kind != "skip" and not vote.is_surplus:
            counted[vote.pair_id][vote.choice.preferred] += by
            assert counted[vote.pair_id].total() <= base[vote.pair_id] + 1, vote
    finished = 0
    for id, answers in counted.items():
        num_sides = sum(number > 0 for number in answers.values())
        finished += answers.total() >= base[id] + (num_sides > 1)
    return finished


def test_fifty_people_at_once_on_ten_thousand_pairs(database):
    with Store.open(database, settings=StoreSettings(overlap=2)) as store:
        assert store.add_pairs(make_pairs(10_000)) == 10_000
        acknowledged = run_people(database, num_people=50, num_votes=20)
        assert len(acknowledged) == 1000
        check_promises(store, acknowledged, overlap=2, calibration_overlap=3)


@pytest.mark.slow
def test_fifty_people_at_once_on_ten_thousand_pairs_for_long(database):
    with Store.open(database, settings=StoreSettings(overlap=2)) as store:
        store.add_pairs(make_pairs(10_000))
        acknowledged = run_people(database, num_people=50, num_votes=200, num_stores=4)
        assert len(acknowledged) == 10_000
        check_promises(store, acknowledged, overlap=2, calibration_overlap=3)


def test_many_people_on_few_pairs_finish_them_all_and_nothing_more(database):
    with Store.open(database, settings=StoreSettings(overlap=2)) as store:
        store.add_pairs(make_pairs(24))
        acknowledged = run_people(database, num_people=12, num_votes=60)
        finished = check_promises(store, acknowledged, overlap=2, calibration_overlap=3)
        state = store.queue()
        assert (state.num_finished, state.num_leased) == (finished, 0)


def test_people_in_several_processes_share_the_work(database):
    with Store.open(database, settings=StoreSettings(overlap=1, calibration_overlap=1)) as store:
        store.add_pairs(make_pairs(60))
        people = [start(database, f"person {index}") for index in range(3)]
        lines = [line.split() for person in people for line in person.communicate(timeout=100)[0].splitlines()]
        assert [person.returncode for person in people] == [0, 0, 0]
        assert {result for _, _, result in lines} == {"recorded"}
        assert sorted(pair_id for _, pair_id, _ in lines) == sorted(f"p{index}" for index in range(60))
        assert sorted(vote.id for vote in store.votes()) == sorted(id for id, _, _ in lines)


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_process_loses_no_acknowledged_vote(database, seed):
    with Store.open(database, settings=StoreSettings(overlap=1, calibration_overlap=1)) as store:
        store.add_pairs(make_pairs(5000))
    person = start(database, "ann")
    lines = [person.stdout.readline()]
    time.sleep(random.Random(seed).uniform(0.05, 0.6))
    os.kill(person.pid, signal.SIGKILL)
    lines += person.communicate(timeout=60)[0].splitlines()
    assert person.returncode == -signal.SIGKILL
    acknowledged = [line.split()[0] for line in lines if line.endswith(("recorded", "recorded\n"))]
    assert acknowledged
    with Store.open(database) as store:
        kept = [vote.id for vote in store.votes()]
        assert kept[: len(acknowledged)] == acknowledged
        assert len(kept) <= len(acknowledged) + 1  # stored, but killed before it could say so
        assert store.progress("ann").num_voted == len(kept)
        assert store.queue().num_finished == len(kept)
        task = store.lease("ann")
        assert task.position == len(kept) + 1
        vote = Vote("after", task.pair.id, "ann", Choice("tie"), task.shown_left, 1.0, 1.0)
        assert store.vote(vote) == "recorded"


def test_reading_goes_on_while_people_write(database):
    with Store.open(database, settings=StoreSettings(overlap=2)) as store, Store.open(database) as reader:
        store.add_pairs(make_pairs(300))
        acknowledged, seen, is_over = [], [], threading.Event()

        def read():
            while not is_over.is_set():
                seen.append(len(reader.snapshot().votes))

        reading = threading.Thread(target=read)
        reading.start()
        with ThreadPoolExecutor(4) as pool:
            people = [pool.submit(write, store, f"person {index}", acknowledged) for index in range(4)]
            for person in people:
                person.result(timeout=100)
        is_over.set()
        reading.join(timeout=30)
        assert len(acknowledged) == 100
        assert seen == sorted(seen)
        assert len(set(seen)) > 3


def write(store, name, acknowledged):
    for _ in range(25):
        task = store.lease(name)
        vote = Vote(str(uuid.uuid4()), task.pair.id, name, CHOICES[0], task.shown_left, 1.0, 1.0)
        acknowledged.append(store.vote(vote))


def test_processes_may_open_a_new_database_at_once(database):
    people = [start(database, f"person {index}") for index in range(4)]
    assert [(person.communicate(timeout=100)[0], person.returncode) for person in people] == [("", 0)] * 4
    with Store.open(database) as store:
        assert sorted(store.annotators()) == [f"person {index}" for index in range(4)]


def start(database, name):
    command = [sys.executable, "-c", PERSON, database, name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
