"""Tables of the store of votes, and how a Pair and a Vote become rows and come back.

`votes` and `undos` are events: rows are added and never changed, which triggers of the database enforce. Everything in
`queue`, `rounds`, `assignments`, `leases` and the counters of `annotators` follows from the events and only makes the
next question quick to find.
"""

import json
from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    DDL,
    Boolean,
    Column,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    RowMapping,
    String,
    Table,
    Text,
    TypeDecorator,
    event,
)

from rlhfkit.feedback.votes import Choice, Pair, Vote
from rlhfkit.records import Conversation, Message

__all__ = [
    "SCHEMA_VERSION",
    "annotators",
    "assignments",
    "guidelines",
    "leases",
    "metadata",
    "pair_of_row",
    "pairs",
    "properties",
    "queue",
    "rounds",
    "row_of_pair",
    "row_of_vote",
    "tokens",
    "undos",
    "vote_of_row",
    "votes",
]

SCHEMA_VERSION = 1


class Json(TypeDecorator[Any]):
    """Any JSON value as text; escapes what neither database can store, such as NUL and half of a surrogate pair."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:
        """The JSON text of `value`, the same for equal values."""
        text = json.dumps(value, ensure_ascii=False, sort_keys=True)
        try:
            text.encode()
        except UnicodeEncodeError:
            return json.dumps(value, sort_keys=True)
        return text

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """The value that the text stands for."""
        # Nearly all columns hold one of these; to parse each took a third of the time of reading 100,000 pairs.
        if value in _EMPTY:
            return _EMPTY[value]()
        if value.startswith('"') and value.endswith('"') and value.count('"') == 2 and "\\" not in value:
            return value[1:-1]
        return json.loads(value)


_EMPTY: dict[str, Callable[[], Any]] = {"[]": list, "{}": dict}


metadata = MetaData()

properties = Table(
    "rlhfkit_store",
    metadata,
    Column("name", String, primary_key=True),
    Column("value", String, nullable=False),
)

pairs = Table(
    "pairs",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("id", String, nullable=False, unique=True),
    Column("prompt", Json, nullable=False),
    Column("response_a", Json, nullable=False),
    Column("response_b", Json, nullable=False),
    Column("model_a", Json, nullable=False),
    Column("model_b", Json, nullable=False),
    Column("settings", Json, nullable=False),
    Column("round", Integer, nullable=False, index=True),
    Column("reason", String, nullable=False),
    Column("probability", Double),
    Column("part", String, nullable=False),
    Column("is_calibration", Boolean, nullable=False),
    Column("origin", Json, nullable=False),
)

queue = Table(
    "queue",
    metadata,
    Column("number", Integer, ForeignKey("pairs.number"), primary_key=True, autoincrement=False),
    Column("round", Integer, nullable=False),
    Column("is_calibration", Boolean, nullable=False),
    Column("num_first_needed", Integer, nullable=False),  # before a disagreement asks for one more
    Column("num_needed", Integer, nullable=False),
    Column("num_a", Integer, nullable=False),
    Column("num_b", Integer, nullable=False),
    Column("num_neither", Integer, nullable=False),
    Column("num_votes", Integer, nullable=False),
    Column("is_begun", Boolean, nullable=False),
    Column("is_open", Boolean, nullable=False),
)
Index("queue_next", queue.c.is_open, queue.c.is_calibration, queue.c.is_begun, queue.c.number)
Index("queue_first", queue.c.is_open, queue.c.is_calibration, queue.c.number)

rounds = Table(
    "rounds",
    metadata,
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("num_pairs", Integer, nullable=False),
    Column("num_calibration", Integer, nullable=False),
    Column("num_open", Integer, nullable=False),
)

annotators = Table(
    "annotators",
    metadata,
    Column("name", String, primary_key=True),
    Column("created_at", Double, nullable=False),
    Column("num_voted", Integer, nullable=False, default=0),
    Column("num_skipped", Integer, nullable=False, default=0),
    Column("num_decided_open", Integer, nullable=False, default=0),  # pairs that still need votes, but not theirs
    Column("active_seconds", Double, nullable=False, default=0.0),
    Column("calibration_due", Double, nullable=False, default=0.0),  # at 1, the next task is of the calibration pool
    Column("a_left_excess", Integer, nullable=False, default=0),  # how much more often A stood left than B
    # Every pair before these numbers is finished or decided by this person.
    Column("first_number", Integer, nullable=False, default=0),
    Column("first_calibration_number", Integer, nullable=False, default=0),
)

tokens = Table(
    "tokens",
    metadata,
    Column("hash", String, primary_key=True),
    Column("annotator", String, ForeignKey("annotators.name"), nullable=False),
    Column("created_at", Double, nullable=False),
)

votes = Table(
    "votes",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("id", String, nullable=False, unique=True),
    Column("number", Integer, ForeignKey("pairs.number"), nullable=False),
    Column("annotator", String, ForeignKey("annotators.name"), nullable=False),
    Column("kind", String, nullable=False),
    Column("strength", Integer, nullable=False),
    Column("skip_reason", String),
    Column("shown_left", String, nullable=False),
    Column("active_seconds", Double, nullable=False),
    Column("wall_seconds", Double, nullable=False),
    Column("flags_a", Json, nullable=False),
    Column("flags_b", Json, nullable=False),
    Column("comment", Json, nullable=False),
    Column("guidelines_version", Integer, nullable=False),
    Column("language", String, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("is_surplus", Boolean, nullable=False),
)
Index("votes_of_annotator", votes.c.annotator, votes.c.sequence)

undos = Table(
    "undos",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("id", String, nullable=False, unique=True),
    Column("vote_id", String, ForeignKey("votes.id"), unique=True),  # empty where there was nothing to take back
    Column("annotator", String, ForeignKey("annotators.name"), nullable=False),
    Column("created_at", Double, nullable=False),
)

assignments = Table(
    "assignments",
    metadata,
    Column("annotator", String, ForeignKey("annotators.name"), primary_key=True),
    Column("number", Integer, ForeignKey("pairs.number"), primary_key=True, autoincrement=False),
    Column("shown_left", String, nullable=False),
    Column("vote_id", String, ForeignKey("votes.id")),  # the vote that stands
    Index("assignments_of_pair", "number"),
    sqlite_with_rowid=False,
)

leases = Table(
    "leases",
    metadata,
    Column("annotator", String, ForeignKey("annotators.name"), primary_key=True),
    Column("number", Integer, ForeignKey("pairs.number"), nullable=False, index=True),
    Column("until", Double, nullable=False),
)

guidelines = Table(
    "guidelines",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("text", Json, nullable=False),
    Column("created_at", Double, nullable=False),
)

for _table in (votes, undos):
    for _verb in ("UPDATE", "DELETE"):
        _name = f"{_table.name}_no_{_verb.lower()}"
        _message = f"{_table.name} are events and are never changed"
        event.listen(
            _table,
            "after_create",
            DDL(  # type: ignore[no-untyped-call]
                f"CREATE TRIGGER {_name} BEFORE {_verb} ON {_table.name} BEGIN SELECT RAISE(ABORT, '{_message}'); END"
            ).execute_if(dialect="sqlite"),
        )
        event.listen(
            _table,
            "after_create",
            DDL(  # type: ignore[no-untyped-call]
                f"CREATE FUNCTION {_name}() RETURNS trigger LANGUAGE plpgsql "
                f"AS $$ BEGIN RAISE EXCEPTION '{_message}'; END $$; "
                f"CREATE TRIGGER {_name} BEFORE {_verb} ON {_table.name} "
                f"FOR EACH STATEMENT EXECUTE FUNCTION {_name}()"
            ).execute_if(dialect="postgresql"),
        )


def row_of_pair(pair: Pair) -> dict[str, Any]:
    """Columns of `pairs` for a pair, all but its number."""
    return {
        "id": pair.id,
        "prompt": _as_json(pair.prompt),
        "response_a": _as_json(pair.response_a),
        "response_b": _as_json(pair.response_b),
        "model_a": pair.model_a,
        "model_b": pair.model_b,
        "settings": dict(pair.settings),
        "round": pair.round,
        "reason": pair.reason,
        "probability": pair.probability,
        "part": pair.part,
        "is_calibration": pair.is_calibration,
        "origin": pair.origin,
    }


def pair_of_row(row: RowMapping) -> Pair:
    """The pair of a row of `pairs`."""
    return Pair(
        id=row["id"],
        prompt=_from_json(row["prompt"]),
        response_a=_from_json(row["response_a"]),
        response_b=_from_json(row["response_b"]),
        model_a=row["model_a"],
        model_b=row["model_b"],
        settings=row["settings"],
        round=row["round"],
        reason=row["reason"],
        probability=row["probability"],
        part=row["part"],
        is_calibration=row["is_calibration"],
        origin=row["origin"],
    )


def row_of_vote(vote: Vote) -> dict[str, Any]:
    """Columns of `votes` for a vote, all but its sequence and the number of its pair."""
    return {
        "id": vote.id,
        "annotator": vote.annotator,
        "kind": vote.choice.kind,
        "strength": vote.choice.strength,
        "skip_reason": vote.choice.skip_reason,
        "shown_left": vote.shown_left,
        "active_seconds": vote.active_seconds,
        "wall_seconds": vote.wall_seconds,
        "flags_a": vote.flags_a,
        "flags_b": vote.flags_b,
        "comment": vote.comment,
        "guidelines_version": vote.guidelines_version,
        "language": vote.language,
        "created_at": vote.created_at,
        "is_surplus": vote.is_surplus,
    }


def vote_of_row(row: RowMapping) -> Vote:
    """The vote of a row of `votes` joined with the id of its pair, as `pair_id`."""
    return Vote(
        id=row["id"],
        pair_id=row["pair_id"],
        annotator=row["annotator"],
        choice=Choice(row["kind"], row["strength"], row["skip_reason"]),
        shown_left=row["shown_left"],
        active_seconds=row["active_seconds"],
        wall_seconds=row["wall_seconds"],
        flags_a=tuple(row["flags_a"]),
        flags_b=tuple(row["flags_b"]),
        comment=row["comment"],
        guidelines_version=row["guidelines_version"],
        language=row["language"],
        created_at=row["created_at"],
        is_surplus=row["is_surplus"],
    )


def _as_json(text: str | Conversation) -> Any:
    return text if isinstance(text, str) else [{"role": turn.role, "content": turn.content} for turn in text]


def _from_json(value: Any) -> str | Conversation:
    return value if isinstance(value, str) else tuple(Message(turn["role"], turn["content"]) for turn in value)
