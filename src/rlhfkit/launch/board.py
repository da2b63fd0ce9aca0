"""Where driver and trainers leave word for each other; an actor without CPUs."""

import time
from dataclasses import dataclass, field
from typing import Any

__all__ = ["SAMPLERS", "SCORERS", "Board", "News", "Orders"]

SAMPLERS, SCORERS = "sampler", "reward-worker"
"""What the names of workers begin with."""


START_SECONDS = 300.0
"""Time for the first trainer to read its libraries before its silence counts."""


@dataclass(frozen=True)
class Orders:
    """What the driver wants."""

    workers: tuple[str, ...] = ()
    """Names of the actors that sample or score."""
    stop: bool = False
    """Whether the trainers shall save and end."""


@dataclass
class News:
    """What the trainers say, since the driver asked last."""

    lines: list[str] = field(default_factory=list)
    """For the user."""
    table: dict[str, Any] = field(default_factory=dict)
    """How the workers are."""
    iteration: int = 0
    """Iterations of PPO that are complete."""
    silent_seconds: float | None = None
    """Since the first trainer gave a sign of life; None while it has time to start."""


class Board:
    """Keeps the last word of each side. What is on it is said again, so that the loss of it costs nothing."""

    def __init__(self) -> None:
        self._orders: Orders | None = None
        self._news = News()
        self._beat = time.monotonic() + START_SECONDS

    def order(self, orders: Orders) -> None:
        """The driver's word."""
        self._orders = orders

    def beat(self, lines: list[str], table: dict[str, Any], iteration: int) -> Orders | None:
        """The first trainer's word, and that it lives; what the driver wants, None before it has said so."""
        self._beat = time.monotonic()
        self._news.lines += lines
        self._news.table, self._news.iteration = table, iteration
        return self._orders

    def begin(self) -> None:
        """New trainers start, which takes its time."""
        self._beat = time.monotonic() + START_SECONDS

    def news(self) -> News:
        """For the driver; lines are handed out once."""
        news, self._news = self._news, News(table=self._news.table, iteration=self._news.iteration)
        silent = time.monotonic() - self._beat
        news.silent_seconds = silent if silent >= 0 else None
        return news
