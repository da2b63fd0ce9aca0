"""Who samples and scores: workers that start, are up, or leave; how many of each kind is up to the user."""

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Crew"]

LEAVING_SECONDS = 5.0
"""So long after it was taken from the list of names a worker is ended: by then nobody waits for what it is at."""


class Crew:
    """The driver's workers by name. A name is never given again, so that no event is taken for another worker's."""

    def __init__(
        self,
        *,
        start: Callable[[str, str], Any],
        is_up: Callable[[Any], bool],
        end: Callable[[Any], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`start(name, kind)` gives a worker that is on its way; `is_up` and `end` are given such a one."""
        self._start, self._is_up, self._end, self._clock = start, is_up, end, clock
        self._workers: dict[str, Any] = {}
        self._kinds: dict[str, str] = {}
        self._starting: dict[str, float] = {}
        """Name → since when."""
        self._leaving: list[tuple[float, Any]] = []
        self._numbers: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)

    def number(self, kind: str) -> int:
        """How many there are, or will be once they have started."""
        return sum(own == kind for own in self._kinds.values())

    def have(self, kind: str, num: int) -> None:
        """Have `num` workers of a kind from now on; of too many, those that are not up yet leave first."""
        own = [name for name, of in self._kinds.items() if of == kind]
        for _ in range(num - len(own)):
            name = f"{kind}-{next(self._numbers[kind])}"
            self._workers[name], self._kinds[name] = self._start(name, kind), kind
            self._starting[name] = self._clock()
        surplus = max(0, len(own) - num)
        newest_first = own[::-1]
        for name in sorted(newest_first, key=lambda name: name not in self._starting)[:surplus]:
            del self._kinds[name]
            self._starting.pop(name, None)
            self._leaving.append((self._clock() + LEAVING_SECONDS, self._workers.pop(name)))

    def look(self) -> None:
        """See who has started, and end those that have left."""
        for name in list(self._starting):
            if self._is_up(self._workers[name]):
                del self._starting[name]
        now = self._clock()
        for at, worker in self._leaving:
            if at <= now:
                self._end(worker)
        self._leaving = [(at, worker) for at, worker in self._leaving if at > now]

    def up(self) -> tuple[str, ...]:
        """Names of those that can be given work."""
        return tuple(name for name in self._workers if name not in self._starting)

    def starting(self, kind: str) -> dict[str, float]:
        """Name → seconds for which one of a kind has been starting, or waiting for room."""
        return {name: self._clock() - since for name, since in self._starting.items() if self._kinds[name] == kind}
