"""The store of votes: records."""

import math
from dataclasses import replace

import pytest
from sqlalchemy import text

from rlhfkit.errors import DataError, StoreError
from rlhfkit.feedback.states import Snapshot
from rlhfkit.feedback.votes import Choice, Pair, Vote
from rlhfkit.records import Message
from tests.feedback.store.desk import BAD, SKIP, pair, say, vote_on


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
