"""The stage `dpo`: the SFT model learns from the preferences of the reward model, without one."""

from typing import Any

from rlhfkit.machine.seeding import derive_seed
from rlhfkit.padding import largest_microbatch
from rlhfkit.pipeline.context import RunContext
from rlhfkit.pipeline.memory import fitted_supervised, peak_noted
from rlhfkit.pipeline.on_the_way import evaluation_of
from rlhfkit.pipeline.parted import part_trained
from rlhfkit.pipeline.reward_model import training_pairs
from rlhfkit.pipeline.supervised import warn_of_few, within_context
from rlhfkit.training.dpo import encode_dpo_pairs, ref_logprobs_of, train_dpo
from rlhfkit.training.rates import announced_supervised

__all__ = ["dpo"]


def dpo(ctx: RunContext) -> dict[str, Any]:
    """The SFT model and preferences → `dpo/`."""
    recipe, config = ctx.recipe, ctx.recipe.dpo
    preferences = training_pairs(ctx, "dpo")
    model = ctx.builder.language_model(ctx.builder.starting_point(), trainable=True)
    ctx.tell_notes()
    ctx.try_saving("dpo", model.save)
    pairs, num_cut = encode_dpo_pairs(
        preferences,
        model.encoder,
        max_prompt_tokens=recipe.data.prompt_limit,
        max_tokens=within_context(config.max_tokens, model),
    )
    num_equal = sum(pair.chosen == pair.rejected for pair in pairs)
    if num_cut:
        ctx.progress.note(f"{num_cut} of {len(preferences)} preferences were cut to fit")
    if num_equal:
        ctx.progress.note(f"{num_equal} of {len(pairs)} pairs are of twice the same response, and teach nothing")
    warn_of_few(ctx, "dpo", len(pairs), config, minibatch_rows=config.minibatch_pairs, unit="pairs")
    config = announced_supervised(config, model, "dpo", stage="dpo", progress=ctx.progress, manifest=ctx.manifest)
    lengths = [2 * max(len(pair.chosen), len(pair.rejected)) for pair in pairs]  # both sides go in one pass
    evaluate = evaluation_of(ctx, "dpo", model)  # before memory is planned, for the reference may be a model of its own
    fitted = fitted_supervised(
        ctx,
        "dpo",
        model,
        config,
        longest=max(lengths, default=2) // 2,
        minibatch_tokens=largest_microbatch(lengths, rows=config.minibatch_pairs, device=model.device),
    )
    lesson, fitted = ctx.workload.lesson("dpo", pairs, fitted, minibatch_rows=config.minibatch_pairs)
    part_trained(model, what="policy", seed=derive_seed(recipe.seed, "dpo"))
    with ctx.progress.stage("reference", total=len(lesson), unit="pair") as progress:
        ref_logprobs = ref_logprobs_of(model, lesson, max_tokens=fitted.tokens_per_pass, on_finished=progress.advance)
    with peak_noted(ctx, "dpo"):
        metrics = train_dpo(model, lesson, ref_logprobs, fitted, stage="dpo", evaluate=evaluate, **ctx.training("dpo"))
    source = ctx.builder.starting_point()
    ctx.save_model("dpo", model, build=lambda: ctx.builder.language_model(source, trainable=True))
    return {**metrics, "num_pairs": len(preferences), "num_cut": num_cut, "num_equal": num_equal}
