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
    func,
    insert,
    not_,
    select,
    update,
)

from rlhfkit.feedback.tables import annotators, assignments, leases, pairs, queue, rounds
from rlhfkit.feedback.votes import Side, Vote

__all__ = [
    "choose",
    "count_anew",
    "count_into_round",
    "counts",
    "draw_side",
    "drop",
    "hold",
    "is_live",
    "is_theirs",
    "note",
    "open_queue_row",
    "person_of",
    "record",
    "state_of",
    "take_back",
]

_LARGEST_EXCESS = 3

_me: BindParameter[str] = bindparam("me")
_number: BindParameter[int] = bindparam("number_")
is_live = leases.c.until > bindparam("now")

_num_leased_by_others = (
    select(func.count())
    .select_from(leases)
    .where(leases.c.number == queue.c.number, leases.c.annotator != _me, is_live)
    .scalar_subquery()
)
_has_room = queue.c.num_votes + _num_leased_by_others < queue.c.num_needed
_of_me = (assignments.c.annotator == _me, assignments.c.number == queue.c.number)
# Counted, not NOT EXISTS, which PostgreSQL turns into a join with the decisions of everybody.
_is_undecided = (
    select(func.count()).select_from(assignments).where(*_of_me, assignments.c.vote_id.is_not(None)).scalar_subquery()
) == 0
_search = (
    select(queue.c.number)
    .where(
        queue.c.is_open == bindparam("is_open_", True),
        queue.c.is_calibration == bindparam("is_calibration_"),
        queue.c.number >= bindparam("first"),
        _is_undecided,
    )
    .order_by(queue.c.number)
    .limit(1)
)
_begun, _fresh = (
    _search.where(queue.c.is_begun == bindparam(f"is_begun_{is_begun}", is_begun), _has_room).scalar_subquery()
    for is_begun in (True, False)
)
_CHOICE = select(
    func.coalesce(_search.scalar_subquery(), select(func.max(queue.c.number) + 1).scalar_subquery()).label("first"),
    func.coalesce(_begun, _fresh).label("number"),
)
_PERSON = (
    select(annotators, leases.c.number.label("held_number"), leases.c.until.label("held_until"))
    .outerjoin(leases, leases.c.annotator == annotators.c.name)
    .where(annotators.c.name == _me)
)
_STATE = (
    select(queue, _num_leased_by_others.label("num_leased_by_others"), assignments.c.shown_left, assignments.c.vote_id)
    .join(pairs, pairs.c.number == queue.c.number)
    .outerjoin(assignments, and_(*_of_me))
)
_STATE_OF_ID = _STATE.where(pairs.c.id == bindparam("pair_id_"))
_STATE_OF_NUMBER = _STATE.where(queue.c.number == _number)
_num_left = [
    select(func.count())
    .select_from(assignments)
    .where(assignments.c.number == _number, assignments.c.shown_left == side)
    .scalar_subquery()
    .label(f"num_{side}_left")
    for side in ("a", "b")
]
_SIDES = select(*_num_left)
_LAST_ROUND = select(rounds.c.num_pairs, rounds.c.num_calibration).order_by(rounds.c.round.desc()).limit(1)
_SET_PERSON = update(annotators).where(annotators.c.name == _me)
_SET_LEASE = update(leases).where(leases.c.annotator == _me).values(number=_number, until=bindparam("until_"))
_DROP_LEASE = delete(leases).where(leases.c.annotator == _me, leases.c.number == _number)
_SET_ASSIGNMENT = (
    update(assignments)
    .where(assignments.c.annotator == _me, assignments.c.number == _number)
    .values(vote_id=bindparam("vote_id_"))
)
_SET_QUEUE = update(queue).where(queue.c.number == _number)
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


def person_of(connection: Connection, name: str) -> RowMapping | None:
    """Row of an annotator, with the number of the pair that they hold or held last, and until when."""
    return connection.execute(_PERSON, {"me": name}).mappings().one_or_none()


def state_of(connection: Connection, name: str, pair: str | int, *, now: float) -> RowMapping | None:
    """Row of `queue` for a pair, by its id or its number, with what is known of this person and of who else has it."""
    key = {"me": name, "now": now}
    if isinstance(pair, str):
        return connection.execute(_STATE_OF_ID, {**key, "pair_id_": pair}).mappings().one_or_none()
    return connection.execute(_STATE_OF_NUMBER, {**key, "number_": pair}).mappings().one_or_none()


def is_theirs(person: RowMapping, state: RowMapping, *, now: float) -> bool:
    """Whether this person holds the pair, or held it last and may have it back because there is still room."""
    if person["held_number"] != state["number"]:
        return False
    return bool(person["held_until"] > now or (state["vote_id"] is None and _room(state) > 0))


def counts(person: RowMapping, state: RowMapping, *, now: float) -> bool:
    """Whether a vote of this person counts: they hold the pair, or there is room beside those who do."""
    if person["held_number"] == state["number"] and person["held_until"] > now:
        return bool(state["num_votes"] < state["num_needed"])
    return _room(state) > 0


def _room(state: RowMapping) -> int:
    return int(state["num_needed"] - state["num_votes"] - state["num_leased_by_others"])


def choose(connection: Connection, person: RowMapping, changes: dict[str, float], *, now: float) -> int | None:
    """Number of the next pair for this person; None where there is room for them nowhere.

    Each call adds the newest round's share of calibration pairs to what is due; where that reaches 1, the next is one.
    What has to be noted about the person goes into `changes`.
    """
    last_round = connection.execute(_LAST_ROUND).one_or_none()
    if last_round is None:
        return None
    due = min(1.0, person["calibration_due"] + last_round.num_calibration / last_round.num_pairs)
    is_due = due > 1 - 1e-9
    for is_calibration in (is_due, not is_due):
        column = "first_calibration_number" if is_calibration else "first_number"
        key = {"me": person["name"], "is_calibration_": is_calibration, "first": person[column], "now": now}
        choice = connection.execute(_CHOICE, key).one()
        if choice.first > person[column]:
            changes[column] = choice.first
        if choice.number is not None:
            changes["calibration_due"] = max(0.0, due - 1) if is_calibration else due
            return int(choice.number)
    return None


def hold(connection: Connection, person: RowMapping, number: int, *, until: float) -> None:
    """Lease the pair to this person, in place of what they held."""
    if person["held_number"] is None:
        connection.execute(insert(leases), {"annotator": person["name"], "number": number, "until": until})
    else:
        connection.execute(_SET_LEASE, {"me": person["name"], "number_": number, "until_": until})


def drop(connection: Connection, annotator: str, number: int) -> None:
    """Let others have the pair, where this person holds it."""
    connection.execute(_DROP_LEASE, {"me": annotator, "number_": number})


def draw_side(connection: Connection, person: RowMapping, number: int, changes: dict[str, float]) -> Side:
    """Which response stands left when this person sees this pair for the first time; noted for ever after.

    The people who see a pair see its two orders equally often, up to one; where that leaves it open, a coin decides,
    unless one response stood left three times more often than the other for this person.
    """
    sides = connection.execute(_SIDES, {"number_": number}).one()
    excess = sides.num_a_left - sides.num_b_left
    if excess == 0 and abs(person["a_left_excess"]) >= _LARGEST_EXCESS:
        excess = person["a_left_excess"]
    if excess == 0:
        excess = secrets.choice((-1, 1))
    side: Side = "b" if excess > 0 else "a"
    row = {"annotator": person["name"], "number": number, "shown_left": side}
    connection.execute(insert(assignments), row)
    changes["a_left_excess"] = person["a_left_excess"] + (1 if side == "a" else -1)
    return side


def note(connection: Connection, person: RowMapping, changes: dict[str, float]) -> None:
    """Write what changed about a person."""
    if changes:
        connection.execute(_SET_PERSON.values(changes), {"me": person["name"]})


def record(connection: Connection, person: RowMapping, state: RowMapping, vote: Vote, *, counts: bool) -> None:
    """Bring assignments, leases and all counters in line with a new vote."""
    number = state["number"]
    if state["shown_left"] is None:
        row = {"annotator": vote.annotator, "number": number, "shown_left": vote.shown_left, "vote_id": vote.id}
        connection.execute(insert(assignments), row)
    else:
        connection.execute(_SET_ASSIGNMENT, {"me": vote.annotator, "number_": number, "vote_id_": vote.id})
    if person["held_number"] == number:
        drop(connection, vote.annotator, number)
    is_open = state["is_open"]
    if counts:
        counted = _counts_with(state, vote, by=1)
        is_open = counted["is_open"]
        connection.execute(_SET_QUEUE.values(counted), {"number_": number})
        _open_or_close(connection, state, vote.annotator, is_open=is_open)
    _count_for_person(connection, vote, by=1, num_decided_open=int(is_open), seconds=vote.active_seconds)


def take_back(connection: Connection, number: int, vote: Vote) -> None:
    """Bring assignments and all counters in line with the undo of a vote."""
    key = {"me": vote.annotator, "number_": number}
    state = state_of(connection, vote.annotator, number, now=0.0)
    assert state is not None
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
