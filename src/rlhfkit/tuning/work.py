"""Who does the work of a study: so many runs at a time, in this process; others may work on the same study."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from rlhfkit.errors import TrainingError
from rlhfkit.tuning.journal import locked_study
from rlhfkit.tuning.ledger import BASE
from rlhfkit.tuning.study import Study, Waiting

__all__ = ["Work"]

LOOK_SECONDS = 0.3
"""Between two looks whether what others work on is done."""


class Work:
    """A process's part in a study."""

    def __init__(self, study: Study, *, after_each: Callable[[], None] = lambda: None) -> None:
        """`after_each` is called, while nobody else decides, whenever something was noted."""
        self._study, self._after_each = study, after_each
        self._stop = threading.Event()

    def do(self, jobs: int) -> bool:
        """What is left, so many runs at a time; whether it was done to its end.

        Raises: TrainingError where what all runs share, or the recipe as it is, cannot be made.
        """
        study = self._study
        with locked_study(study.directory):
            for name in study.claims.end_orphans():
                study.tell(f"{name}: goes on where its search was killed")
        self._prepare()
        with ThreadPoolExecutor(jobs) as pool:
            workers = [pool.submit(self._one_after_the_other) for _ in range(jobs)]
            try:
                for worker in workers:
                    worker.result()
            finally:
                if any(not worker.done() or worker.exception() for worker in workers):
                    self.stop()
        return not self._stop.is_set()

    def stop(self) -> None:
        """Have what runs save and end, and begin nothing further."""
        self._stop.set()
        self._study.runner.interrupt()

    def _prepare(self) -> None:
        """What all runs share; of several processes one makes it, and the others wait."""
        study = self._study
        while not self._stop.is_set() and not study.ledger.has_base():
            with locked_study(study.directory):
                claim = study.claims.take(BASE)
            if claim is None:
                time.sleep(LOOK_SECONDS)
                continue
            with claim:
                outcome = study.runner.prepare(claim)
                with locked_study(study.directory):
                    study.ledger.write(BASE, BASE, outcome)
                    self._after_each()
            if outcome.state == "failed":
                raise TrainingError(f"what all trials share cannot be made: {outcome.cause}")
            if outcome.state == "interrupted":
                self._stop.set()
            return

    def _one_after_the_other(self) -> None:
        """Runs, until nothing is left that may be begun."""
        study = self._study
        while not self._stop.is_set():
            with locked_study(study.directory):
                following = study.following()
            if following is None:
                return
            if isinstance(following, Waiting):
                time.sleep(LOOK_SECONDS)
                continue
            job, claim = following
            with claim:
                outcome = study.runner.advance(job, claim)
                if outcome.state == "interrupted":
                    self._stop.set()
                    return
                with locked_study(study.directory):
                    study.note(job, outcome)
                    self._after_each()
