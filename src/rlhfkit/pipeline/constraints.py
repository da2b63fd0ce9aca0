"""The constraints of PPO as a recipe describes them, with the sources that give their values."""

from rlhfkit.models.frozen_layers import Stem
from rlhfkit.pipeline.context import RunContext
from rlhfkit.rollout.constraints import Constraint
from rlhfkit.training.ppo import constraint_rule

__all__ = ["constraints_of"]


def constraints_of(ctx: RunContext, *, stem: Stem | None = None) -> list[Constraint]:
    """What PPO holds to a limit, in the recipe's order; a reward model begins with `stem` where it can."""
    return [
        Constraint(each.name, ctx.builder.reward(each.source, stem=stem), constraint_rule(each))
        for each in ctx.recipe.ppo.constraints
    ]
