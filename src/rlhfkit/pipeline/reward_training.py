"""What training a reward model takes, whether it is the only one, a member of an ensemble, or a judge."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from rlhfkit.config.training import RewardModelConfig
from rlhfkit.machine.seeding import derive_seed, shuffled
from rlhfkit.models.reward_model import Normalization, RewardModel, Scale, write_heads
from rlhfkit.padding import largest_microbatch
from rlhfkit.pipeline.context import RunContext
from rlhfkit.pipeline.memory import fitted_supervised, peak_noted
from rlhfkit.pipeline.parted import part_trained
from rlhfkit.pipeline.supervised import within_context
from rlhfkit.records import Preference
from rlhfkit.rewards.model import RewardModelReward
from rlhfkit.rewards.source import ScoredText
from rlhfkit.rollout.engine import shared_out
from rlhfkit.rollout.generation import generate as sample
from rlhfkit.rollout.text_experience import as_scored_text
from rlhfkit.training.rates import announced_supervised
from rlhfkit.training.reward_model import (
    EncodedPair,
    encode_pairs,
    length_trend,
    normalization_of,
    train_reward_model,
)

__all__ = ["References", "Trained", "encoded", "save_scored", "train_pairs"]

Trained = Literal["reward_model", "judge"]


def encoded(preferences: Sequence[Preference], model: RewardModel, config: RewardModelConfig) -> list[EncodedPair]:
    """Pairs as a reward model of this recipe reads them."""
    max_tokens = within_context(config.max_tokens, model)
    return encode_pairs(preferences, model, max_tokens=max_tokens, use_margin=config.use_margin)


def train_pairs(
    ctx: RunContext,
    stage: Trained,
    model: RewardModel,
    pairs: Sequence[EncodedPair],
    config: RewardModelConfig,
    training: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Training of a reward model with microbatches that memory has room for; the last validation metrics.

    `training`: where it is logged and saved, and its seed, in place of the stage's.
    """
    config = announced_supervised(
        config, model, "reward_model", stage=stage, progress=ctx.progress, manifest=ctx.manifest
    )
    lengths = [2 * max(len(pair.chosen), len(pair.rejected)) for pair in pairs]  # both sides go in one pass
    fitted = fitted_supervised(
        ctx,
        stage,
        model,
        config,
        longest=max(lengths, default=2) // 2,
        minibatch_tokens=largest_microbatch(lengths, rows=config.minibatch_pairs, device=model.device),
    )
    pairs, fitted = ctx.workload.lesson(stage, pairs, fitted, minibatch_rows=config.minibatch_pairs)
    part_trained(model, what="reward model", seed=derive_seed(ctx.recipe.seed, stage))
    with peak_noted(ctx, stage):
        return train_reward_model(model, pairs, fitted, stage=stage, **(training or ctx.training(stage)))


@dataclass
class References:
    """Responses of the model that PPO starts from, on whose scores the scale of every reward model is fixed."""

    ctx: RunContext

    @cached_property
    def episodes(self) -> list[ScoredText]:
        """One response to each of some prompts; none where the recipe leaves scores as they are."""
        ctx, num = self.ctx, self.ctx.recipe.reward_model.normalization_responses
        if num == 0 or ctx.recipe.data.prompts is None:
            return []
        seed = ctx.recipe.seed
        model = ctx.builder.language_model(ctx.builder.starting_point())
        prompts = ctx.prompts("prompts", model.encoder)
        order = shuffled(len(prompts), derive_seed(seed, "normalization"))
        drawn = [prompts[order[index % len(order)]] for index in range(num)]
        seeds = [derive_seed(seed, "normalization", row) for row in range(num)]
        with ctx.progress.stage("normalise", total=num, unit="response") as progress:
            responses = shared_out(sample)(
                model, [prompt.ids for prompt in drawn], ctx.recipe.rollout, seeds=seeds, on_finished=progress.advance
            )
        return [
            as_scored_text(prompt, response, model.encoder.decode(response.ids))
            for prompt, response in zip(drawn, responses, strict=True)
        ]

    def scales(self, model: RewardModel) -> list[Scale]:
        """The scale of each head of `model`: mean and deviation of its raw scores, and how they go by the length."""
        num_heads = 1 if model.further_heads is None else 1 + len(model.further_heads)
        if not self.episodes:
            return [Scale()] * num_heads
        scorer = RewardModelReward(model, Normalization(), max_tokens=self.ctx.recipe.reward_model.max_tokens)
        raw, lengths = scorer.raw_scores(self.episodes), scorer.response_tokens(self.episodes)
        heads = raw.view(len(self.episodes), -1).unbind(1)
        return [Scale(normalization_of(head), length_trend(head, lengths)) for head in heads]


def save_scored(model: RewardModel, directory: Path, scales: Sequence[Scale], *, max_tokens: int) -> None:
    """Fill a directory with a reward model, its further heads, and their scales."""
    heads, model.further_heads = model.further_heads, None
    try:
        model.save(directory, normalization=scales[0].normalization, max_tokens=max_tokens, trend=scales[0].trend)
    finally:
        model.further_heads = heads
    if heads is not None:
        write_heads(directory, torch.as_tensor(heads), scales[1:])
