"""Which weights were the best: the score of a rollout is that of the weights that acted in it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rlhfkit.errors import CheckpointError
from rlhfkit.rollout.experience import Experience
from rlhfkit.training.checkpoint import Checkpoints, HasParameters, Taken, load_trainable, subset
from rlhfkit.training.ema import Ema
from rlhfkit.training.reactions import Watch, weights_of

__all__ = ["Kept", "Ranked", "end_with_best"]


@dataclass(frozen=True, slots=True)
class Kept:
    """The weights that a training ends with, where they need not be the last ones."""

    iterations: int | None
    """Those that they have behind them; None for the last ones."""
    words: str

    def as_facts(self) -> dict[str, str | int | None]:
        """For the record of the stage."""
        return {"kept": self.words, "kept_iterations": self.iterations}


@dataclass
class Ranked:
    """What the weights that acted in an iteration are worth; called between its rollout and its update."""

    watch: Watch
    measure: Callable[[], float] | None
    """As `PpoTrainer.measure`."""
    worth: float | None = None
    ref_kl: float | None = None

    def __call__(self, experience: Experience) -> None:
        """Look at what the weights made."""
        self.worth = self.watch.worth(experience, self.measure)
        self.ref_kl = self.watch.distance(experience)

    def keep_if_best(self, iteration: int, taken: Taken | None, checkpoints: Checkpoints) -> None:
        """Rank the checkpoint of these weights; `taken`, where it is not on the disk yet.

        Where nothing goes back to the best weights, each checkpoint gets its rank, for whoever looks at them.
        """
        worth = self.worth
        if self.watch.keeps_best:
            worth = self.watch.rank(iteration, worth, self.ref_kl)
        if worth is None:
            return
        if taken is None:
            checkpoints.rank(iteration, worth)
        else:
            checkpoints.write(taken, best=worth)


def end_with_best(
    watch: Watch,
    policy: HasParameters,
    checkpoints: Checkpoints,
    put_back_statistics: Callable[[dict[str, Tensor]], None] | None,
    *,
    of_which: str,
    ema: Ema | None = None,
) -> Kept:
    """Put back the best weights, where training has ended, and say which they are; `of_which` says what the best is.

    The average goes back with them: later weights are not in it either.
    """
    if watch.best is None:
        return Kept(None, "none of its weights were ranked before, so they are the last ones")
    try:
        checkpoint = checkpoints.load_best()
    except CheckpointError as error:
        return Kept(None, f"the best weights are lost ({error}), so they are the last ones")
    if checkpoint is None or checkpoint.iteration != watch.best_iteration:
        lost = f"the best checkpoint, of iteration {watch.best_iteration}, is lost, so they are the last ones"
        return Kept(None, lost)
    load_trainable(policy, subset("policy", checkpoint.tensors))
    if ema is not None:
        ema.load_state(subset("ema", checkpoint.tensors))
    if put_back_statistics is not None:
        put_back_statistics(dict(subset("rollout", checkpoint.tensors)))
    return Kept(checkpoint.iteration, f"the weights are {weights_of(checkpoint.iteration)}, the best {of_which}")
