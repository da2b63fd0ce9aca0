"""The trainer's side of work elsewhere: gives chunks to workers, takes what comes of them, bears the loss of any.

The workers are samplers, or those that score; a pool has one kind.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from rlhfkit.errors import GenerationError, RlhfkitError
from rlhfkit.launch.schedule import Schedule
from rlhfkit.launch.spans import Spans

__all__ = ["Answer", "Job", "Pool", "Result", "Transport", "Worker"]

State = Literal["idle", "working", "slow", "lost", "refused"]

POLL_SECONDS = 0.2
MEMBERS_SECONDS = 1.0
RETRY_SECONDS = 1.0
"""A worker that is lost is tried again after so long: it may be starting anew."""
MOST_RETRY_SECONDS = 30.0
KILL_FACTOR = 5.0
LEAST_KILL_SECONDS = 60.0
"""A worker that is silent for longer than this, and than KILL_FACTOR times what makes it slow, is started anew."""
MOST_FAULTS = 3
"""A worker that gives wrong answers so often is not asked again."""
Key = tuple[int, int]


class Result(Protocol):
    """What came of a chunk."""

    @property
    def seconds(self) -> float:
        """What it took."""
        ...

    @property
    def num_units(self) -> int:
        """How much it is: tokens that were sampled, or responses that were scored."""
        ...

    @property
    def host(self) -> str:
        """Where the worker is."""
        ...

    @property
    def pid(self) -> int:
        """Its process there."""
        ...


@dataclass(frozen=True)
class Answer:
    """What became of a chunk that was given to a worker."""

    worker: str
    ticket: int
    """Which call of `give` it answers: an answer may come after its worker was taken for lost and given other work."""
    result: Result | None = None
    error: BaseException | None = None
    is_loss: bool = False
    """Whether the worker is gone, rather than its work wrong."""


class Transport(Protocol):
    """How workers are reached; of Ray, or of a simulation."""

    def members(self) -> list[str]:
        """The workers that there shall be."""
        ...

    def give(self, worker: str, ticket: int, chunk: Any) -> None:
        """Have it work; the answer comes by `answers`, with the ticket. May be called while `answers` waits."""
        ...

    def answers(self, seconds: float) -> list[Answer]:
        """What has come, after at most `seconds` of waiting for it."""
        ...

    def restart(self, worker: str) -> None:
        """Kill it, so that another one starts in its place."""
        ...

    def publish(self, table: dict[str, Any]) -> None:
        """Show how the workers are."""
        ...


@dataclass
class Worker:
    """What is known of a worker."""

    name: str
    state: State = "idle"
    since: float = 0.0
    """When it got what it is at."""
    key: Key | None = None
    """What it is at."""
    ticket: int = 0
    iteration: int | None = None
    """The one that it worked for last."""
    host: str = ""
    pid: int = 0
    num_chunks: int = 0
    num_units: int = 0
    seconds: float = 0.0
    """Of work."""
    num_restarts: int = 0
    num_faults: int = 0
    fault: str = ""
    """The last one."""
    num_overtaken: int = 0
    """Chunks that another one was done with first."""
    overtaken_seconds: float = 0.0
    """What these came later than chunks do."""
    is_known_as_slow: bool = False
    retry_at: float = 0.0
    retry_seconds: float = RETRY_SECONDS

    def as_row(self, now: float) -> dict[str, Any]:
        """For the table."""
        return {
            "name": self.name,
            "state": self.state,
            "host": self.host,
            "pid": self.pid,
            "iteration": self.iteration,
            "chunks": self.num_chunks,
            "per_second": round(self.num_units / self.seconds, 1) if self.seconds else None,
            "restarts": self.num_restarts,
            "faults": self.num_faults,
            "overtaken": self.num_overtaken,
            "overtaken_seconds": round(self.overtaken_seconds, 1),
            "seconds_in_state": round(now - self.since, 1),
        }


@dataclass
class Job:
    """The chunks of one call."""

    number: int
    chunks: Sequence[Any]
    iteration: int | None
    """The iteration that it is for, where that is known."""
    wrong: Callable[[Any], str | None]
    """Why a result cannot be used; None where it can."""
    on_result: Callable[[int, Any], None] | None
    """Is told of each result at once, in the pool's thread."""
    results: dict[int, Any] = field(default_factory=dict)
    error: BaseException | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)
    clock: Callable[[], float] = time.monotonic
    spans: Spans = field(default_factory=Spans)
    """Are told how long somebody waited."""

    @property
    def is_done(self) -> bool:
        """Whether all results are there, or never will be."""
        return self.error is not None or len(self.results) == len(self.chunks)

    def wait(self, on_chunk: Callable[[int], None] | None = None) -> list[Any]:
        """What came of each chunk, in order; `on_chunk` hears the place of each that is done.

        Raises: GenerationError, RewardError, ConfigError: what a worker raised on purpose.
        """
        start = self.clock()
        try:
            return self._results(on_chunk)
        finally:
            self.spans.waited(self.iteration, start, self.clock())

    def _results(self, on_chunk: Callable[[int], None] | None) -> list[Any]:
        told: set[int] = set()
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.is_done or len(self.results) > len(told), timeout=1.0)
                new = [place for place in self.results if place not in told]
            for place in new:
                told.add(place)
                if on_chunk is not None:
                    on_chunk(place)
            if self.error is not None:
                raise self.error
            if len(told) == len(self.chunks):
                return [self.results[place] for place in range(len(self.chunks))]

    def take(self, place: int, result: Any) -> None:
        """A chunk is done."""
        if self.on_result is not None:
            self.on_result(place, result)
        with self.changed:
            self.results[place] = result
            self.changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """It will never be done."""
        with self.changed:
            self.error = error
            self.changed.notify_all()


class Pool:
    """All workers of a kind, and a thread that keeps them at work, from `start` to `stop`."""

    def __init__(
        self,
        transport: Transport,
        *,
        slow_factor: float,
        tell: Callable[[str], None] = lambda words: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`tell` is given one line for the user about each worker that is lost or refused."""
        self.transport, self._tell, self._clock = transport, tell, clock
        self.schedule: Schedule[Key] = Schedule(slow_factor=slow_factor)
        self._slow_factor = slow_factor
        self.workers: dict[str, Worker] = {}
        self.jobs: dict[int, Job] = {}
        self.events: deque[dict[str, Any]] = deque(maxlen=200)
        self.spans = Spans()
        self.num_dropped = 0
        """Answers that nobody wanted any more: second ones, and those to jobs that were dropped."""
        self._num_jobs = self._num_given = 0
        self._looked = self._shown = -1e9
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="workers", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is on its way is forgotten."""
        self._stopped.set()
        self._thread.join(10.0)
        with self._lock:
            self.transport.publish(self._table())

    def begin(
        self,
        chunks: Sequence[Any],
        *,
        iteration: int | None = None,
        wrong: Callable[[Any], str | None] = lambda result: None,
        on_result: Callable[[int, Any], None] | None = None,
    ) -> Job:
        """Have chunks worked on; the arguments are those of a `Job`."""
        with self._lock:
            self._num_jobs += 1
            job = Job(self._num_jobs, list(chunks), iteration, wrong, on_result, clock=self._clock, spans=self.spans)
            self.jobs[job.number] = job
            self.schedule.add((job.number, place) for place in range(len(job.chunks)))
            self._give(self._clock())  # at once, as the pool's thread may be waiting for answers
        return job

    def drop(self, job: Job) -> None:
        """Nobody will ask for its results."""
        with self._lock:
            self.jobs.pop(job.number, None)
            self.schedule.drop([(job.number, place) for place in range(len(job.chunks))])

    # ── the thread ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        while not self._stopped.is_set():
            try:
                self.turn()
            except Exception as error:
                with self._lock:
                    self._fail_all(error)
                self._stopped.wait(RETRY_SECONDS)

    def turn(self, seconds: float = POLL_SECONDS) -> None:
        """Give out what there is to do, and take what has come within `seconds`."""
        with self._lock:
            now = self._clock()
            if now - self._looked >= MEMBERS_SECONDS:
                self._looked = now
                self._look_for_members(now)
                self._look_for_silent(now)
            self._give(now)
        answers = self.transport.answers(seconds)
        with self._lock:
            for answer in answers:
                self._take(answer, self._clock())
            if self._clock() - self._shown >= MEMBERS_SECONDS:
                self._shown = self._clock()
                self.transport.publish(self._table())

    def _look_for_members(self, now: float) -> None:
        members = dict.fromkeys(self.transport.members())
        for name in members:
            if name not in self.workers:
                self.workers[name] = Worker(name, since=now)
                self._note("joined", name)
        for name in [name for name in self.workers if name not in members]:
            self.schedule.lost(name)
            del self.workers[name]
            self._note("left", name)

    def _look_for_silent(self, now: float) -> None:
        median = self.schedule.median_seconds
        if median is None:
            return
        slow = self._slow_factor * median
        for worker in self.workers.values():
            if worker.state in ("working", "slow"):
                worker.state = "slow" if now - worker.since > slow else "working"
                patience = worker.retry_seconds / RETRY_SECONDS  # grows, for one whose start takes longer than this
                if now - worker.since > patience * max(KILL_FACTOR * slow, LEAST_KILL_SECONDS):
                    self.transport.restart(worker.name)
                    self._worked(worker, now, is_lost=True)
                    self._lose(worker, f"silent for {now - worker.since:.0f} s", now)

    def _give(self, now: float) -> None:
        for worker in self.workers.values():
            if worker.state == "lost" and now >= worker.retry_at:
                worker.state, worker.since = "idle", now
        idle = [name for name, worker in self.workers.items() if worker.state == "idle"]
        for name, (number, place) in self.schedule.assign(idle, now):
            worker, job = self.workers[name], self.jobs[number]
            self._num_given += 1
            worker.state, worker.since, worker.key, worker.ticket = "working", now, (number, place), self._num_given
            self.transport.give(name, worker.ticket, job.chunks[place])
        self._look_whether_any_is_left()

    def _look_whether_any_is_left(self) -> None:
        if self.jobs and self.workers and all(worker.state == "refused" for worker in self.workers.values()):
            last = max(self.workers.values(), key=lambda worker: worker.since)
            self._fail_all(
                GenerationError(
                    f"no worker is left: each was taken out after {MOST_FAULTS} faults, the last, {last.name} on "
                    f"{last.host or 'an unknown host'}, because it {last.fault}"
                )
            )

    def _take(self, answer: Answer, now: float) -> None:
        worker = self.workers.get(answer.worker)
        if worker is None or worker.key is None or worker.ticket != answer.ticket:
            self.num_dropped += answer.result is not None
            return  # it has left, or was taken for lost before
        self._worked(worker, now, is_lost=answer.result is None)
        key, worker.key = worker.key, None
        if answer.is_loss:
            self._lose(worker, _reason(answer.error), now)
            return
        job = self.jobs.get(key[0])
        spent, worker.state, worker.since = now - worker.since, "idle", now
        if isinstance(answer.error, RlhfkitError):
            if job is not None:  # else another one has said it before
                self._end(job)
                job.fail(answer.error)
        elif answer.result is None:
            self._blame(worker, f"failed: {_reason(answer.error)}", spent)
            self.schedule.lost(worker.name)
        else:
            self._use(worker, key, job, answer.result, now, spent)

    def _worked(self, worker: Worker, now: float, *, is_lost: bool) -> None:
        job = None if worker.key is None else self.jobs.get(worker.key[0])
        self.spans.worked(worker.name, None if job is None else job.iteration, worker.since, now, is_lost=is_lost)

    def _use(self, worker: Worker, key: Key, job: Job | None, result: Result, now: float, spent: float) -> None:
        worker.host, worker.pid = result.host, result.pid
        worker.retry_seconds = RETRY_SECONDS
        if job is None:
            self.num_dropped += 1
            return
        wrong = job.wrong(result)
        if wrong is not None:
            self.schedule.lost(worker.name)
            self._blame(worker, wrong, spent)
            return
        worker.iteration, worker.num_chunks = job.iteration, worker.num_chunks + 1
        worker.num_units, worker.seconds = worker.num_units + result.num_units, worker.seconds + result.seconds
        if not self.schedule.finished(worker.name, key, now):
            self.num_dropped += 1
            return
        if result.seconds <= self._slow_factor * (self.schedule.median_seconds or 0.0):
            worker.is_known_as_slow = False
        for other in self.workers.values():
            if other.key == key and other.ticket < worker.ticket:
                self._note_overtaken(other, worker, now)
        job.take(key[1], result)
        if job.is_done:
            self._end(job)

    def _note_overtaken(self, slow: Worker, by: Worker, now: float) -> None:
        """A chunk that one of two was slow with is done by the other."""
        median = self.schedule.median_seconds or 0.0
        lost = max(now - slow.since - median, 0.0)
        slow.num_overtaken, slow.overtaken_seconds = slow.num_overtaken + 1, slow.overtaken_seconds + lost
        self._note("overtaken", slow.name, by=by.name, lost_seconds=round(lost, 1))
        if not slow.is_known_as_slow:
            slow.is_known_as_slow = True
            self._tell(
                f"{slow.name} ({slow.host or 'host unknown'}) is slow: {now - slow.since:.1f} s at a chunk; the median "
                f"takes {median:.1f} s; {by.name} has done it too, which cost {lost:.1f} s"
            )

    def _end(self, job: Job) -> None:
        self.jobs.pop(job.number, None)
        self.schedule.drop([(job.number, place) for place in range(len(job.chunks))])

    def _fail_all(self, error: BaseException) -> None:
        for job in list(self.jobs.values()):
            self._end(job)
            job.fail(error)

    def _lose(self, worker: Worker, why: str, now: float) -> None:
        chunks = self.schedule.lost(worker.name)
        spent = now - worker.since
        worker.state, worker.since, worker.key, worker.iteration = "lost", now, None, None
        worker.retry_at = now + worker.retry_seconds
        is_new = worker.retry_seconds == RETRY_SECONDS
        worker.retry_seconds = min(2 * worker.retry_seconds, MOST_RETRY_SECONDS)
        if is_new:
            worker.num_restarts += 1
            self._note("lost", worker.name, why=why, lost_seconds=round(spent, 1) if chunks else 0.0)
            self._tell(
                f"{worker.name} ({worker.host or 'host unknown'}) is lost: {why}; "
                + (f"its chunk, {spent:.1f} s of work, is given to another one" if chunks else "it had nothing to do")
            )

    def _blame(self, worker: Worker, why: str, spent: float) -> None:
        worker.num_faults, worker.fault = worker.num_faults + 1, why
        worker.iteration = None
        is_refused = worker.num_faults >= MOST_FAULTS
        self._note("refused" if is_refused else "wrong", worker.name, why=why, lost_seconds=round(spent, 1))
        if is_refused:
            worker.state = "refused"
            self._tell(f"{worker.name} ({worker.host}) is not asked any more, after {worker.num_faults} faults: {why}")
        else:
            self._tell(f"{worker.name} ({worker.host}) {why}; what it gave is thrown away")
            self.transport.restart(worker.name)
            worker.state, worker.retry_at = "lost", self._clock() + worker.retry_seconds

    # ── what is seen from outside ────────────────────────────────────────────────────────────────────────────────────

    def _note(self, kind: str, name: str, **facts: Any) -> None:
        self.events.append({"time": time.time(), "what": kind, "who": name, **facts})

    def _table(self) -> dict[str, Any]:
        now = self._clock()
        return {
            "workers": [worker.as_row(now) for worker in self.workers.values()],
            "waiting_chunks": self.schedule.num_waiting,
            "open_chunks": len(self.schedule),
            "median_chunk_seconds": self.schedule.median_seconds,
            "dropped_answers": self.num_dropped,
            "events": list(self.events),
            "spans": self.spans.as_dict(),
        }


def _reason(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]
