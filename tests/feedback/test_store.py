import itertools
import json
import math
import random
import sqlite3
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from rlhfkit.errors import ConfigError, DataError, MissingDependencyError, StoreError
from rlhfkit.feedback import database as database_module
from rlhfkit.feedback.states import AnnotatorProgress, QueueState, RoundState, Snapshot, StoreSettings, Undo
from rlhfkit.feedback.store import Store
from rlhfkit.feedback.votes import Choice, Pair, Vote
from rlhfkit.records import Message

A, B = Choice("preference", 2), Choice("preference", -2)
TIE, BAD, SKIP = Choice("tie"), Choice("both_bad"), Choice("skip", skip_reason="unclear")
NUMBERS = itertools.count()


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.now = 1_700_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make_store(database, clock):
    """Opens the same database, as often as asked."""
    opened = []

    def make(**settings):
        opened.append(Store.open(database, settings=StoreSettings(**settings) if settings else None, clock=clock))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


def pair(id, **columns):
    return Pair(id, f"prompt of {id}", "one answer", "another answer", **columns)


def vote_on(pair_id, annotator, choice=A, **columns):
    values = {"id": f"vote-{next(NUMBERS)}", "shown_left": "a", "active_seconds": 2.0, "wall_seconds": 3.0}
    return Vote(pair_id=pair_id, annotator=annotator, choice=choice, **{**values, **columns})


def say(store, pair_id, annotator, choice=A):
    vote = vote_on(pair_id, annotator, choice)
    return store.vote(vote), vote


def work(store, annotator, choice=A):
    """Lease, vote; the id of the pair, or None where there was no task."""
    task = store.lease(annotator)
    if task is None:
        return None
    assert say(store, task.pair.id, annotator, choice)[0] == "recorded"
    return task.pair.id


# What is kept


def test_pairs_come_back_as_they_were_added(make_store):
    dialogue = (Message("user", "Grüße 👋\u202eabc"), Message("assistant", "<script>alert(1)</script>"))
    given = [
        Pair("p1", "'); DROP TABLE votes; --", "NUL \x00 and half a pair \ud83d", ""),
        Pair(
            "p/2",
            "",
            dialogue,
            (*dialogue, Message("user", "中文")),
            model_a="m\x00",
            model_b="other",
            settings={"temperature": 0.7, "seeds": [1, 2], "nested": {"b": None, "a": True}},
            round=3,
            reason="active",
            probability=0.1,
            part="test",
            is_calibration=True,
            origin="prompts.jsonl:17",
        ),
    ]
    store = make_store()
    assert store.add_pairs(given) == 2
    assert store.pairs() == given
    assert make_store().snapshot() == Snapshot(given, [])
    assert store.pairs(round=3) == given[1:]
    assert store.pairs(round=2) == []


def test_everything_of_a_vote_is_kept(make_store, clock):
    store = make_store()
    store.add_pairs([pair("p1"), pair("p2"), pair("p3")])
    given = [
        Vote(
            "v1",
            "p2",
            "Ann Lee 李",
            Choice("preference", -4),
            "b",
            12.25,
            99.5,
            ("unsafe", "wrong"),
            ("off_topic",),
            "because \x00 \ud83d 👍",
            7,
            "zh",
        ),
        vote_on("p1", "Ann Lee 李", SKIP),
        vote_on("p3", "Ann Lee 李", BAD),
    ]
    for vote in given:
        assert store.vote(vote) == "recorded"
        clock.now += 1
    expected = [replace(vote, created_at=1_700_000_000.0 + index) for index, vote in enumerate(given)]
    assert store.votes() == expected
    assert make_store().events() == expected


def test_the_same_pair_again_adds_nothing_and_another_under_its_id_is_refused(make_store):
    store = make_store()
    given = [pair(f"p{index}", settings={"b": (1, 2), "a": 1}) for index in range(450)]
    assert store.add_pairs(given) == 450
    assert store.add_pairs([*given, pair("new")]) == 1
    with pytest.raises(DataError, match="pair 'p7' is known with another response_b"):
        store.add_pairs([pair("fresh"), replace(given[7], response_b="changed")])
    with pytest.raises(DataError, match="pair 'twice' is known with another round"):
        store.add_pairs([pair("twice"), pair("twice", round=2)])
    assert len(store.pairs()) == 451


def test_what_cannot_be_kept_is_refused(make_store):
    store = make_store()
    store.add_pairs([pair("p")])
    for bad in ("", "  ", "a\x00", "a\nb", "\ud800", "x" * 201):
        with pytest.raises(DataError, match="id of a pair"):
            store.add_pairs([pair(bad)])
        with pytest.raises(DataError, match="name of an annotator"):
            store.add_annotator(bad)
        with pytest.raises(DataError, match="name of an annotator"):
            store.lease(bad)
        with pytest.raises(DataError, match="name of an annotator"):
            store.progress(bad)
        with pytest.raises(DataError, match="name of an annotator"):
            store.vote(vote_on("p", bad))
        with pytest.raises(DataError, match="pair of vote"):
            store.vote(vote_on(bad, "ann"))
        for call in (store.extend, store.release):
            with pytest.raises(DataError, match="name of an annotator"):
                call(bad, "p")
            with pytest.raises(DataError, match="id of a pair"):
                call("ann", bad)
        with pytest.raises(DataError, match="id of a vote"):
            store.vote(vote_on("p", "ann", id=bad))
        with pytest.raises(DataError, match="id of an undo"):
            store.undo("ann", id=bad)
    with pytest.raises(DataError, match="settings of pair 'q' cannot be written as JSON"):
        store.add_pairs([pair("q", settings={"model": object()})])
    with pytest.raises(DataError, match="settings of pair 'q' cannot be written as JSON"):
        store.add_pairs([pair("q", settings={"temperature": math.nan})])
    with pytest.raises(DataError, match="active_seconds = nan"):
        store.vote(vote_on("p", "ann", active_seconds=math.nan))
    with pytest.raises(DataError, match="wall_seconds = -1"):
        store.vote(vote_on("p", "ann", wall_seconds=-1.0))
    with pytest.raises(DataError, match="shown_left = 'left'"):
        store.vote(vote_on("p", "ann", shown_left="left"))
    with pytest.raises(DataError, match="pair 'nobody', which the store does not have"):
        store.vote(vote_on("nobody", "ann"))
    assert store.events() == []
    assert len(store.pairs()) == 1


def test_events_can_be_neither_changed_nor_deleted(make_store):
    store = make_store()
    store.add_pairs([pair("p")])
    say(store, "p", "ann")
    store.undo("ann", id="u")
    for statement in (
        "UPDATE votes SET strength = 4",
        "DELETE FROM votes",
        "UPDATE undos SET annotator = 'x'",
        "DELETE FROM undos",
    ):
        with (
            pytest.raises(StoreError, match="are events and are never changed"),
            store._database.writing() as connection,
        ):
            connection.execute(text(statement))
    assert len(store.events()) == 2


def test_a_reference_to_nothing_is_refused(make_store):
    with (
        pytest.raises(StoreError, match=r"(?i)foreign key"),
        make_store()._database.writing() as connection,
    ):
        connection.execute(text("INSERT INTO leases VALUES ('nobody', 1, 0.0)"))


# Tokens


def test_a_token_names_its_person_and_only_a_hash_is_kept(make_store):
    store = make_store()
    first, second = store.add_annotator("ann"), store.add_annotator("ann")
    other = store.add_annotator("bob")
    assert len({first, second, other}) == 3
    assert len(first) >= 32
    assert [store.annotator_of(token) for token in (first, second, other)] == ["ann", "ann", "bob"]
    assert [store.annotator_of(token) for token in ("", first[:-1], first + "x", "\ud800", "%")] == [None] * 5
    assert store.annotators() == ["ann", "bob"]
    with store._database.reading() as connection:
        kept = str(connection.execute(text("SELECT * FROM tokens")).all())
    assert "ann" in kept
    assert not any(token in kept for token in (first, second, other))


# Who is asked what


def test_tasks_come_in_the_order_of_adding(make_store):
    store = make_store()
    store.add_pairs([pair(id) for id in ("c", "a", "b")])
    assert [work(store, "ann") for _ in range(4)] == ["c", "a", "b", None]


def test_two_people_are_not_asked_the_same_beyond_the_overlap(make_store):
    store = make_store(overlap=1)
    store.add_pairs([pair("p1"), pair("p2")])
    assert store.lease("ann").pair.id == "p1"
    assert store.lease("bob").pair.id == "p2"
    assert store.lease("eve") is None
    say(store, "p1", "ann")
    assert store.lease("eve") is None
    assert store.lease("ann") is None


def test_pairs_that_others_have_begun_come_first(make_store):
    store = make_store(overlap=2)
    store.add_pairs([pair(f"p{index}") for index in range(4)])
    store.lease("ann")
    assert work(store, "bob") == "p0"
    assert work(store, "bob") == "p1"
    assert store.lease("eve").pair.id == "p1"  # ann has p0
    assert store.lease("kim").pair.id == "p2"


def test_calibration_pairs_are_spread_at_their_share(make_store):
    store = make_store()
    store.add_pairs([pair(f"c{index}", is_calibration=True) for index in range(2)])
    store.add_pairs([pair(f"p{index}") for index in range(8)])
    # 2 of 10: every fifth task.
    order = ["p0", "p1", "p2", "p3", "c0", "p4", "p5", "p6", "p7", "c1", None]
    assert [work(store, "ann") for _ in range(11)] == order


def test_one_who_comes_late_does_not_get_all_calibration_pairs_at_once(make_store):
    store = make_store(overlap=1, calibration_overlap=2)
    store.add_pairs([pair(f"p{index}", is_calibration=index % 4 == 0) for index in range(16)])
    for _ in range(8):
        work(store, "ann")
    # ann decided p1 p2 p3 p0 p5 p6 p7 p4; 4 of 16 are of the pool: every fourth task.
    assert [work(store, "bob") for _ in range(8)] == ["p9", "p10", "p11", "p0", "p13", "p14", "p15", "p4"]


def test_calibration_pairs_are_asked_of_more_people(make_store):
    store = make_store(overlap=1, calibration_overlap=3)
    store.add_pairs([pair("c", is_calibration=True)])
    assert [work(store, name) for name in ("ann", "bob", "eve", "kim")] == ["c", "c", "c", None]


def test_the_share_is_that_of_the_newest_round(make_store):
    store = make_store()
    store.add_pairs([pair(f"old{index}", round=1) for index in range(4)])
    store.add_pairs([pair(f"new{index}", round=2, is_calibration=index < 2) for index in range(4)])
    # 2 of 4: every second task, though 2 of 8 in all.
    order = ["old0", "new0", "old1", "new1", "old2", "old3", "new2", "new3"]
    assert [work(store, "ann") for _ in range(8)] == order


def test_one_more_is_asked_where_two_disagree(make_store):
    for index, (one, other, asks) in enumerate(
        [(A, A, False), (A, B, True), (A, TIE, True), (B, BAD, True), (TIE, BAD, False), (TIE, TIE, False)]
    ):
        store = make_store(overlap=2)
        id = f"p{index}"
        store.add_pairs([pair(id)])
        assert work(store, "ann", one) == id
        assert work(store, "bob", other) == id
        assert (store.lease("eve") is not None) == asks, (one, other)
        if asks:
            assert store.lease("kim") is None
            assert say(store, id, "eve", TIE)[0] == "recorded"
            assert store.lease("kim") is None


def test_a_calibration_pair_that_divides_people_gets_one_more_and_not_two(make_store):
    store = make_store(calibration_overlap=3)
    store.add_pairs([pair("c", is_calibration=True)])
    answers = zip(["ann", "bob", "eve", "kim", "lou"], [A, B, TIE, B, A], strict=True)
    assert [work(store, name, choice) for name, choice in answers] == ["c", "c", "c", "c", None]


def test_degrees_alone_are_no_disagreement(make_store):
    store = make_store(overlap=2)
    store.add_pairs([pair("p")])
    work(store, "ann", Choice("preference", 1))
    work(store, "bob", Choice("preference", 4))
    assert store.lease("eve") is None


def test_a_skip_is_not_counted_and_others_are_asked(make_store):
    store = make_store(overlap=1)
    store.add_pairs([pair("p")])
    assert work(store, "ann", SKIP) == "p"
    assert store.lease("ann") is None
    assert work(store, "bob", SKIP) == "p"
    assert work(store, "eve", A) == "p"
    assert store.lease("kim") is None
    assert [vote.choice.kind for vote in store.votes()] == ["skip", "skip", "preference"]
    assert store.progress("ann") == AnnotatorProgress(0, 1, 0, 1, 2.0)


# Leases


def test_asking_again_gives_the_same_task_also_after_a_restart(make_store, clock):
    store = make_store(overlap=3, lease_seconds=60.0)
    store.add_pairs([pair(f"p{index}") for index in range(5)])
    names = [f"person {index}" for index in range(9)]
    tasks = {name: store.lease(name) for name in names}
    clock.now += 59
    for opened in (store, make_store()):
        again = {name: opened.lease(name) for name in names}
        assert {name: (task.pair, task.shown_left, task.position) for name, task in again.items()} == {
            name: (task.pair, task.shown_left, task.position) for name, task in tasks.items()
        }
        assert {task.lease_until for task in again.values()} == {clock.now + 60}


def test_a_task_comes_back_when_its_lease_is_over(make_store, clock):
    store = make_store(overlap=1, lease_seconds=60.0)
    store.add_pairs([pair("p")])
    assert store.lease("ann").lease_until == clock.now + 60
    clock.now += 59.9
    assert store.lease("bob") is None
    clock.now += 0.1
    assert store.lease("bob").pair.id == "p"
    assert store.lease("ann") is None


def test_a_late_person_gets_the_task_back_while_there_is_room(make_store, clock):
    store = make_store(overlap=1)
    store.add_pairs([pair("p0"), pair("p1")])
    assert store.lease("bob").pair.id == "p0"
    task = store.lease("ann")
    store.release("bob", "p0")
    clock.now += 10_000
    again = store.lease("ann")
    assert (again.pair.id, again.shown_left) == ("p1", task.shown_left)


def test_a_late_vote_counts_while_there_is_room_and_is_surplus_otherwise(make_store, clock):
    store = make_store(overlap=1)
    store.add_pairs([pair("p0"), pair("p1"), pair("p2")])
    assert [store.lease(name).pair.id for name in ("ann", "bob", "eve")] == ["p0", "p1", "p2"]
    clock.now += 10_000
    assert say(store, "p0", "ann")[0] == "recorded"
    assert say(store, "p1", "kim")[0] == "recorded"
    assert say(store, "p1", "bob")[0] == "surplus"
    assert store.lease("kim").pair.id == "p2"  # promised to kim now
    assert say(store, "p2", "eve")[0] == "surplus"
    assert say(store, "p2", "kim")[0] == "recorded"
    assert [(vote.pair_id, vote.annotator, vote.is_surplus) for vote in store.votes()] == [
        ("p0", "ann", False),
        ("p1", "kim", False),
        ("p1", "bob", True),
        ("p2", "eve", True),
        ("p2", "kim", False),
    ]
    assert store.queue().num_finished == 3


def test_a_heartbeat_keeps_the_task(make_store, clock):
    store = make_store(overlap=1, lease_seconds=60.0)
    store.add_pairs([pair("p"), pair("q")])
    store.lease("ann")
    for _ in range(3):
        clock.now += 50
        assert store.extend("ann", "p")
    assert store.lease("bob").pair.id == "q"
    assert not store.extend("ann", "q")
    assert not store.extend("eve", "p")
    assert not store.extend("ann", "no such pair")
    clock.now += 61
    assert store.extend("ann", "p")  # nobody else has it
    clock.now += 61
    assert store.lease("eve").pair.id == "p"
    assert not store.extend("ann", "p")
    say(store, "p", "eve")
    clock.now += 61
    assert not store.extend("eve", "p")


def test_a_released_task_goes_to_others(make_store):
    store = make_store(overlap=1)
    store.add_pairs([pair("p"), pair("q")])
    side = store.lease("ann").shown_left
    store.release("bob", "p")
    store.release("ann", "q")
    store.release("ann", "no such pair")
    assert store.lease("bob").pair.id == "q"
    store.release("ann", "p")
    assert store.lease("eve").pair.id == "p"
    store.release("eve", "p")
    task = store.lease("ann")
    assert (task.pair.id, task.shown_left) == ("p", side)


def test_sides_are_balanced_for_a_pair_and_for_a_person(make_store):
    store = make_store(overlap=6)
    store.add_pairs([pair(f"p{index}") for index in range(24)])
    left = {}
    for name in ("ann", "bob", "eve", "kim"):
        for _ in range(24):
            task = store.lease(name)
            left[name, task.pair.id] = task.shown_left
            say(store, task.pair.id, name)
    for index in range(24):
        assert Counter(left[name, f"p{index}"] for name in ("ann", "bob", "eve", "kim")) == {"a": 2, "b": 2}
    assert 9 <= Counter(left["ann", f"p{index}"] for index in range(24))["a"] <= 15
    orders = {tuple(left[name, f"p{index}"] for index in range(24)) for name in ("ann", "eve")}
    assert len(orders) == 2  # 1 in 2^24 otherwise


def test_a_task_tells_nothing_of_the_answers_of_others(make_store):
    store = make_store(overlap=2)
    store.add_pairs([pair("p")])
    store.vote(vote_on("p", "ann", comment="the secret of ann"))
    task = store.lease("bob")
    assert (task.pair, task.position) == (pair("p"), 1)
    assert "ann" not in repr(task)
    assert store.undo("bob", id="u") is None
    assert len(store.votes()) == 1


# Votes that come twice, and undo


def test_a_vote_sent_again_is_counted_once(make_store):
    store = make_store(overlap=2)
    store.add_pairs([pair("p"), pair("q")])
    vote = vote_on("p", "ann")
    assert [store.vote(vote) for _ in range(3)] == ["recorded", "repeated", "repeated"]
    assert store.vote(vote_on("p", "ann", B)) == "repeated"  # another page, the same person and pair
    for other in (replace(vote, annotator="bob"), replace(vote, pair_id="q")):
        with pytest.raises(DataError, match="is known as another one"):
            store.vote(other)
    assert [(known.id, known.choice) for known in store.events()] == [(vote.id, A)]
    assert store.progress("ann").num_voted == 1
    assert store.lease("bob").pair.id == "p"


def test_undo_takes_back_the_newest_and_gives_its_task_again(make_store, clock):
    store = make_store(overlap=1)
    store.add_pairs([pair(f"p{index}") for index in range(3)])
    first = store.lease("ann")
    work(store, "ann")
    second = store.lease("ann")
    work(store, "ann", SKIP)
    assert store.lease("ann").pair.id == "p2"
    assert (store.undo("ann", id="u1").pair_id, store.progress("ann").num_skipped) == ("p1", 0)
    assert store.lease("bob").pair.id == "p2"
    clock.now += 5
    taken = store.undo("ann", id="u2")
    assert (taken.pair_id, taken.choice) == ("p0", A)
    again = store.lease("ann")
    assert (again.pair, again.shown_left, again.position) == (first.pair, first.shown_left, 1)
    assert store.votes() == []
    assert say(store, "p0", "ann", B)[0] == "recorded"
    again = store.lease("ann")
    assert (again.pair, again.shown_left) == (second.pair, second.shown_left)
    events = store.events()
    assert [type(happened) for happened in events] == [Vote, Vote, Undo, Undo, Vote]
    assert events[3] == Undo("u2", events[0].id, "ann", 1_700_000_005.0)
    assert [vote.choice for vote in store.votes()] == [B]
    assert store.progress("ann") == AnnotatorProgress(1, 0, 2, 3, 6.0)


def test_an_undo_sent_again_takes_back_nothing_more(make_store):
    store = make_store()
    store.add_pairs([pair("p"), pair("q")])
    assert store.undo("ann", id="empty") is None
    work(store, "ann")
    _, vote = say(store, "q", "ann")
    assert store.undo("ann", id="empty") is None
    assert [store.undo("ann", id="u").id for _ in range(2)] == [vote.id, vote.id]
    assert store.vote(vote) == "repeated"  # a late copy does not bring it back
    with pytest.raises(DataError, match="undo 'u' is known as another one"):
        store.undo("bob", id="u")
    assert [known.pair_id for known in store.votes()] == ["p"]
    assert len(store.events()) == 3


def test_an_undone_slip_does_not_ask_a_third_person(make_store):
    store = make_store(overlap=2)
    store.add_pairs([pair("p")])
    work(store, "ann", A)
    work(store, "bob", B)
    store.undo("bob", id="u")
    assert work(store, "bob", A) == "p"
    assert store.lease("eve") is None
    assert store.queue().num_finished == 1


def test_who_takes_a_vote_back_can_give_another_though_others_agree_meanwhile(make_store):
    store = make_store(overlap=2)
    store.add_pairs([pair("p")])
    for name, choice in (("ann", A), ("bob", B), ("eve", B)):
        work(store, name, choice)
    assert store.queue().num_finished == 1
    store.undo("ann", id="u")
    assert store.lease("kim") is None
    assert say(store, "p", "ann", B)[0] == "recorded"
    assert store.queue().num_finished == 1
    assert [vote.is_surplus for vote in store.votes()] == [False] * 3


def test_a_pair_that_an_undo_opens_again_goes_to_others_when_left(make_store):
    store = make_store(overlap=1)
    store.add_pairs([pair(f"p{index}") for index in range(3)])
    assert [work(store, "ann"), work(store, "bob"), work(store, "bob")] == ["p0", "p1", "p2"]
    assert store.lease("bob") is None
    store.undo("ann", id="u")
    assert store.lease("bob") is None
    store.release("ann", "p0")
    assert store.lease("bob").pair.id == "p0"


def test_votes_from_elsewhere_keep_their_time_and_whether_they_are_surplus(make_store, clock):
    store = make_store(overlap=1)
    store.add_pairs([pair("p"), pair("q"), pair("r")])
    given = [
        vote_on("p", "ann", created_at=12.0),
        vote_on("p", "bob"),
        vote_on("q", "bob", SKIP),
        vote_on("r", "bob", is_surplus=True),
    ]
    assert [store.add_votes(given), store.add_votes(given)] == [4, 0]
    kept = [(vote.annotator, vote.created_at, vote.is_surplus) for vote in store.votes()]
    now = clock.now
    assert kept == [("ann", 12.0, False), ("bob", now, False), ("bob", now, False), ("bob", now, True)]
    assert store.queue().num_finished == 1  # nobody's vote was counted for q and r
    assert store.lease("carl").pair.id == "q"


# Counters


def test_queue_and_progress_say_how_far_all_are(make_store, clock):
    store = make_store(overlap=2)
    assert store.queue() == QueueState(0, 0, 0, 0, ())
    assert store.lease("ann") is None
    store.add_pairs([*(pair(f"p{index}") for index in range(4)), pair("last", round=2)])
    assert store.progress("nobody") == AnnotatorProgress(0, 0, 5, 5, 0.0)
    work(store, "ann")
    work(store, "ann", SKIP)
    work(store, "bob")
    store.lease("ann")
    store.lease("bob")
    assert store.queue() == QueueState(5, 1, 2, 2, (RoundState(1, 4, 1), RoundState(2, 1, 0)))
    assert store.progress("ann") == AnnotatorProgress(1, 1, 3, 5, 4.0)
    clock.now += 10_000
    assert store.queue().num_leased == 0


@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(3))
def test_counters_agree_with_the_events_whatever_happens(make_store, clock, seed):
    overlaps = {False: 2, True: 3}
    store = make_store(overlap=overlaps[False], calibration_overlap=overlaps[True], lease_seconds=30.0)
    all_pairs = [pair(f"p{index}", is_calibration=index % 3 == 0, round=1 + index // 6) for index in range(12)]
    store.add_pairs(all_pairs)
    names = ["ann", "bob", "eve", "kim", "lou"]
    generator = random.Random(seed)
    for step in range(150):
        name = generator.choice(names)
        what = generator.choice(["work"] * 6 + ["lease", "undo", "late", "wait", "release"])
        held = store.lease(name) if what in ("work", "lease", "release") else None
        if what == "work" and held:
            choice = generator.choice([A, A, A, B, TIE, SKIP])
            # Surplus only where an undo gave a person a task again that others have finished.
            assert say(store, held.pair.id, name, choice)[0] != "repeated"
        elif what == "undo":
            store.undo(name, id=f"undo-{step}")
        elif what == "late":
            say(store, generator.choice(all_pairs).id, name, generator.choice([A, B, SKIP]))
        elif what == "wait":
            clock.now += generator.choice([1, 40])
        elif what == "release" and held:
            store.release(name, held.pair.id)
        if step % 3 == 0:
            check_counters(store, all_pairs, names, overlaps)


def check_counters(store, all_pairs, names, overlaps):
    """Compare the counters with what follows from the events alone."""
    events = store.events()
    undone = {happened.vote_id for happened in events if isinstance(happened, Undo)}
    standing = [happened for happened in events if isinstance(happened, Vote) and happened.id not in undone]
    assert store.votes() == standing
    assert max(Counter((vote.pair_id, vote.annotator) for vote in standing).values(), default=1) == 1
    with store._database.reading() as connection:
        needed = dict(
            connection.execute(text("SELECT id, num_needed FROM queue JOIN pairs ON pairs.number = queue.number")).all()
        )
    is_open = {}
    for one in all_pairs:
        counted = [
            vote.choice.preferred or "neither"
            for vote in standing
            if vote.pair_id == one.id and vote.choice.kind != "skip" and not vote.is_surplus
        ]
        first = overlaps[one.is_calibration]
        assert first <= needed[one.id] <= first + 1
        assert len(counted) <= needed[one.id]
        if len(counted) == first and len(set(counted)) > 1:
            assert needed[one.id] == first + 1
        is_open[one.id] = len(counted) < needed[one.id]
    state = store.queue()
    assert state.num_finished == sum(not value for value in is_open.values())
    for round in state.rounds:
        assert round.num_finished == sum(not is_open[one.id] for one in all_pairs if one.round == round.round)
    for name in names:
        mine = [vote for vote in standing if vote.annotator == name]
        progress = store.progress(name)
        assert progress.num_skipped == sum(vote.choice.kind == "skip" for vote in mine)
        assert progress.num_voted == len(mine) - progress.num_skipped
        assert progress.num_left == sum(is_open.values()) - sum(is_open[vote.pair_id] for vote in mine)


# Settings and guidelines


def test_settings_are_kept(make_store):
    settings = StoreSettings(overlap=2, calibration_overlap=5, lease_seconds=7.5)
    assert make_store(overlap=2, calibration_overlap=5, lease_seconds=7.5).settings == settings
    assert make_store().settings == settings
    assert make_store(overlap=4).settings == StoreSettings(overlap=4)
    assert make_store().settings == StoreSettings(overlap=4)


def test_a_larger_overlap_opens_pairs_again_and_a_smaller_one_finishes_them(make_store):
    store = make_store(overlap=1)
    store.add_pairs([pair("p"), pair("q"), pair("r")])
    assert [work(store, "ann"), work(store, "bob")] == ["p", "q"]
    store = make_store(overlap=2)
    assert store.queue() == QueueState(3, 0, 0, 3, (RoundState(1, 3, 0),))
    assert store.progress("ann").num_left == 2
    assert [work(store, "bob", B), work(store, "ann", A)] == ["p", "q"]
    assert store.queue().num_finished == 1  # they disagree on p
    store = make_store(overlap=1)
    assert store.queue().num_finished == 2
    assert store.progress("ann") == AnnotatorProgress(2, 0, 1, 3, 4.0)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="overlap = 0; expected at least 1"):
        StoreSettings(overlap=0)
    with pytest.raises(ConfigError, match="calibration_overlap = -1"):
        StoreSettings(calibration_overlap=-1)
    for seconds in (0.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="lease_seconds"):
            StoreSettings(lease_seconds=seconds)


def test_guidelines_have_versions(make_store):
    store = make_store()
    assert store.guidelines() == (0, "")
    versions = [store.set_guidelines(text) for text in ("Be fair.", "Be fair.", "Be kind 🙂\x00", "Be fair.")]
    assert versions == [1, 1, 2, 3]
    assert make_store().guidelines() == (3, "Be fair.")


# Readers and writers


def test_a_reader_does_not_wait_for_a_writer(make_store):
    store, reader = make_store(), make_store()
    store.add_pairs([pair("p")])
    with store._database.writing() as connection:
        connection.execute(text("UPDATE queue SET num_needed = 9"))
        seen = []
        thread = threading.Thread(target=lambda: seen.append(reader.snapshot()))
        thread.start()
        thread.join(timeout=10)
        assert seen == [Snapshot([pair("p")], [])]


def test_a_writer_does_not_wait_for_a_reader_who_sees_one_moment(make_store):
    store, writer = make_store(), make_store()
    store.add_pairs([pair("p"), pair("q")])
    with store._database.reading() as connection:
        before = connection.execute(text("SELECT count(*) FROM votes")).scalar()
        done = []
        thread = threading.Thread(target=lambda: done.append(work(writer, "ann")))
        thread.start()
        thread.join(timeout=10)
        assert done == ["p"]
        assert connection.execute(text("SELECT count(*) FROM votes")).scalar() == before == 0
    assert len(store.votes()) == 1


# What cannot be opened


def test_a_file_that_is_no_database_is_refused(tmp_path):
    path = tmp_path / "labels.db"
    path.write_text("prompt,chosen,rejected\n" * 100)
    with pytest.raises(StoreError, match=r"labels\.db: file is not a database; expected an SQLite file that rlhfkit"):
        Store.open(path)
    assert path.read_text() == "prompt,chosen,rejected\n" * 100


def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "browser.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"browser\.db holds tables that are not rlhfkit's \(bookmarks\)"):
        Store.open(path)
    assert path.read_bytes() == before


def test_tables_of_something_else_with_our_names_are_refused(postgresql):
    database = database_module.Database(postgresql)
    with database.writing() as connection:
        connection.execute(text("CREATE TABLE votes (party TEXT)"))
    database.close()
    with pytest.raises(StoreError, match=r"holds tables that are not rlhfkit's \(votes\)"):
        Store.open(postgresql)


def test_a_newer_version_of_the_tables_is_refused(make_store, database):
    with make_store()._database.writing() as connection:
        connection.execute(text("UPDATE rlhfkit_store SET value = '2' WHERE name = 'schema_version'"))
    with pytest.raises(StoreError, match="has version 2 of the tables; expected 1"):
        Store.open(database)


@pytest.mark.parametrize("path", ["no/such/directory/labels.db", "."])
def test_a_path_that_cannot_be_opened_is_refused(tmp_path, path):
    with pytest.raises(StoreError, match="expected a file in a directory that exists and can be written"):
        Store.open(tmp_path / path)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "database '' is no file"),
        (":memory:", "database ':memory:' is no file"),
        ("sqlite://", "is no file on disk"),
        ("sqlite:///:memory:", "is no file on disk"),
        ("mysql://root:secret@host/labels", "a database of kind 'mysql'"),
        ("postgresql+asyncpg://host/labels", "a database of kind 'postgresql.asyncpg'"),
        ("postgresql://host:port/labels", "a database URL that cannot be read"),
    ],
)
def test_a_url_that_makes_no_sense_is_refused(url, message):
    with pytest.raises(StoreError, match=message + ".*expected the path of a file, sqlite:///FILE or postgresql://"):
        Store.open(url)


def test_a_server_that_is_away_is_named_without_its_password(tmp_path):
    with pytest.raises(StoreError, match="check that the server runs") as caught:
        Store.open(f"postgresql://ann:secret@/labels?host={tmp_path}")
    assert "secret" not in str(caught.value)
    assert "ann:***@" in str(caught.value)


def test_a_missing_driver_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'rlhfkit\[postgres\]'"):
        Store.open("postgresql://host/labels")


def test_a_database_that_another_program_keeps_is_an_error_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(database_module, "_WAIT_SECONDS", 0.2)
    with Store.open(tmp_path / "labels.db") as store:
        store.add_pairs([pair("p")])
        connection = sqlite3.connect(tmp_path / "labels.db", isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="database is locked; another program has kept it"):
            store.lease("ann")
        assert len(store.pairs()) == 1
        connection.close()
        assert store.lease("ann").pair.id == "p"


def test_a_closed_store_says_so(make_store):
    with make_store() as store:
        pass
    with pytest.raises(StoreError, match="was closed; open the store again"):
        store.lease("ann")


def test_urls_of_sqlite_and_of_old_spelling_are_understood(tmp_path, postgresql_server, postgresql):
    with Store.open(f"sqlite:///{tmp_path}/labels.db") as store:
        store.add_pairs([pair("p")])
    with Store.open(Path(tmp_path) / "labels.db") as store:
        assert len(store.pairs()) == 1
    Store.open(postgresql.replace("postgresql:", "postgres:")).close()
    Store.open(postgresql.replace("postgresql:", "postgresql+psycopg:")).close()


def test_what_is_in_a_file_can_be_read_with_other_tools(tmp_path):
    with Store.open(tmp_path / "labels.db") as store:
        store.add_pairs([Pair("p", (Message("user", "你好"),), "a", "b")])
        say(store, "p", "ann", B)
    with sqlite3.connect(tmp_path / "labels.db") as connection:
        prompt, strength = connection.execute("SELECT prompt, strength FROM votes JOIN pairs USING (number)").fetchone()
    assert (json.loads(prompt), strength) == ([{"role": "user", "content": "你好"}], -2)
    assert "你好" in prompt
