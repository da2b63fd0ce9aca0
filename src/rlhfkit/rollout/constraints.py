"""The constraints of a rollout: what they say of its responses, and the score that PPO learns from instead."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from rlhfkit.machine.watchdog import phase
from rlhfkit.ppo import Lagrangian, Multiplier, constrained_scores
from rlhfkit.rewards.source import RewardSource, ScoredText, check_scores

__all__ = ["Constraint", "Moves", "constrained", "constraint_values"]

Moves = Callable[[Sequence[Tensor]], Sequence[Multiplier]]
"""The multipliers of a rollout, by what each constraint says of its responses."""


@dataclass(frozen=True)
class Constraint:
    """A further reward with a limit."""

    name: str
    """What curves and metrics call it."""
    source: RewardSource
    rule: Lagrangian


def constraint_values(constraints: Sequence[Constraint], episodes: Sequence[ScoredText]) -> tuple[Tensor, ...]:
    """What each constraint says of the responses (N,), in its own unit.

    Raises: RewardError where a source fails.
    """
    with phase("reward"):
        return tuple(
            check_scores(constraint.source.score(episodes), episodes, source=f"the constraint {constraint.name!r}")
            for constraint in constraints
        )


def constrained(
    scores: Tensor, constraints: Sequence[Constraint], values: Sequence[Tensor], multipliers: Sequence[Multiplier]
) -> tuple[Tensor, float, dict[str, float]]:
    """(scores (N,) less what the constraints cost, what the highest multipliers would charge for the mean, metrics).

    The second number does not move with the multipliers, so that weights of different iterations can be ranked by it.
    """
    excesses, charge, metrics = [], 0.0, {}
    for constraint, value, multiplier in zip(constraints, values, multipliers, strict=True):
        excess = constraint.rule.excess(value.to(scores.device), multiplier)
        charge += constraint.rule.max_value * max(0.0, float(excess.mean()))
        metrics[f"constraint/{constraint.name}/mean"] = float(value.mean())
        metrics[f"constraint/{constraint.name}/multiplier"] = multiplier.value
        excesses.append(excess)
    if not excesses:
        return scores, 0.0, {}
    return constrained_scores(scores, excesses, [multiplier.value for multiplier in multipliers]), charge, metrics
