"""When workers were at chunks, and when the trainer waited for them: the last of it, for a picture."""

import threading
from collections import deque
from typing import Any

__all__ = ["MOST_SPANS", "Spans"]

MOST_SPANS = 1000
"""Of chunks, and of waiting; older ones are forgotten."""


class Spans:
    """Kept by a pool; the times are of its clock."""

    def __init__(self) -> None:
        self._work: deque[list[Any]] = deque(maxlen=MOST_SPANS)
        self._waits: deque[list[Any]] = deque(maxlen=MOST_SPANS)
        self._lock = threading.Lock()

    def worked(self, worker: str, iteration: int | None, start: float, end: float, *, is_lost: bool = False) -> None:
        """A worker was at a chunk; `is_lost` where nothing came of it."""
        with self._lock:
            self._work.append([worker, iteration, round(start, 3), round(end, 3), is_lost])

    def waited(self, iteration: int | None, start: float, end: float) -> None:
        """The trainer did nothing but wait."""
        with self._lock:
            self._waits.append(["trainer", iteration, round(start, 3), round(end, 3), False])

    def as_dict(self) -> dict[str, Any]:
        """All that is kept, and since when that is all there was; None: since ever."""
        with self._lock:
            work, waits = list(self._work), list(self._waits)
        whole_since = [spans[0][2] for spans in (work, waits) if len(spans) == MOST_SPANS]
        return {
            "whole_since": max(whole_since, default=None),
            "work": work,
            "waits": waits,
        }
