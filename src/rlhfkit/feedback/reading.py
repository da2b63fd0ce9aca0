"""Queries of the store, and the rows that they bring."""

import hashlib

from sqlalchemy import (
    Connection,
    RowMapping,
    and_,
    bindparam,
    exists,
    func,
    literal_column,
    select,
    union_all,
)

from rlhfkit.errors import DataError
from rlhfkit.feedback.tables import (
    assignments,
    guidelines,
    pair_of_row,
    pairs,
    undos,
    vote_of_row,
    votes,
)
from rlhfkit.feedback.votes import Pair, Vote

__all__ = [
    "NEWEST_STANDING",
    "PAIR",
    "VOTE",
    "VOTES",
    "hash_of_token",
    "next_sequence",
    "read_guidelines",
    "read_pairs",
    "read_votes",
    "undone_before",
]

PAIR = (
    select(pairs, assignments.c.shown_left)
    .outerjoin(assignments, and_(assignments.c.number == pairs.c.number, assignments.c.annotator == bindparam("me")))
    .where(pairs.c.number == bindparam("number_"))
)


VOTES = select(votes, pairs.c.id.label("pair_id")).join(pairs, pairs.c.number == votes.c.number)


VOTE = VOTES.where(votes.c.id == bindparam("id_"))


STANDING = VOTES.where(~exists(select(literal_column("1")).where(undos.c.vote_id == votes.c.id)))


NEWEST_STANDING = STANDING.where(votes.c.annotator == bindparam("me")).order_by(votes.c.sequence.desc()).limit(1)


# One more than the last event's; safe because there is one writer at a time.
_last_sequences = union_all(
    select(func.max(votes.c.sequence).label("last")), select(func.max(undos.c.sequence).label("last"))
).subquery()


next_sequence = select(func.coalesce(func.max(_last_sequences.c.last), 0) + 1).scalar_subquery()


def read_pairs(connection: Connection, round: int | None) -> list[Pair]:
    """The pairs of a round, or all, in the order in which they came."""
    query = select(pairs).order_by(pairs.c.number)
    if round is not None:
        query = query.where(pairs.c.round == round)
    return [pair_of_row(row) for row in connection.execute(query).mappings()]


def read_votes(connection: Connection) -> list[Vote]:
    """The votes that nobody took back, in the order in which they came."""
    return [vote_of_row(row) for row in connection.execute(STANDING.order_by(votes.c.sequence)).mappings()]


def read_guidelines(connection: Connection) -> tuple[int, str]:
    """Version and text of the newest guidelines; 0 and nothing where there are none."""
    newest = select(guidelines.c.version, guidelines.c.text).order_by(guidelines.c.version.desc()).limit(1)
    row = connection.execute(newest).one_or_none()
    return (0, "") if row is None else (row.version, row.text)


def undone_before(connection: Connection, known: RowMapping, annotator: str) -> Vote | None:
    """The vote that this undo took back before. Raises: DataError where the id is of another undo."""
    if known["annotator"] != annotator:
        raise DataError(f"undo {known['id']!r} is known as another one; expected a new id for every undo")
    if known["vote_id"] is None:
        return None
    return vote_of_row(connection.execute(VOTE, {"id_": known["vote_id"]}).mappings().one())


def hash_of_token(token: str) -> str:
    """What the store keeps of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
