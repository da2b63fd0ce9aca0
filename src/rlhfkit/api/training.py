"""A training that goes on an iteration at a time, whenever somebody's loop asks for the next one."""

import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from rlhfkit.distributed.ranks import ranks
from rlhfkit.errors import TrainingError
from rlhfkit.machine.interrupts import interrupts_wait
from rlhfkit.machine.progress import Progress, StageProgress
from rlhfkit.training.ppo import PpoTrainer

__all__ = ["Steps", "Training"]

Steps = Callable[[StageProgress, Callable[[], bool]], Generator[dict[str, float]]]
"""What `training.ppo.iterations` gives, for whoever follows each iteration, and whether an interrupt has come."""

PLACES = ("stage", "iteration", "seed")
"""Columns of a log that say whose line it is."""


class Training:
    """The iterations of one trainer, with what stands around each of them and comes after the last one.

    What it is given must not hold the trainer object that a program has, which is closed once nobody holds that.
    """

    def __init__(
        self,
        trainer: PpoTrainer,
        steps: Steps,
        *,
        name: str,
        logged: Iterable[Mapping[str, float]],
        run_dir: Path | None,
        progress: Progress,
        around: Callable[[], AbstractContextManager[object]],
        finish: Callable[["Training"], None],
    ) -> None:
        """Ready for the first iteration that is left; `finish` is called after the last, and at once if none is.

        `logged` has the lines of earlier starts; `run_dir` is None where no files stay.
        """
        self.trainer, self.name, self.progress, self.run_dir = trainer, name, progress, run_dir
        self.history: list[dict[str, float]] = []
        """Metrics of all iterations that are complete, in order."""
        if trainer.iteration:
            self.history += [{key: row[key] for key in row if key not in PLACES} for row in logged]
        self._around, self._finish = around, finish
        self._has_said_so = False
        self._bar: StageProgress | None = None
        self._fault: BaseException | None = None
        self._has_come: Callable[[], bool] = lambda: False
        followed = StageProgress(self.total, "iteration", trainer.iteration, time.monotonic, self._tell, progress.warn)
        self._steps = steps(followed, lambda: self._has_come())
        if trainer.is_done:
            self._say_nothing_is_left()
            self._end()

    @property
    def total(self) -> int:
        """Iterations that the settings plan."""
        return self.trainer.config.iterations

    def step(self) -> dict[str, float]:
        """The metrics of the next iteration, once it is done.

        Raises: StopIteration where none is left; TrainingError where the one before failed; KeyboardInterrupt after
        Ctrl-C, once the iteration is complete.
        """
        if self._fault is not None:
            raise TrainingError(
                f"iteration {self.trainer.iteration} failed ({str(self._fault) or type(self._fault).__name__}), and "
                "left the trainer in the middle of it; make a new trainer: with run_dir it goes on from its last "
                "checkpoint"
            ) from self._fault
        if self.trainer.is_done:
            raise StopIteration
        then = "stopping; its metrics are in the trainer's history" if self.run_dir is None else "saving"
        try:
            with self._around(), interrupts_wait("this iteration", then=then, says=ranks().is_first) as self._has_come:
                metrics = next(self._steps)
                self.history.append(metrics)
                if self.trainer.is_done:
                    self._end()
        except BaseException as error:
            self._fault = error
            raise
        if ranks().any(self._has_come()):
            raise KeyboardInterrupt
        return metrics

    def train(self) -> None:
        """All iterations that are left, with a progress bar; where none is, one line says so. Raises: as `step`."""
        if self.trainer.is_done and self._fault is None:
            self._say_nothing_is_left()
            return
        with self.progress.stage(
            self.name, total=self.total, unit="iteration", completed=self.trainer.iteration
        ) as self._bar:
            try:
                while not self.trainer.is_done:
                    self.step()
            finally:
                self._bar = None

    def close(self) -> None:
        """Wait for what is being written; no iteration follows."""
        self._steps.close()

    def _say_nothing_is_left(self) -> None:
        if self._has_said_so:
            return
        self._has_said_so = True
        done = f"{self.trainer.iteration} of {self.total} iterations are done"
        if self.run_dir is None:
            remedy = "make a new trainer for more"
        else:
            done = f"{self.run_dir} holds this training, and {done}"
            remedy = "for more iterations, give another run_dir, or remove this one to start over"
        self.progress.note(f"{self.name}: nothing is left to train: {done}; {remedy}")

    def _tell(self, stage: StageProgress) -> None:
        if self._bar is not None and stage.completed > self._bar.completed:
            self._bar.advance(stage.completed - self._bar.completed, stage.detail)

    def _end(self) -> None:
        for _ in self._steps:  # which puts back the best weights where the training was stopped
            pass
        self._finish(self)
