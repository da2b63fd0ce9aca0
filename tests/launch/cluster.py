"""A cluster without processes: a transport whose workers do what a test says, and a clock that goes when it says so."""

from dataclasses import dataclass
from typing import Any

from rlhfkit.launch.pool import Answer, Pool


@dataclass(frozen=True)
class Done:
    """What came of a chunk."""

    value: Any
    seconds: float = 1.0
    num_units: int = 10
    host: str = "node-1"
    pid: int = 7


@dataclass
class Call:
    """A chunk that was given to a worker and is not answered."""

    worker: str
    ticket: int
    chunk: Any


class Cluster:
    """Implements `Transport`. Chunks are words; what comes of one is the word in capitals."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.now = 0.0
        self.calls: list[Call] = []
        self.given: list[tuple[str, Any]] = []
        """All that was ever given, in order."""
        self.restarts: list[str] = []
        self.tables: list[dict[str, Any]] = []
        self.words: list[str] = []
        self.fails: Exception | None = None
        """What `answers` raises."""
        self._come: list[Answer] = []

    # ── as the pool sees it ──────────────────────────────────────────────────────────────────────────────────────────

    def members(self) -> list[str]:
        return self.names

    def give(self, worker: str, ticket: int, chunk: Any) -> None:
        self.calls.append(Call(worker, ticket, chunk))
        self.given.append((worker, chunk))

    def answers(self, seconds: float) -> list[Answer]:
        if self.fails is not None:
            raise self.fails
        come, self._come = self._come, []
        return come

    def restart(self, worker: str) -> None:
        self.restarts.append(worker)
        self.calls = [call for call in self.calls if call.worker != worker]

    def publish(self, table: dict[str, Any]) -> None:
        self.tables.append(table)

    # ── as a test plays it ───────────────────────────────────────────────────────────────────────────────────────────

    def pool(self, *, slow_factor: float = 3.0) -> Pool:
        """A pool of these workers, not started: a test calls `turn`."""
        pool = Pool(self, slow_factor=slow_factor, tell=self.words.append, clock=lambda: self.now)
        pool.turn()
        return pool

    def call_of(self, worker: str) -> Call:
        """What a worker is at, out of the open calls."""
        call = next(call for call in self.calls if call.worker == worker)
        self.calls.remove(call)
        return call

    def answer(self, call: Call, result: Any = None) -> None:
        """A call comes back."""
        self._come.append(Answer(call.worker, call.ticket, Done(call.chunk.upper()) if result is None else result))

    def finish(self, worker: str, result: Any = None) -> None:
        """A worker is done with what it is at."""
        self.answer(self.call_of(worker), result)

    def raise_from(self, worker: str, error: Exception) -> None:
        """What a worker is at raises."""
        call = self.call_of(worker)
        self._come.append(Answer(worker, call.ticket, error=error))

    def lose(self, worker: str, words: str = "the node is gone") -> None:
        """A worker dies at what it is at."""
        call = self.call_of(worker)
        self._come.append(Answer(worker, call.ticket, error=RuntimeError(words), is_loss=True))

    def at(self) -> dict[str, Any]:
        """Worker → what it is at, as far as calls are open."""
        return {call.worker: call.chunk for call in self.calls}
