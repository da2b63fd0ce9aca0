"""The store of votes: votes."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from sqlalchemy import text

from rlhfkit.errors import DataError
from rlhfkit.feedback.states import AnnotatorProgress, QueueState, RoundState, Undo
from rlhfkit.feedback.votes import Vote
from tests.feedback.store.desk import SKIP, TIE, A, B, pair, say, vote_on, work


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
