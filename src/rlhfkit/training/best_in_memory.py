"""Checkpoints of a training that leaves no files: only the best weights are kept, in memory."""

from pathlib import Path

from rlhfkit.training.checkpoint import Checkpoint, Checkpoints, Taken

__all__ = ["BestInMemory"]


class BestInMemory(Checkpoints):
    """The checkpoint with the highest rank; nothing goes on from another process, and nothing is on the disk."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        super().__init__(Path(), warn=lambda text: None, keep=0)
        self._best: tuple[Taken, float] | None = None

    def write(self, taken: Taken, *, best: float | None = None) -> None:
        """Keep what was taken if it is ranked; who ranks sees to it that it is the best so far."""
        if best is not None:
            self._best = taken, best

    def load_newest(self) -> Checkpoint | None:
        """None: a training in memory always begins."""
        return None

    def load_best(self) -> Checkpoint | None:
        """The best that was kept. The global random generators stay as they are."""
        if self._best is None:
            return None
        taken, best = self._best
        tensors = {name.removeprefix("stage/"): t for name, t in taken.tensors.items() if name.startswith("stage/")}
        return Checkpoint(taken.iteration, tensors, taken.record["state"], best)

    def drop_after(self, iteration: int) -> None:
        """Nothing to drop."""
