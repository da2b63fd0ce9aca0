"""The store of people's votes in SQLite or PostgreSQL: who is asked what, and everything they answered.

Votes and undos are events that are added and never changed. Tasks are leased for minutes: a pair goes to no more people
at once than it needs votes, and comes back when somebody leaves it. `tables` has the tables, `tasks` what is next,
`database` the connections.
"""

import hmac
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import (
    Connection,
    RowMapping,
    func,
    insert,
    select,
)

from rlhfkit.errors import DataError
from rlhfkit.feedback import queue as tasks
from rlhfkit.feedback.checks import check_name, check_vote, checked_row, expect_same
from rlhfkit.feedback.database import Database
from rlhfkit.feedback.opening import check_owner, kept_settings, prepare
from rlhfkit.feedback.reading import (
    NEWEST_STANDING,
    PAIR,
    VOTE,
    VOTES,
    hash_of_token,
    next_sequence,
    read_guidelines,
    read_pairs,
    read_votes,
    undone_before,
)
from rlhfkit.feedback.states import (
    AnnotatorProgress,
    QueueState,
    Recorded,
    RoundState,
    Snapshot,
    StoreSettings,
    Task,
    Undo,
)
from rlhfkit.feedback.tables import (
    annotators,
    assignments,
    guidelines,
    leases,
    pair_of_row,
    pairs,
    queue,
    rounds,
    row_of_pair,
    row_of_vote,
    tokens,
    undos,
    vote_of_row,
    votes,
)
from rlhfkit.feedback.votes import Pair, Side, Vote

__all__ = [
    "Store",
]


_ROWS_AT_ONCE = 200


class Store:
    """Pairs, the people who compare them, and their votes; safe to use from several threads and processes.

    An annotator who is not known yet becomes known by the first lease or vote; `add_annotator` is for those who need a
    token. Every method raises StoreError where the database cannot be used.
    """

    def __init__(self, database: Database, settings: StoreSettings, *, clock: Callable[[], float]) -> None:
        """Use `database`, which has the tables; `Store.open` makes them."""
        self.settings = settings
        self._database = database
        self._clock = clock

    @classmethod
    def open(
        cls,
        database: str | Path,
        *,
        settings: StoreSettings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """The store in `database`: a path, "sqlite:///FILE" or "postgresql://…"; makes the tables where there are none.

        `settings` replace those that the database keeps; without them those hold.

        Raises: StoreError where the database cannot be used, belongs to something else or to a newer rlhfkit;
        MissingDependencyError.
        """
        connected = Database(database)
        try:
            check_owner(connected)
            connected.keep_a_log()
            with connected.writing() as connection:
                kept = prepare(connection, settings, name=connected.name)
        except BaseException:
            connected.close()
            raise
        return cls(connected, kept, clock=clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The database: an absolute path, or an address without its password."""
        name = self._database.name
        return str(Path(name).absolute()) if self._database.is_sqlite else name

    def risks(self) -> list[str]:
        """What may lose votes that were confirmed, by the settings of the database's server."""
        return self._database.risks()

    def close(self) -> None:
        """Close all connections."""
        self._database.close()

    # Pairs and people

    def add_pairs(self, new: Iterable[Pair]) -> int:
        """How many of the pairs were not known yet.

        They are added in portions, so that nobody has to wait; after an interruption, add them again.

        Raises: DataError where a known pair has other content.
        """
        remaining = iter(new)
        num_added = 0
        while portion := list(islice(remaining, _ROWS_AT_ONCE)):
            rows = {pair.id: row for pair in portion for row in [checked_row(pair)]}
            for pair in portion:
                expect_same(rows[pair.id], checked_row(pair))
            with self._database.writing() as connection:
                num_added += self._add_rows(connection, rows)
        return num_added

    def _add_rows(self, connection: Connection, rows: dict[str, dict[str, Any]]) -> int:
        known = connection.execute(select(pairs).where(pairs.c.id.in_(list(rows)))).mappings().all()
        for row in known:
            expect_same(row_of_pair(pair_of_row(row)), rows[row["id"]])
        known_ids = {row["id"] for row in known}
        number = connection.execute(select(func.max(pairs.c.number))).scalar() or 0
        added = [row for id, row in rows.items() if id not in known_ids]
        numbered = [{"number": number + index, **row} for index, row in enumerate(added, start=1)]
        if numbered:
            settings = kept_settings(connection)
            connection.execute(insert(pairs), numbered)
            needed = {False: settings.overlap, True: settings.calibration_overlap}
            connection.execute(
                insert(queue),
                [tasks.open_queue_row(row, num_needed=needed[row["is_calibration"]]) for row in numbered],
            )
            for round in sorted({row["round"] for row in numbered}):
                kinds = [row["is_calibration"] for row in numbered if row["round"] == round]
                tasks.count_into_round(connection, round, num_pairs=len(kinds), num_calibration=sum(kinds))
        return len(numbered)

    def pairs(self, *, round: int | None = None) -> list[Pair]:
        """All pairs, or those of one round, in the order they were added."""
        with self._database.reading() as connection:
            return read_pairs(connection, round)

    def add_annotator(self, name: str) -> str:
        """A new secret token of a person, of which only a hash is stored. Raises: DataError for an unusable name."""
        token = secrets.token_urlsafe(32)
        with self._database.writing() as connection:
            self._person(connection, name)
            connection.execute(
                insert(tokens), {"hash": hash_of_token(token), "annotator": name, "created_at": self._clock()}
            )
        return token

    def annotator_of(self, token: str) -> str | None:
        """Name of the person whom the token belongs to; None where it belongs to nobody."""
        digest = hash_of_token(token)
        with self._database.reading() as connection:
            row = connection.execute(select(tokens).where(tokens.c.hash == digest)).mappings().one_or_none()
        if row is None or not hmac.compare_digest(row["hash"], digest):
            return None
        return str(row["annotator"])

    def annotators(self, *, with_token: bool = False) -> list[str]:
        """Names of all people, or of those who have a token and so can come to the page, in the order they came."""
        query = select(annotators.c.name).order_by(annotators.c.created_at, annotators.c.name)
        if with_token:
            query = query.where(annotators.c.name.in_(select(tokens.c.annotator)))
        with self._database.reading() as connection:
            return list(connection.execute(query).scalars())

    # Tasks

    def lease(self, annotator: str) -> Task | None:
        """The task that this person holds, otherwise the next one; None where nothing is left for them now.

        Next are pairs of the calibration pool, at their share of the newest round; otherwise pairs that others have
        begun, then in the order of adding. Asking again renews the lease. It is on the disk when this returns, so that
        whoever sees a pair can vote on it even where the database has crashed meanwhile.
        """
        now = self._clock()
        with self._database.writing() as connection:
            return self._lease(connection, annotator, now)

    def _lease(self, connection: Connection, annotator: str, now: float) -> Task | None:
        person = self._person(connection, annotator)
        changes: dict[str, float] = {}
        number = self._held(connection, person, now)
        if number is None:
            number = tasks.choose(connection, person, changes, now=now)
        if number is None:
            tasks.note(connection, person, changes)
            return None
        until = self._hold(connection, person, number, now)
        row = connection.execute(PAIR, {"number_": number, "me": annotator}).mappings().one()
        shown_left = row["shown_left"] or tasks.draw_side(connection, person, number, changes)
        tasks.note(connection, person, changes)
        return Task(pair_of_row(row), shown_left, until, person["num_voted"] + person["num_skipped"] + 1)

    def extend(self, annotator: str, pair_id: str) -> bool:
        """Whether the pair is kept for this person for another `lease_seconds`.

        False where they hold another task or none, or where their time was over and the pair went to others.
        """
        check_name("id of a pair", pair_id)
        now = self._clock()
        with self._database.writing(is_durable=False) as connection:
            person = self._person(connection, annotator)
            state = tasks.state_of(connection, annotator, pair_id, now=now)
            if state is None or not tasks.is_theirs(person, state, now=now):
                return False
            self._hold(connection, person, state["number"], now)
            return True

    def release(self, annotator: str, pair_id: str) -> None:
        """Let others have the pair, where this person holds it."""
        check_name("name of an annotator", annotator)
        check_name("id of a pair", pair_id)
        with self._database.writing(is_durable=False) as connection:
            state = tasks.state_of(connection, annotator, pair_id, now=self._clock())
            if state is not None:
                tasks.drop(connection, annotator, state["number"])

    def _held(self, connection: Connection, person: RowMapping, now: float) -> int | None:
        number: int | None = person["held_number"]
        if number is None or person["held_until"] > now:
            return number
        state = tasks.state_of(connection, person["name"], number, now=now)
        return number if state is not None and tasks.is_theirs(person, state, now=now) else None

    def _hold(self, connection: Connection, person: RowMapping, number: int, now: float) -> float:
        until = now + self.settings.lease_seconds
        tasks.hold(connection, person, number, until=until)
        return until

    def shown_left(self, annotator: str, pair_id: str) -> Side | None:
        """Which response stands left for this person; None where the pair was never before them."""
        query = (
            select(assignments.c.shown_left)
            .join(pairs, pairs.c.number == assignments.c.number)
            .where(assignments.c.annotator == annotator, pairs.c.id == pair_id)
        )
        with self._database.reading() as connection:
            return connection.execute(query).scalar_one_or_none()

    # Votes

    def vote(self, vote: Vote) -> Recorded:
        """What became of a vote; it is on the disk when this returns. `created_at` and `is_surplus` are set here.

        "repeated": a vote with this id is known, or this person's vote on this pair stands already; nothing is added.
        "surplus": kept, but not counted, because the person's lease had run out and the pair went to others meanwhile.

        Raises: DataError where the pair is unknown, or the id belongs to a vote of somebody else or on another pair.
        """
        now = self._clock()
        with self._database.writing() as connection:
            return self._record(connection, replace(vote, created_at=now), now)

    def vote_and_lease(self, vote: Vote) -> tuple[Recorded, Task | None]:
        """What `vote` and then `lease` for the same person answer, in one transaction: both or none."""
        now = self._clock()
        with self._database.writing() as connection:
            recorded = self._record(connection, replace(vote, created_at=now), now)
            return recorded, self._lease(connection, vote.annotator, now)

    def add_votes(self, given: Iterable[Vote]) -> int:
        """How many votes from elsewhere (a file of another tool) were not known yet.

        They keep their `created_at` and `is_surplus`: whether a lease had run out is known where they were given.

        Raises: DataError as `vote` does.
        """
        remaining = iter(given)
        num_added = 0
        while portion := list(islice(remaining, _ROWS_AT_ONCE)):
            now = self._clock()
            with self._database.writing() as connection:
                for vote in portion:
                    dated = replace(vote, created_at=vote.created_at or now)
                    num_added += self._record(connection, dated, now, is_surplus=dated.is_surplus) != "repeated"
        return num_added

    def _record(self, connection: Connection, vote: Vote, now: float, *, is_surplus: bool | None = None) -> Recorded:
        check_vote(vote)
        known = connection.execute(VOTE, {"id_": vote.id}).mappings().one_or_none()
        if known is not None:
            if (known["annotator"], known["pair_id"]) != (vote.annotator, vote.pair_id):
                raise DataError(f"vote {vote.id!r} is known as another one; expected a new id for every vote")
            return "repeated"
        state = tasks.state_of(connection, vote.annotator, vote.pair_id, now=now)
        if state is None:
            raise DataError(f"a vote on pair {vote.pair_id!r}, which the store does not have; add the pair first")
        if state["vote_id"] is not None:
            return "repeated"
        person = self._person(connection, vote.annotator)
        is_skip = vote.choice.kind == "skip"
        has_room = tasks.counts(person, state, now=now) if is_surplus is None else not is_surplus
        counts = has_room and not is_skip
        vote = replace(vote, is_surplus=not is_skip and not counts)
        row = {"number": state["number"], **row_of_vote(vote)}
        connection.execute(insert(votes).values(sequence=next_sequence), row)
        tasks.record(connection, person, state, vote, counts=counts)
        return "surplus" if vote.is_surplus else "recorded"

    def undo(self, annotator: str, *, id: str) -> Vote | None:
        """The vote that was taken back, this person's newest that stood; they get its task again.

        None where none stood. The same `id` sent again takes back nothing more and answers the same.

        Raises: DataError where the id belongs to an undo of somebody else.
        """
        check_name("id of an undo", id)
        now = self._clock()
        with self._database.writing() as connection:
            known = connection.execute(select(undos).where(undos.c.id == id)).mappings().one_or_none()
            if known is not None:
                return undone_before(connection, known, annotator)
            person = self._person(connection, annotator)
            row = connection.execute(NEWEST_STANDING, {"me": annotator}).mappings().one_or_none()
            event = {"id": id, "vote_id": None if row is None else row["id"], "annotator": annotator, "created_at": now}
            connection.execute(insert(undos).values(sequence=next_sequence), event)
            if row is None:
                return None
            vote = vote_of_row(row)
            tasks.take_back(connection, row["number"], vote)
            self._hold(connection, person, row["number"], now)
            return vote

    # What there is

    def votes(self) -> list[Vote]:
        """The votes that stand, in the order they came."""
        with self._database.reading() as connection:
            return read_votes(connection)

    def events(self) -> list[Vote | Undo]:
        """All that ever happened: every vote, also one that was taken back, and every undo, in order."""
        with self._database.reading() as connection:
            vote_rows = connection.execute(VOTES).mappings().all()
            undo_rows = connection.execute(select(undos).where(undos.c.vote_id.is_not(None))).mappings().all()
        found: list[tuple[int, Vote | Undo]] = [(row["sequence"], vote_of_row(row)) for row in vote_rows]
        found += [
            (row["sequence"], Undo(row["id"], row["vote_id"], row["annotator"], row["created_at"])) for row in undo_rows
        ]
        return [happened for _, happened in sorted(found, key=lambda pair: pair[0])]

    def snapshot(self) -> Snapshot:
        """Pairs and standing votes of one moment; nobody who writes waits for it, and it waits for nobody."""
        with self._database.reading() as connection:
            return Snapshot(read_pairs(connection, None), read_votes(connection))

    def progress(self, annotator: str) -> AnnotatorProgress:
        """How far this person is."""
        check_name("name of an annotator", annotator)
        with self._database.reading() as connection:
            num_open = connection.execute(select(func.sum(rounds.c.num_open))).scalar() or 0
            person = tasks.person_of(connection, annotator)
        if person is None:
            return AnnotatorProgress(0, 0, num_open, num_open, 0.0)
        voted, skipped = person["num_voted"], person["num_skipped"]
        left = num_open - person["num_decided_open"]
        return AnnotatorProgress(voted, skipped, left, voted + skipped + left, person["active_seconds"])

    def queue(self) -> QueueState:
        """How far all are."""
        with self._database.reading() as connection:
            states = tuple(
                RoundState(row["round"], row["num_pairs"], row["num_pairs"] - row["num_open"])
                for row in connection.execute(select(rounds).order_by(rounds.c.round)).mappings()
            )
            leased = select(func.count(func.distinct(leases.c.number))).join(queue, queue.c.number == leases.c.number)
            num_leased = connection.execute(
                leased.where(tasks.is_live, queue.c.is_open.is_(True)), {"now": self._clock()}
            ).scalar_one()
        num_pairs = sum(state.num_pairs for state in states)
        num_finished = sum(state.num_finished for state in states)
        return QueueState(num_pairs, num_finished, num_leased, num_pairs - num_finished - num_leased, states)

    # Guidelines

    def set_guidelines(self, text: str) -> int:
        """Version of the guidelines, a new one where the text differs from the last."""
        with self._database.writing() as connection:
            version, current = read_guidelines(connection)
            if version and text == current:
                return version
            row = {"version": version + 1, "text": text, "created_at": self._clock()}
            connection.execute(insert(guidelines), row)
            return version + 1

    def guidelines(self) -> tuple[int, str]:
        """Version and text of the newest guidelines; 0 and nothing where there are none."""
        with self._database.reading() as connection:
            return read_guidelines(connection)

    def _person(self, connection: Connection, name: str) -> RowMapping:
        check_name("name of an annotator", name)
        person = tasks.person_of(connection, name)
        if person is None:
            connection.execute(insert(annotators), {"name": name, "created_at": self._clock()})
            person = tasks.person_of(connection, name)
            assert person is not None
        return person


# Opening


# Reading
