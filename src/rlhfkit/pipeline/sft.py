"""The stages `pretrain` and `sft`: a language model learns from texts, then from demonstrations."""

from collections.abc import Sequence
from typing import Any, Literal

from rlhfkit.config.training import SftConfig
from rlhfkit.data import load_demonstrations, load_texts
from rlhfkit.machine.seeding import derive_seed
from rlhfkit.models.language import LanguageModel
from rlhfkit.pipeline.context import RunContext
from rlhfkit.pipeline.memory import SPARE, fitted_supervised, peak_noted
from rlhfkit.pipeline.parted import part_trained
from rlhfkit.pipeline.supervised import warn_of_few, within_context
from rlhfkit.training.rates import announced_supervised
from rlhfkit.training.sft import LearntText, encode_demonstrations, encode_texts, train_sft

__all__ = ["pretrain", "sft"]


def pretrain(ctx: RunContext) -> dict[str, Any]:
    """Random weights → `base/`."""
    texts = ctx.load("texts", load_texts).records
    model = ctx.builder.scratch_model(texts)
    ctx.try_saving("pretrain", model.save)
    max_tokens = within_context(ctx.recipe.pretrain.max_tokens, model)
    rows, _ = encode_texts(texts, model.encoder, max_tokens=max_tokens)
    metrics = _train(ctx, "pretrain", model, rows, ctx.recipe.pretrain)
    ctx.save_model("pretrain", model, build=lambda: ctx.builder.scratch_model(texts))
    return metrics


def sft(ctx: RunContext) -> dict[str, Any]:
    """The base model on demonstrations → `sft/`."""
    recipe, config = ctx.recipe, ctx.recipe.sft
    demonstrations = ctx.load("demonstrations", load_demonstrations).records
    source = ctx.builder.source_of()
    model = ctx.builder.language_model(source, trainable=True)
    ctx.tell_notes()
    ctx.try_saving("sft", model.save)
    ctx.manifest.add_model("start", source.path, template=model.encoder.template_hash)
    rows, num_cut, num_without_end = encode_demonstrations(
        demonstrations,
        model.encoder,
        max_prompt_tokens=recipe.data.prompt_limit,
        max_tokens=within_context(config.max_tokens, model),
        turns=config.turns,
    )
    if num_cut:
        ctx.progress.note(f"{num_cut} of {len(demonstrations)} demonstrations were cut to fit")
    warn_of_few(ctx, "sft", len(rows), config, minibatch_rows=config.minibatch_sequences, unit="sequences")
    metrics = _train(ctx, "sft", model, rows, config)
    ctx.save_model("sft", model, build=lambda: ctx.builder.language_model(source, trainable=True))
    return {
        **metrics,
        "num_demonstrations": len(demonstrations),
        "num_cut": num_cut,
        "num_without_end": num_without_end,
    }


def _train(
    ctx: RunContext,
    stage: Literal["pretrain", "sft"],
    model: LanguageModel,
    rows: Sequence[LearntText],
    config: SftConfig,
) -> dict[str, float]:
    """Supervised training with microbatches that memory has room for."""
    longest = max((len(row.ids) for row in rows), default=1)
    # Packed rows are filled up to the limit.
    config = config.model_copy(update={"max_tokens": within_context(config.max_tokens, model)})
    config = announced_supervised(config, model, stage, stage=stage, progress=ctx.progress, manifest=ctx.manifest)
    width = max(longest, config.max_tokens) if config.packing else longest
    mean = sum(len(row.ids) for row in rows) / max(1, len(rows))
    tokens = SPARE * mean if config.packing else longest
    fitted = fitted_supervised(
        ctx, stage, model, config, longest=width, minibatch_tokens=round(config.minibatch_sequences * tokens)
    )
    rows, fitted = ctx.workload.lesson(stage, rows, fitted, minibatch_rows=config.minibatch_sequences)
    part_trained(model, what="language model", seed=derive_seed(ctx.recipe.seed, stage))
    with peak_noted(ctx, stage):
        return train_sft(model, rows, fitted, stage=stage, **ctx.training(stage))
