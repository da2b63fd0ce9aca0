"""Who looks at a training while it runs, as an evaluation on the way does, and changes no bit of it."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from rlhfkit.machine.seeding import capture_rng, restore_rng
from rlhfkit.machine.watchdog import phase
from rlhfkit.rollout.experience import Experience

if TYPE_CHECKING:
    from rlhfkit.training.ppo import PpoTrainer

__all__ = ["OBSERVING_SECONDS", "Observer", "observed"]

OBSERVING_SECONDS = "time/observing_seconds"
"""What the observers took in an iteration; `time/iteration_seconds` is without it."""


class Observer(Protocol):
    """Looks at every iteration twice, and returns further metrics of it, most often none.

    It may sample and score as it likes, by seeds of its own: the global random generators are put back. It must leave
    weights, optimizers and rollout as they are. Of several processes all call it alike, and it returns the same on
    each; `log.write_observation` writes on the first alone. `trainer.iteration` is the iteration that is looked at.
    """

    def before_update(self, trainer: "PpoTrainer", experience: Experience) -> Mapping[str, float]:
        """After the rollout, while the policy has the weights that acted in it: what `score/mean` is of."""
        ...

    def after_update(self, trainer: "PpoTrainer", experience: Experience) -> Mapping[str, float]:
        """After the update, when the policy has learnt from the experience."""
        ...


def observed(
    looks: Iterable[Callable[["PpoTrainer", Experience], Mapping[str, float]]],
    trainer: "PpoTrainer",
    experience: Experience,
) -> dict[str, float]:
    """What each of `looks` tells of an iteration, and the seconds they took, if any look."""
    looks = list(looks)
    if not looks:
        return {}
    start, rng, metrics = time.perf_counter(), capture_rng(), dict[str, float]()
    try:
        with phase("evaluation"):
            for look in looks:
                metrics |= look(trainer, experience)
    finally:
        restore_rng(rng)
    return {**metrics, OBSERVING_SECONDS: time.perf_counter() - start}
