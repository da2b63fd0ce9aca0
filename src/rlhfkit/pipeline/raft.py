"""The stage `raft`: the SFT model learns the best of its own responses, by the reward that PPO maximises."""

from typing import Any

from rlhfkit.distributed.ranks import ranks
from rlhfkit.machine.seeding import derive_seed
from rlhfkit.pipeline.context import RunContext
from rlhfkit.pipeline.memory import fitted_supervised, peak_noted
from rlhfkit.pipeline.on_the_way import evaluation_of
from rlhfkit.pipeline.parted import part_trained
from rlhfkit.pipeline.supervised import warn_of_few
from rlhfkit.rollout.engine import sample_of
from rlhfkit.training.raft import train_raft
from rlhfkit.training.rates import announced_supervised

__all__ = ["raft"]


def raft(ctx: RunContext) -> dict[str, Any]:
    """The SFT model, the reward and prompts → `raft/`."""
    recipe, config = ctx.recipe, ctx.recipe.raft
    source = ctx.builder.starting_point()
    model = ctx.builder.language_model(source, trainable=True)
    ctx.tell_notes()
    ctx.try_saving("raft", model.save)
    prompts = ctx.prompts("prompts", model.encoder)
    warn_of_few(ctx, "raft", len(prompts), config, minibatch_rows=config.minibatch_prompts, unit="prompts")
    config = announced_supervised(config, model, "raft", stage="raft", progress=ctx.progress, manifest=ctx.manifest)
    evaluate = evaluation_of(ctx, "raft", model)  # before memory is planned, as the reward: both may be models
    reward = ctx.workload.reward(lambda: ctx.builder.reward(recipe.reward), ctx.builder)
    longest = max(len(prompt.ids) for prompt in prompts) + recipe.rollout.max_response_tokens
    fitted = fitted_supervised(
        ctx, "raft", model, config, longest=longest, minibatch_tokens=config.minibatch_prompts * longest
    )
    lesson, fitted = ctx.workload.lesson("raft", prompts, fitted, minibatch_rows=config.minibatch_prompts)
    sampler = ctx.builder.sampler_of(None) if ranks().shards else None
    part_trained(model, what="policy", seed=derive_seed(recipe.seed, "raft"))
    with peak_noted(ctx, "raft"):
        metrics = train_raft(
            model,
            lesson,
            fitted,
            reward=reward,
            rollout=recipe.rollout,
            sample=lambda: sample_of(sampler, model),
            stage="raft",
            evaluate=evaluate,
            **ctx.training("raft"),
        )
    ctx.save_model("raft", model, build=lambda: ctx.builder.language_model(source, trainable=True))
    return {**metrics, "num_prompts": len(prompts)}
