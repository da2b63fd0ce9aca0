"""The coefficient of the entropy bonus that steers the entropy to a target."""

import math
from dataclasses import dataclass

from rlhfkit.errors import ConfigError, TrainingError

__all__ = ["AdaptiveEntropy"]


@dataclass(frozen=True)
class AdaptiveEntropy:
    """Coefficient of the entropy bonus that rises while the entropy is below its target, and falls while above.

    error  = clip(1 - observed_entropy / target, -1, 1)
    level  = clip(level * exp(rate * error))            level = initial_coef before the first rollout
    coef   = clip(level * exp(damping * error))         clip: to initial_coef / reach ... initial_coef * reach

    All moves are factors, as those of the adaptive KL coefficient, so that it is never negative; the bounds keep it
    within reach of where it began, however long the target cannot be met. Entropy and level are two integrators one
    behind the other, which swing; the damping term, proportional control, takes that out, as long as the coefficient is
    used for the very rollout that it follows from.
    Source: Haarnoja et al. 2018, arXiv 1812.05905, eq. 18, in the logarithm of the coefficient; relative error and its
    bound: Ziegler et al. 2019, arXiv 1909.08593, section 2.2; damping: Stooke et al. 2020, arXiv 2007.03964.
    """

    initial_coef: float
    """Bonus per nat at the start, where the entropy is at its target."""
    target: float
    """Wanted entropy, in nats per token."""
    rate: float = 0.1
    """How far log(level) moves in an iteration whose entropy is 0, or twice the target or more."""
    damping: float = 2.0
    """How far log(coef) is then from log(level)."""
    reach: float = 100.0
    """Both stay between initial_coef / reach and initial_coef * reach."""

    def __post_init__(self) -> None:
        for name in ("initial_coef", "target", "rate"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name} {value}: expected a finite number above 0; set a positive one")
        if not (self.damping >= 0 and math.isfinite(self.damping)):
            raise ConfigError(f"damping {self.damping}: expected 0 or more; a negative one would make it swing")
        if not self.reach > 1:
            raise ConfigError(f"reach {self.reach}: expected more than 1; the coefficient could not move")

    def next(self, level: float, observed_entropy: float) -> float:
        """The level that follows from a rollout whose mean entropy over tokens is `observed_entropy`, in nats.

        Raises: TrainingError if the entropy is not finite.
        """
        return self._clipped(level * math.exp(self.rate * self._error(observed_entropy)))

    def coef(self, level: float, observed_entropy: float) -> float:
        """The coefficient for the update on that very rollout, by the level that follows from it. Raises: as `next`."""
        return self._clipped(level * math.exp(self.damping * self._error(observed_entropy)))

    def _error(self, observed_entropy: float) -> float:
        if not math.isfinite(observed_entropy):
            raise TrainingError(
                f"observed_entropy {observed_entropy}: expected a finite number; look for NaN in the logits"
            )
        return min(max(1 - observed_entropy / self.target, -1.0), 1.0)

    def _clipped(self, coef: float) -> float:
        return min(max(coef, self.initial_coef / self.reach), self.initial_coef * self.reach)
