"""Which weights were the best: the score of a rollout is that of the weights that acted in it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rlhfkit.errors import CheckpointError
from rlhfkit.rollout.experience import Experience
from rlhfkit.training.checkpoint import Checkpoints, HasParameters, Taken, load_trainable, subset
from rlhfkit.training.reactions import Watch, weights_of

__all__ = ["Ranked", "end_with_best"]


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
        self.ref_kl = None if experience.ref_kl is None else float(experience.ref_kl.mean())

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
) -> str:
    """Put back the best weights of a training that was stopped, and say which they are."""
    if watch.best is None:
        return "none of its weights were ranked before, so they are the last ones"
    try:
        checkpoint = checkpoints.load_best()
    except CheckpointError as error:
        return f"the best weights are lost ({error}), so they are the last ones"
    if checkpoint is None or checkpoint.iteration != watch.best_iteration:
        return f"the best checkpoint, of iteration {watch.best_iteration}, is lost, so they are the last ones"
    load_trainable(policy, subset("policy", checkpoint.tensors))
    if put_back_statistics is not None:
        put_back_statistics(dict(subset("rollout", checkpoint.tensors)))
    return f"the weights are {weights_of(checkpoint.iteration)}, the best before that"
