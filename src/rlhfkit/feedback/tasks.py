"""Who is asked what next, and the counters that make it quick; all inside the transaction of a caller who writes.

A pair is open while it has fewer counted votes than it needs. It has room for a person while counted votes and live
leases of others together are fewer. `first_number` of a person is a pair before which everything is finished or
decided by that person, so that a search starts there.
"""

import secrets
from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    BindParameter,
    Connection,
    RowMapping,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    literal_column,
    not_,
    select,
    update,
)

from rlhfkit.feedback.tables import annotators, assignments, leases, queue, rounds
from rlhfkit.feedback.votes import Side, Vote

__all__ = [
    "choose",
    "count_anew",
    "count_into_round",
    "drop",
    "has_room",
    "hold",
    "is_live",
    "may_keep",
    "open_queue_row",
    "record",
    "shown_left_of",
    "take_back",
]

_LARGEST_EXCESS = 3

_me: BindParameter[str] = bindparam("me")
_number: BindParameter[int] = bindparam("number_")
is_live = leases.c.until > bindparam("now")

_leased_by_others = (
    select(func.count())
    .select_from(leases)
    .where(leases.c.number == queue.c.number, leases.c.annotator != _me, is_live)
    .scalar_subquery()
)
_has_room = queue.c.num_votes + _leased_by_others < queue.c.num_needed
_is_undecided = ~exists(
    select(literal_column("1"))
    .select_from(assignments)
    .where(assignments.c.annotator == _me, assignments.c.number == queue.c.number, assignments.c.vote_id.is_not(None))
)
_of_kind = (
    queue.c.is_open == bindparam("is_open_", True),
    queue.c.is_calibration == bindparam("is_calibration_"),
    queue.c.number >= bindparam("first"),
    _is_undecided,
)
_FIRST_UNDECIDED = select(queue.c.number).where(*_of_kind).order_by(queue.c.number).limit(1)
_NEXT = (
    select(queue.c.number)
    .where(*_of_kind, queue.c.is_begun == bindparam("is_begun_"), _has_room)
    .order_by(queue.c.number)
    .limit(1)
)
_ROOM = select(_has_room).where(queue.c.number == _number)
_ROOM_UNDECIDED = select(queue.c.number).where(queue.c.number == _number, _has_room, _is_undecided)
_LAST_NUMBER = select(func.max(queue.c.number))
_LAST_ROUND = select(rounds.c.num_pairs, rounds.c.num_calibration).order_by(rounds.c.round.desc()).limit(1)
_SET_PERSON = update(annotators).where(annotators.c.name == _me)
_LEASE = select(leases.c.number, leases.c.until).where(leases.c.annotator == _me)
_SET_LEASE = (
    update(leases).where(leases.c.annotator == _me).values(number=bindparam("number_"), until=bindparam("until_"))
)
_DROP_LEASE = delete(leases).where(leases.c.annotator == _me, leases.c.number == _number)
_SIDES = (
    select(assignments.c.shown_left, func.count())
    .where(assignments.c.number == _number)
    .group_by(assignments.c.shown_left)
)
_SET_ASSIGNMENT = (
    update(assignments)
    .where(assignments.c.annotator == _me, assignments.c.number == _number)
    .values(vote_id=bindparam("vote_id_"))
)
_QUEUE = select(queue).where(queue.c.number == _number)
_SET_QUEUE = update(queue).where(queue.c.number == _number)
_SHOWN_LEFT = select(assignments.c.shown_left).where(assignments.c.annotator == _me, assignments.c.number == _number)
_others_who_decided = select(assignments.c.annotator).where(
    assignments.c.number == _number, assignments.c.vote_id.is_not(None), assignments.c.annotator != _me
)
_SHIFT_OTHERS = (
    update(annotators)
    .where(annotators.c.name.in_(_others_who_decided))
    .values(num_decided_open=annotators.c.num_decided_open + bindparam("by"))
)
_SHIFT_ROUND = (
    update(rounds).where(rounds.c.round == bindparam("round_")).values(num_open=rounds.c.num_open + bindparam("by"))
)


def may_keep(connection: Connection, annotator: str, number: int | None, *, now: float) -> int | None:
    """Number of the pair that this person holds, or held and may have back because there is still room.

    With `number`, only where it is that pair.
    """
    held = connection.execute(_LEASE, {"me": annotator}).one_or_none()
    if held is None or (number is not None and held.number != number):
        return None
    if held.until > now:
        return int(held.number)
    key = {"me": annotator, "number_": held.number, "now": now}
    return connection.execute(_ROOM_UNDECIDED, key).scalar_one_or_none()


def choose(connection: Connection, person: RowMapping, *, now: float) -> int | None:
    """Number of the next pair for this person; None where there is room for them nowhere.

    Each call adds the newest round's share of calibration pairs to what is due; where that reaches 1, the next is one.
    """
    last_round = connection.execute(_LAST_ROUND).one_or_none()
    if last_round is None:
        return None
    due = min(1.0, person["calibration_due"] + last_round.num_calibration / last_round.num_pairs)
    is_due = due > 1 - 1e-9
    for is_calibration in (is_due, not is_due):
        number = _choose_of_kind(connection, person, is_calibration=is_calibration, now=now)
        if number is not None:
            left_due = max(0.0, due - 1) if is_calibration else due
            connection.execute(_SET_PERSON.values(calibration_due=left_due), {"me": person["name"]})
            return number
    return None


def _choose_of_kind(connection: Connection, person: RowMapping, *, is_calibration: bool, now: float) -> int | None:
    """The first pair with room that others have begun, otherwise the first with room."""
    column = annotators.c.first_calibration_number if is_calibration else annotators.c.first_number
    key = {"me": person["name"], "is_calibration_": is_calibration, "first": person[column.name]}
    first = connection.execute(_FIRST_UNDECIDED, key).scalar_one_or_none()
    reached = (connection.execute(_LAST_NUMBER).scalar() or 0) + 1 if first is None else first
    if reached > person[column.name]:
        connection.execute(_SET_PERSON.values({column: reached}), {"me": person["name"]})
    if first is None:
        return None
    for is_begun in (True, False):
        key |= {"first": first, "is_begun_": is_begun, "now": now}
        number = connection.execute(_NEXT, key).scalar_one_or_none()
        if number is not None:
            return int(number)
    return None


def hold(connection: Connection, annotator: str, number: int, *, until: float) -> None:
    """Lease the pair to this person, in place of what they held."""
    key = {"me": annotator, "number_": number, "until_": until}
    if connection.execute(_SET_LEASE, key).rowcount == 0:
        connection.execute(insert(leases), {"annotator": annotator, "number": number, "until": until})


def drop(connection: Connection, annotator: str, number: int) -> None:
    """Let others have the pair, where this person holds it."""
    connection.execute(_DROP_LEASE, {"me": annotator, "number_": number})


def shown_left_of(connection: Connection, person: RowMapping, number: int) -> Side:
    """Which response stands left when this person sees this pair: drawn the first time, the same ever after.

    The people who see a pair see its two orders equally often, up to one; where that leaves it open, a coin decides,
    unless one response stood left three times more often than the other for this person.
    """
    known: Side | None = connection.execute(_SHOWN_LEFT, {"me": person["name"], "number_": number}).scalar_one_or_none()
    if known is not None:
        return known
    sides: dict[str, int] = dict(connection.execute(_SIDES, {"number_": number}).tuples().all())
    excess = sides.get("a", 0) - sides.get("b", 0)
    if excess == 0 and abs(person["a_left_excess"]) >= _LARGEST_EXCESS:
        excess = person["a_left_excess"]
    if excess == 0:
        excess = secrets.choice((-1, 1))
    side: Side = "b" if excess > 0 else "a"
    _assign(connection, person, number, side)
    return side


def _assign(connection: Connection, person: RowMapping, number: int, side: Side) -> None:
    """Note which response this person sees left."""
    connection.execute(insert(assignments), {"annotator": person["name"], "number": number, "shown_left": side})
    excess = person["a_left_excess"] + (1 if side == "a" else -1)
    connection.execute(_SET_PERSON.values(a_left_excess=excess), {"me": person["name"]})


def has_room(connection: Connection, annotator: str, state: RowMapping, *, now: float) -> bool:
    """Whether a vote of this person counts: they hold the pair, or there is room beside those who do."""
    if state["num_votes"] >= state["num_needed"]:
        return False
    held = connection.execute(_LEASE, {"me": annotator}).one_or_none()
    if held is not None and held.number == state["number"] and held.until > now:
        return True
    key = {"me": annotator, "number_": state["number"], "now": now}
    return bool(connection.execute(_ROOM, key).scalar_one())


def record(connection: Connection, person: RowMapping, state: RowMapping, vote: Vote, *, counts: bool) -> None:
    """Bring assignments, leases and all counters in line with a new vote."""
    key = {"me": vote.annotator, "number_": state["number"]}
    if connection.execute(_SHOWN_LEFT, key).scalar_one_or_none() is None:
        _assign(connection, person, state["number"], vote.shown_left)
    connection.execute(_SET_ASSIGNMENT, {**key, "vote_id_": vote.id})
    connection.execute(_DROP_LEASE, key)
    is_open = state["is_open"]
    if counts:
        counted = _counts_with(state, vote, by=1)
        is_open = counted["is_open"]
        connection.execute(_SET_QUEUE.values(counted), {"number_": state["number"]})
        _open_or_close(connection, state, vote.annotator, is_open=is_open)
    _count_for_person(connection, vote, by=1, num_decided_open=int(is_open), seconds=vote.active_seconds)


def take_back(connection: Connection, number: int, vote: Vote) -> None:
    """Bring assignments and all counters in line with the undo of a vote."""
    key = {"me": vote.annotator, "number_": number}
    state = connection.execute(_QUEUE, {"number_": number}).mappings().one()
    connection.execute(_SET_ASSIGNMENT, {**key, "vote_id_": None})
    if vote.choice.kind != "skip" and not vote.is_surplus:
        counted = _counts_with(state, vote, by=-1)
        connection.execute(_SET_QUEUE.values(counted), {"number_": number})
        _open_or_close(connection, state, vote.annotator, is_open=counted["is_open"])
    _count_for_person(connection, vote, by=-1, num_decided_open=-int(state["is_open"]), seconds=0.0)
    column = annotators.c.first_calibration_number if state["is_calibration"] else annotators.c.first_number
    connection.execute(update(annotators).where(column > number).values({column: number}))


def _counts_with(state: RowMapping, vote: Vote, *, by: int) -> dict[str, Any]:
    """Columns of `queue` after a counted vote came (`by=1`) or was taken back (`by=-1`).

    Where the first votes disagree, one more is needed. Who takes a vote back finds room for another.
    """
    column = {"a": "num_a", "b": "num_b", None: "num_neither"}[vote.choice.preferred]
    counts = {name: state[name] + by * (name == column) for name in ("num_a", "num_b", "num_neither")}
    num_votes = state["num_votes"] + by
    needed = state["num_first_needed"]
    if num_votes >= needed and max(counts.values()) < num_votes:
        needed += 1
    needed = max(needed, state["num_needed"] if by > 0 else num_votes + 1)
    return {
        **counts,
        "num_votes": num_votes,
        "num_needed": needed,
        "is_begun": num_votes > 0,
        "is_open": num_votes < needed,
    }


def _open_or_close(connection: Connection, state: RowMapping, annotator: str, *, is_open: bool) -> None:
    """Count a pair that became open or finished, for its round and for the others who decided on it."""
    by = int(is_open) - int(state["is_open"])
    if by:
        connection.execute(_SHIFT_ROUND, {"round_": state["round"], "by": by})
        connection.execute(_SHIFT_OTHERS, {"number_": state["number"], "me": annotator, "by": by})


def _count_for_person(connection: Connection, vote: Vote, *, by: int, num_decided_open: int, seconds: float) -> None:
    column = annotators.c.num_skipped if vote.choice.kind == "skip" else annotators.c.num_voted
    values = {
        column: column + by,
        annotators.c.num_decided_open: annotators.c.num_decided_open + num_decided_open,
        annotators.c.active_seconds: annotators.c.active_seconds + seconds,
    }
    connection.execute(_SET_PERSON.values(values), {"me": vote.annotator})


def open_queue_row(row: Mapping[str, Any], *, num_needed: int) -> dict[str, Any]:
    """Columns of `queue` for a new pair."""
    return {
        "number": row["number"],
        "round": row["round"],
        "is_calibration": row["is_calibration"],
        "num_first_needed": num_needed,
        "num_needed": num_needed,
        "num_a": 0,
        "num_b": 0,
        "num_neither": 0,
        "num_votes": 0,
        "is_begun": False,
        "is_open": True,
    }


def count_into_round(connection: Connection, round: int, *, num_pairs: int, num_calibration: int) -> None:
    """Count new pairs, all of them open, into their round."""
    added = {"num_pairs": num_pairs, "num_calibration": num_calibration, "num_open": num_pairs}
    values = {rounds.c[name]: rounds.c[name] + number for name, number in added.items()}
    if connection.execute(update(rounds).where(rounds.c.round == round).values(values)).rowcount == 0:
        connection.execute(insert(rounds), {"round": round, **added})


def count_anew(connection: Connection, *, overlap: int, calibration_overlap: int) -> None:
    """Let every pair need as many votes as these settings say, and bring all counters in line."""
    first_needed = case((queue.c.is_calibration, calibration_overlap), else_=overlap)
    connection.execute(update(queue).values(num_first_needed=first_needed))
    disagree = not_(queue.c.num_votes.in_([queue.c.num_a, queue.c.num_b, queue.c.num_neither]))
    one_more = and_(disagree, queue.c.num_votes >= queue.c.num_first_needed)
    connection.execute(update(queue).values(num_needed=queue.c.num_first_needed + case((one_more, 1), else_=0)))
    connection.execute(update(queue).values(is_open=queue.c.num_votes < queue.c.num_needed))
    num_open = (
        select(func.count())
        .select_from(queue)
        .where(queue.c.round == rounds.c.round, queue.c.is_open)
        .scalar_subquery()
    )
    connection.execute(update(rounds).values(num_open=num_open))
    num_decided_open = (
        select(func.count())
        .select_from(assignments.join(queue, queue.c.number == assignments.c.number))
        .where(assignments.c.annotator == annotators.c.name, assignments.c.vote_id.is_not(None), queue.c.is_open)
        .scalar_subquery()
    )
    connection.execute(
        update(annotators).values(num_decided_open=num_decided_open, first_number=0, first_calibration_number=0)
    )
