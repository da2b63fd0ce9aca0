"""A training that goes on an iteration at a time, whenever somebody's loop asks for the next one."""

import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager

from rlhfkit.errors import TrainingError
from rlhfkit.machine.interrupts import interrupts_wait
from rlhfkit.machine.progress import Progress, StageProgress
from rlhfkit.training.ppo import PpoTrainer

__all__ = ["Steps", "Training"]

Steps = Callable[[StageProgress, Callable[[], bool]], Generator[dict[str, float]]]
"""What `training.ppo.iterations` gives, for whoever follows each iteration, and whether an interrupt has come."""


class Training:
    """The iterations of one trainer, with what stands around each of them and comes after the last one."""

    def __init__(
        self,
        trainer: PpoTrainer,
        steps: Steps,
        *,
        name: str,
        progress: Progress,
        around: Callable[[], AbstractContextManager[object]],
        finish: Callable[[], None],
    ) -> None:
        """Ready for the first iteration that is left; `finish` is called after the last, and at once if none is."""
        self.trainer, self.name, self.progress = trainer, name, progress
        self.history: list[dict[str, float]] = []
        """Metrics of the iterations of this object, in order."""
        self._around, self._finish = around, finish
        self._bar: StageProgress | None = None
        self._fault: BaseException | None = None
        self._has_come: Callable[[], bool] = lambda: False
        followed = StageProgress(self.total, "iteration", trainer.iteration, time.monotonic, self._tell, progress.warn)
        self._steps = steps(followed, lambda: self._has_come())
        if trainer.is_done:
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
                f"iteration {self.trainer.iteration} failed ({self._fault}), and left the trainer in the middle of "
                "it; make a new trainer: with run_dir it goes on from its last checkpoint"
            ) from self._fault
        if self.trainer.is_done:
            raise StopIteration
        try:
            with self._around(), interrupts_wait("this iteration") as self._has_come:
                metrics = next(self._steps)
                self.history.append(metrics)
                if self.trainer.is_done:
                    self._end()
        except BaseException as error:
            self._fault = error
            raise
        if self._has_come():
            raise KeyboardInterrupt
        return metrics

    def train(self) -> None:
        """All iterations that are left, with a progress bar. Raises: as `step`."""
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

    def _tell(self, stage: StageProgress) -> None:
        if self._bar is not None and stage.completed > self._bar.completed:
            self._bar.advance(stage.completed - self._bar.completed, stage.detail)

    def _end(self) -> None:
        for _ in self._steps:  # which puts back the best weights where the training was stopped
            pass
        self._finish()
