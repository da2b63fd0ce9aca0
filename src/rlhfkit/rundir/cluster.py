"""A run on a cluster, as its driver shows it in `cluster.json`; and what a user asks of the driver meanwhile."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Literal

from rlhfkit.errors import CheckpointError
from rlhfkit.rundir.atomic import write_json
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.lines import Row, finite_or_none, list_or_empty, mapping_or_empty, read_object, whole_or_none

__all__ = [
    "ClusterTable",
    "Event",
    "Wanted",
    "WorkerRow",
    "Workers",
    "amount",
    "ask_for",
    "read_cluster",
    "refused",
    "short_text",
    "taken_request",
]

MOST_ROWS = 1000
"""Workers that are read; also the most that may be asked for."""
MOST_EVENTS = 500
MOST_LETTERS = 300
MOST_AMOUNT = 1e10
"""As seconds since 1970, still a date."""
OLD_SECONDS = 45.0
"""A driver writes every second, and now and then waits for others; after so long it is not there."""
STATES = ("idle", "working", "slow", "lost", "refused", "starting")
ENDS = ("running", "done", "stopped", "failed")
KINDS = {"samplers": "sampler", "reward_workers": "reward-worker"}
"""Setting of `[cluster]` → the name in the table."""


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A sampler or a reward worker."""

    name: str
    state: str
    """One of `STATES`, or empty."""
    host: str
    pid: int | None
    iteration: int | None
    """The one that it worked for last."""
    chunks: int | None
    per_second: float | None
    """Tokens that it samples, or responses that it scores, while it works."""
    restarts: int | None
    faults: int | None
    seconds_in_state: float | None


@dataclass(frozen=True, slots=True)
class Workers:
    """All of a kind."""

    rows: tuple[WorkerRow, ...]
    num_left_out: int
    """Rows beyond `MOST_ROWS`."""
    waiting_chunks: int | None
    open_chunks: int | None
    median_chunk_seconds: float | None
    dropped_answers: int | None


@dataclass(frozen=True, slots=True)
class Event:
    """Somebody came, left or was lost."""

    time: float
    what: str
    who: str
    why: str = ""
    lost_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """Numbers of workers; None: as it is."""

    samplers: int | None = None
    reward_workers: int | None = None


@dataclass(frozen=True, slots=True)
class ClusterTable:
    """Who works on a run."""

    time: float
    """When it was written."""
    age_seconds: float
    state: Literal["running", "gone", "done", "stopped", "failed"]
    """"gone": the driver has not said how it ended, and writes no more."""
    iteration: int | None
    num_trainers: int | None
    trainer_restarts: int | None
    silent_seconds: float | None
    """Since the first trainer gave a sign of life."""
    wanted: Wanted
    samplers: Workers
    reward_workers: Workers
    events: tuple[Event, ...]
    """In the order of their times."""


def read_cluster(run: RunDir, *, now: float | None = None) -> ClusterTable | None:
    """The table as the driver wrote it last; None where the run is on no cluster.

    Raises: CheckpointError where the file is damaged, or none of ours.
    """
    content = read_object(run.cluster)
    if not content:
        return None
    written = amount(content.get("time")) or 0.0
    age = max(0.0, (time.time() if now is None else now) - written)
    ended = content.get("state")
    state = ended if isinstance(ended, str) and ended in ENDS else "running"
    trainers, wanted = mapping_or_empty(content.get("trainers")), mapping_or_empty(content.get("wanted"))
    return ClusterTable(
        time=written,
        age_seconds=age,
        state="gone" if state == "running" and age > OLD_SECONDS else state,  # type: ignore[arg-type]
        iteration=whole_or_none(content.get("iteration")),
        num_trainers=whole_or_none(trainers.get("number")),
        trainer_restarts=whole_or_none(trainers.get("restarts")),
        silent_seconds=amount(trainers.get("silent_seconds")),
        wanted=Wanted(*(whole_or_none(wanted.get(setting)) for setting in KINDS)),
        samplers=_workers(mapping_or_empty(content.get(KINDS["samplers"]))),
        reward_workers=_workers(mapping_or_empty(content.get(KINDS["reward_workers"]))),
        events=events_of(content),
    )


def events_of(content: Row) -> tuple[Event, ...]:
    """The last events in the content of `cluster.json`, in the order of their times."""
    events = [
        Event(
            at,
            what=short_text(event.get("what")),
            who=short_text(event.get("who")),
            why=short_text(event.get("why")),
            lost_seconds=amount(event.get("lost_seconds")),
        )
        for event in map(mapping_or_empty, list_or_empty(content.get("events"))[-MOST_EVENTS:])
        if (at := amount(event.get("time"))) is not None
    ]
    return tuple(sorted(events, key=lambda event: event.time))


def _workers(content: Row) -> Workers:
    rows: Sequence[object] = list_or_empty(content.get("workers"))
    return Workers(
        tuple(_worker(mapping_or_empty(row)) for row in rows[:MOST_ROWS]),
        num_left_out=max(0, len(rows) - MOST_ROWS),
        waiting_chunks=whole_or_none(content.get("waiting_chunks")),
        open_chunks=whole_or_none(content.get("open_chunks")),
        median_chunk_seconds=amount(content.get("median_chunk_seconds")),
        dropped_answers=whole_or_none(content.get("dropped_answers")),
    )


def _worker(row: Row) -> WorkerRow:
    state = short_text(row.get("state"))
    return WorkerRow(
        name=short_text(row.get("name")),
        state=state if state in STATES else "",
        host=short_text(row.get("host")),
        pid=whole_or_none(row.get("pid")),
        iteration=whole_or_none(row.get("iteration")),
        chunks=whole_or_none(row.get("chunks")),
        per_second=amount(row.get("per_second")),
        restarts=whole_or_none(row.get("restarts")),
        faults=whole_or_none(row.get("faults")),
        seconds_in_state=amount(row.get("seconds_in_state")),
    )


def amount(value: object) -> float | None:
    """A number of seconds, or of things; None for all else."""
    number = finite_or_none(value)
    return number if number is not None and 0 <= number < MOST_AMOUNT else None


def short_text(value: object) -> str:
    """A text of one line that steers no terminal; other machines' names and errors may hold anything."""
    if not isinstance(value, str):
        return ""
    return "".join(letter if letter.isprintable() else " " for letter in value[:MOST_LETTERS])


# ── what a user asks for ─────────────────────────────────────────────────────────────────────────────────────────────


def refused(asked: Wanted, now: Wanted) -> str | None:
    """Why a run that has the workers of `now` cannot have those asked for; None where it can."""
    if asked.samplers is not None and not 1 <= asked.samplers <= MOST_ROWS:
        return f"{asked.samplers} samplers are asked for; expected 1 to {MOST_ROWS}"
    if asked.reward_workers is None:
        return None
    if not now.reward_workers:
        return (
            f"{asked.reward_workers} reward workers are asked for, but this run has begun without any, so that its "
            "trainers score; to change that, stop it and go on with cluster.reward_workers=N"
        )
    if not 1 <= asked.reward_workers <= MOST_ROWS:
        return (
            f"{asked.reward_workers} reward workers are asked for; expected 1 to {MOST_ROWS}, as nobody else scores "
            "in this run"
        )
    return None


def ask_for(run: RunDir, wanted: Wanted) -> None:
    """Leave word for the driver."""
    write_json(run.cluster_request, {key: value for key, value in asdict(wanted).items() if value is not None})


def taken_request(run: RunDir) -> Wanted | None:
    """What has been asked for since the last time, if anything; it is not found again.

    Raises: CheckpointError where somebody else wrote the file.
    """
    if not run.cluster_request.exists():
        return None
    mine = run.cluster_request.with_suffix(".taken")
    try:
        run.cluster_request.replace(mine)  # or one that comes just now would be removed unread
        content = read_object(mine)
    finally:
        with suppress(OSError):
            mine.unlink()
    given = {setting: content[setting] for setting in KINDS if setting in content}
    for setting, value in given.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise CheckpointError(f"{run.cluster_request.name} asks for {setting} = {value!r:.60}; expected a number")
    return Wanted(**given)
