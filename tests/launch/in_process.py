"""Workers of this process in the place of Ray's: the same objects, called one after the other."""

import time
from collections.abc import Callable
from typing import Any

from rlhfkit.errors import LostRankError
from rlhfkit.launch.pool import Answer

__all__ = ["Here"]


class Here:
    """A transport whose workers work when somebody waits for answers; the `dead` ones are lost instead."""

    def __init__(self, **workers: Any) -> None:
        self.workers = workers
        self.dead: set[str] = set()
        self.restarted: list[str] = []
        self.tables: list[dict[str, Any]] = []
        self.on_work: Callable[[str], None] = lambda worker: None
        self._given: list[tuple[str, int, Any]] = []

    def members(self) -> list[str]:
        return list(self.workers)

    def give(self, worker: str, ticket: int, chunk: Any) -> None:
        self._given.append((worker, ticket, chunk))

    def answers(self, seconds: float) -> list[Answer]:
        given, self._given = self._given, []
        if not given:
            time.sleep(min(seconds, 0.01))
        return [self._answer(*each) for each in given]

    def _answer(self, worker: str, ticket: int, chunk: Any) -> Answer:
        self.on_work(worker)
        if worker in self.dead:
            return Answer(worker, ticket, error=LostRankError("it is dead"), is_loss=True)
        try:
            return Answer(worker, ticket, self.workers[worker].work(chunk))
        except Exception as error:
            return Answer(worker, ticket, error=error)

    def restart(self, worker: str) -> None:
        self.restarted.append(worker)

    def publish(self, table: dict[str, Any]) -> None:
        self.tables.append(table)
