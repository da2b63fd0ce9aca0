"""Constraints on PPO: for each a multiplier, which rises while it is broken, and the reward that comes of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from rlhfkit.errors import ConfigError, ShapeError, TrainingError
from rlhfkit.ppo.masked import at_least_float32

__all__ = ["Lagrangian", "Multiplier", "constrained_scores"]


@dataclass(frozen=True)
class Multiplier:
    """What a constraint has come to; with it a stopped run goes on as if it had not been stopped."""

    value: float = 0.0
    """What a unit of excess costs, in units of the score: the lambda of the last rollout."""
    integral: float = 0.0
    """The part of it that has grown and fallen with the excess of all iterations."""
    mean_excess: float | None = None
    """Running mean of the excess; None before the first rollout."""
    scale: float | None = None
    """What a unit of excess is, in the constraint's own unit; None before the first rollout."""


@dataclass(frozen=True)
class Lagrangian:
    """The rule by which a multiplier moves: projected gradient ascent on the dual, with a damping term.

    excess    = (value - limit) / scale for "at most", (limit - value) / scale for "at least"
    m         = decay * m + (1 - decay) * mean excess of the rollout;                   m = mean excess in the first one
    integral  = clip(integral + learning_rate * m, 0, max_value)
    lambda    = clip(integral + damping * m, 0, max_value)

    The multiplier itself moves, not its logarithm: it comes to 0 where the constraint holds by itself, which then costs
    nothing, and it leaves 0 at once where it does not. Policy and integral are two integrators one behind the other,
    which swing; the damping term, proportional control, takes that out, as long as lambda is used for the very rollout
    that it follows from: used for the next one, it comes too late for a policy that moves fast.
    Source: Dai et al. 2023, arXiv 2310.12773 (Safe RLHF), eq. 11; Stooke et al. 2020, arXiv 2007.03964 (damping).
    """

    limit: float
    """What the mean of the constraint's values is held to."""
    is_upper: bool
    """Whether it may not be above the limit, rather than not below."""
    learning_rate: float
    """How fast the multiplier moves: per iteration, and unit of excess."""
    damping: float = 0.0
    """What the present excess adds to it."""
    decay: float = 0.0
    """Decay of the running mean of the excess."""
    max_value: float = 10.0
    """Cap of the multiplier."""
    initial_value: float = 0.0
    """The multiplier of the first rollout."""
    scale: float | None = None
    """What a unit of excess is; None for the deviation of the first rollout's values."""

    def __post_init__(self) -> None:
        if not 0 <= self.initial_value <= self.max_value:
            raise ConfigError(
                f"initial multiplier {self.initial_value:g}: expected 0 to the cap, {self.max_value:g}; set it between"
            )

    @property
    def initial(self) -> Multiplier:
        """The state before the first rollout."""
        return Multiplier(value=self.initial_value, integral=self.initial_value, scale=self.scale)

    def excess(self, values: Tensor, multiplier: Multiplier) -> Tensor:
        """By how much values (B,) break the constraint, in units of the scale; negative where they are within it."""
        over = at_least_float32(values) - self.limit
        return (over if self.is_upper else -over) / self.scale_of(values, multiplier)

    def scale_of(self, values: Tensor, multiplier: Multiplier) -> float:
        """The unit of the excess: given, or the deviation of the first rollout's values (1 if all are the same)."""
        return multiplier.scale or float(at_least_float32(values).std(correction=0)) or 1.0

    def next(self, multiplier: Multiplier, values: Tensor, *, adds_up: bool = True) -> Multiplier:
        """The state that follows from a rollout whose responses have `values` (B,); its `value` is for this rollout.

        Unless it `adds_up`, as while nothing can be corrected, the integral stays.
        Raises: TrainingError where a value is not finite.
        """
        scale = self.scale_of(values, multiplier)
        seen = float(self.excess(values, multiplier).mean())
        if not math.isfinite(seen):
            raise TrainingError(f"mean excess {seen} of a constraint: expected a finite number; look at its source")
        before = seen if multiplier.mean_excess is None else multiplier.mean_excess
        mean = self.decay * before + (1 - self.decay) * seen
        integral = self._clipped(multiplier.integral + adds_up * self.learning_rate * mean)
        value = self._clipped(integral + self.damping * mean)
        return replace(multiplier, value=value, integral=integral, mean_excess=mean, scale=scale)

    def _clipped(self, value: float) -> float:
        return min(max(value, 0.0), self.max_value)


def constrained_scores(scores: Tensor, excesses: Sequence[Tensor], multipliers: Sequence[float]) -> Tensor:
    """Scores (B,) less what the excesses (B,) of the constraints cost, on the scale of the scores.

    (scores - sum_i lambda_i * excess_i) / (1 + sum_i lambda_i)

    The division keeps the size of the advantages, and so the weight of the KL penalty, whatever the multipliers are. It
    is that of Safe RLHF, whose advantages are (A_r - lambda * A_c) / (1 + lambda): GAE is linear in rewards and values,
    so one critic of this reward gives the same advantages as one of the scores and one of each excess would.
    Raises: ShapeError.
    Source: Dai et al. 2023, arXiv 2310.12773, eq. 31.
    """
    total = at_least_float32(scores)
    for excess, multiplier in zip(excesses, multipliers, strict=True):
        if excess.shape != scores.shape:
            raise ShapeError(f"excess {tuple(excess.shape)}: expected that of the scores, {tuple(scores.shape)}")
        total = total - multiplier * excess
    return total / (1 + sum(multipliers))
