"""Microbatches that memory has room for; what was predicted and what was taken stand in the manifest."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch

from rlhfkit.config.ppo import PpoConfig
from rlhfkit.config.recipe import Recipe
from rlhfkit.config.stages import Stage
from rlhfkit.config.training import LoopConfig
from rlhfkit.distributed.ranks import ranks
from rlhfkit.machine.device import PeakMeter
from rlhfkit.models.language import LanguageModel, TextPolicy
from rlhfkit.models.reward_model import RewardModel
from rlhfkit.pipeline.context import RunContext
from rlhfkit.pipeline.parted import part_policy
from rlhfkit.rollout.text import TextRollout
from rlhfkit.training.memory import MemoryPlan, fits, plan_of_ppo, plan_of_supervised, tokens_that_fit
from rlhfkit.training.optim import Optimizer
from rlhfkit.training.ppo import Rollout, optimizers_for

__all__ = ["SPARE", "fitted_ppo", "fitted_supervised", "peak_noted"]

Supervised = TypeVar("Supervised", bound=LoopConfig)

SPARE = 1.1
"""Tokens of the fullest minibatch in those of a mean one, and what packing leaves empty."""


def fitted_ppo(
    ctx: RunContext, policy: TextPolicy, rollout: Rollout, config: PpoConfig
) -> tuple[PpoConfig, dict[str, Optimizer]]:
    """(the settings with a microbatch that memory has room for, optimizers); layers are computed twice where needed.

    Where weights are parted among the ranks, they are from here on.
    """
    recipe, wanted = ctx.workload.recipe_in_memory(ctx.recipe), config.microbatch_tokens
    # What a pass keeps is seen on whole layers, so before they are parted, and masters go with the parts.
    optimizers = None if ranks().shards else optimizers_for(policy, config, seed=ctx.recipe.seed)
    plan = _ppo_plan(policy, rollout, recipe)
    if ctx.recipe.model.gradient_checkpointing == "auto" and ranks().any(not fits(plan, ctx.builder.device, wanted)):
        ctx.progress.note("memory is short, so layers are computed a second time in the backward pass")
        policy.recompute_layers()
        plan = _ppo_plan(policy, rollout, recipe)
    if optimizers is None:
        part_policy(policy, has_value_optimizer=config.value_optim is not None, seed=ctx.recipe.seed)
        optimizers = optimizers_for(policy, config, seed=ctx.recipe.seed)
    tokens = _microbatch_tokens(ctx, "ppo", plan, wanted)
    return config.model_copy(update={"microbatch_tokens": tokens}), optimizers


def _ppo_plan(policy: TextPolicy, rollout: Rollout, recipe: Recipe) -> MemoryPlan:
    """The memory that PPO needs under the settings of `recipe`."""
    if isinstance(rollout, TextRollout) and rollout.prompts:
        prompt_tokens = max(len(prompt.ids) for prompt in rollout.prompts)
    else:  # an episode may fill the context, and so may prompts that are still to come
        most = recipe.data.prompt_limit + recipe.rollout.max_response_tokens
        context = policy.language_model.context_tokens or most
        prompt_tokens = context - recipe.rollout.max_response_tokens
    plan = plan_of_ppo(policy, prompt_tokens=prompt_tokens, rollout=recipe.rollout, ppo=recipe.ppo)
    return plan.parted(policy) if ranks().shards else plan


def fitted_supervised(
    ctx: RunContext,
    stage: Stage,
    model: LanguageModel | RewardModel,
    config: Supervised,
    *,
    longest: int,
    minibatch_tokens: int,
) -> Supervised:
    """The same for a supervised stage, whose rows have at most `longest` tokens."""
    plan = plan_of_supervised(model, longest=longest, minibatch_tokens=max(longest, minibatch_tokens))
    plan = plan.parted(model) if ranks().shards else plan
    return config.model_copy(
        update={"microbatch_tokens": _microbatch_tokens(ctx, stage, plan, config.microbatch_tokens)}
    )


def _microbatch_tokens(ctx: RunContext, stage: Stage, plan: MemoryPlan, wanted: int | Literal["auto"]) -> int:
    # A run that goes on keeps what it began with: other microbatches would add up in another order.
    before = ctx.manifest.stage(stage).get("memory", {}).get("microbatch_tokens")
    tokens = (before or _fitting_all(plan, ctx)) if wanted == "auto" else wanted
    ctx.manifest.add_stage(stage, memory=plan.as_facts(tokens))
    ctx.workload.check_memory(stage, plan, tokens, ctx.builder)
    return tokens


def _fitting_all(plan: MemoryPlan, ctx: RunContext) -> int:
    """What fits on every rank, so that all add up alike."""
    return min(ranks().gather(tokens_that_fit(plan, ctx.builder.device)))


@contextmanager
def peak_noted(ctx: RunContext, stage: Stage) -> Iterator[None]:
    """The block trains; what it took is noted beside what was predicted."""
    peak = PeakMeter(ctx.builder.device)
    yield
    memory, measured = ctx.manifest.stage(stage)["memory"], peak.bytes()
    ctx.manifest.add_stage(stage, memory={**memory, "measured_peak_bytes": measured})
    if ranks().size > 1:
        ctx.manifest.add_stage(stage, ranks=ranks().gather(_facts_of_rank(ctx, measured)))


def _facts_of_rank(ctx: RunContext, peak_bytes: int | None) -> dict[str, Any]:
    """Where a rank was, and what it took."""
    return {
        "rank": ranks().rank,
        "host": socket.gethostname(),
        "device": str(ctx.builder.device),
        "num_threads": torch.get_num_threads(),
        "measured_peak_bytes": peak_bytes,
    }
