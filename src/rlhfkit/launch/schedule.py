"""Which sampler does which chunk: decisions alone, from what has happened and what time it is."""

import statistics
from collections import deque
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["Schedule"]

Key = TypeVar("Key", bound=Hashable)

REMEMBERED = 256
"""Chunks whose times make the median."""
MOST_AT_ONCE = 2
"""Samplers that a chunk is given to at the same time."""


@dataclass
class _Task:
    """A chunk that is not done."""

    since: dict[str, float] = field(default_factory=dict)
    """Sampler that is at it → when it began."""


class Schedule(Generic[Key]):
    """The chunks that are not done, in order, and who is at which."""

    def __init__(self, *, slow_factor: float) -> None:
        """Give a chunk to another sampler too once it has taken `slow_factor` times the median."""
        self._slow_factor = slow_factor
        self._tasks: dict[Key, _Task] = {}
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)

    def __len__(self) -> int:
        """How many are not done."""
        return len(self._tasks)

    @property
    def num_waiting(self) -> int:
        """How many nobody is at."""
        return sum(not task.since for task in self._tasks.values())

    @property
    def median_seconds(self) -> float | None:
        """What a chunk takes; None before the first is done."""
        return statistics.median(self._seconds) if self._seconds else None

    def add(self, keys: Iterable[Key]) -> None:
        """Further chunks, after those that are there."""
        self._tasks.update((key, _Task()) for key in keys)

    def drop(self, keys: Collection[Key]) -> None:
        """Nobody wants these any more."""
        for key in keys:
            self._tasks.pop(key, None)

    def assign(self, idle: Sequence[str], now: float) -> list[tuple[str, Key]]:
        """What the samplers that have nothing to do begin now: what waits first, then what is slow elsewhere."""
        given = []
        for worker, key in zip(idle, self._wanted(now), strict=False):
            self._tasks[key].since[worker] = now
            given.append((worker, key))
        return given

    def finished(self, worker: str, key: Key, now: float) -> bool:
        """Whether this answer is the first, so that it counts."""
        task = self._tasks.pop(key, None)
        if task is None:
            return False
        if worker in task.since:
            self._seconds.append(now - task.since[worker])
        return True

    def lost(self, worker: str) -> list[Key]:
        """The chunks of a sampler that is no more, which wait again in their old places."""
        found = [key for key, task in self._tasks.items() if worker in task.since]
        for key in found:
            del self._tasks[key].since[worker]
        return found

    def _wanted(self, now: float) -> Iterator[Key]:
        """What may be begun now; no further than somebody asks, as that is at every answer."""
        yield from (key for key, task in self._tasks.items() if not task.since)
        yield from self._slow(now)

    def _slow(self, now: float) -> list[Key]:
        """Those that take too long, the one that began first before the others."""
        if not self._seconds:
            return []
        limit = self._slow_factor * statistics.median(self._seconds)
        slow = [
            (min(task.since.values()), place, key)
            for place, (key, task) in enumerate(self._tasks.items())
            if 0 < len(task.since) < MOST_AT_ONCE and now - min(task.since.values()) > limit
        ]
        return [key for _, _, key in sorted(slow, key=lambda entry: entry[:2])]
