"""Supervised fine-tuning, and pre-training, which is the same with every token learnt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlhfkit.config.stages import role_of
from rlhfkit.config.training import SftConfig
from rlhfkit.distributed.ranks import ranks
from rlhfkit.machine.progress import Progress
from rlhfkit.metrics import Metrics
from rlhfkit.models.attention import additive_masks
from rlhfkit.models.encoder import Encoder
from rlhfkit.models.language import LanguageModel
from rlhfkit.padding import PackedRows, pack
from rlhfkit.records import Demonstration, Prompt
from rlhfkit.rundir.log import RunLog
from rlhfkit.training.checkpoint import Checkpoints
from rlhfkit.training.rates import decided
from rlhfkit.training.supervised import (
    SupervisedTask,
    split_validation,
    train_supervised,
)

__all__ = ["LearntText", "encode_demonstrations", "encode_texts", "learn", "train_sft"]


@dataclass(frozen=True, slots=True)
class LearntText:
    """Tokens of which those from `learnt_from` on are learnt, and those in `earlier` spans before."""

    ids: list[int]
    learnt_from: int
    earlier: tuple[tuple[int, int], ...] = ()
    """Where the assistant's earlier turns begin and end."""


def encode_demonstrations(
    demonstrations: Sequence[Demonstration],
    encoder: Encoder,
    *,
    max_prompt_tokens: int,
    max_tokens: int,
    turns: Literal["all", "last"] = "all",
) -> tuple[list[LearntText], int, int]:
    """(texts in which the assistant's turns and endings are learnt, how many had to be cut, how many lost their end).

    The last turn is the response; with `turns` = "all" those that the prompt holds are learnt too.
    """
    texts, num_cut, num_without_end = [], 0, 0
    for demonstration in demonstrations:
        prompt = encoder.encode(demonstration.prompt, max_tokens=max_prompt_tokens)
        before, after = encoder.joined(prompt.prompt, demonstration.response)
        ids = [*before, *after]
        num_cut += prompt.was_cut or len(ids) > max_tokens
        num_without_end += len(ids) > max_tokens  # a prompt loses its beginning
        if len(before) < max_tokens:
            earlier = encoder.earlier_turns(prompt.prompt) if turns == "all" else []
            texts.append(LearntText(ids[:max_tokens], len(before), tuple(earlier)))
    return texts, num_cut, num_without_end


def encode_texts(texts: Sequence[str], encoder: Encoder, *, max_tokens: int) -> tuple[list[LearntText], int]:
    """(texts in which every token but the first and their EOS are learnt, how many had to be cut)."""
    rows = [[*encoder.prompt_ids(Prompt(text)), encoder.eos_id] for text in texts]
    return [LearntText(ids[:max_tokens], 1) for ids in rows], sum(len(ids) > max_tokens for ids in rows)


def train_sft(
    model: LanguageModel,
    texts: Sequence[LearntText],
    config: SftConfig,
    *,
    stage: str,
    seed: int,
    log: RunLog,
    checkpoints: Checkpoints,
    progress: Progress,
) -> dict[str, float]:
    """Train `model` on `texts`; the last validation metrics.

    loss = - sum over the minibatch's learnt tokens of log p(token | tokens before) / their number
    Raises: TrainingError where the loss or a gradient is not finite.
    """
    optim = decided(config.optim, model, role_of(stage) or "sft")
    config = config.model_copy(update={"optim": optim})
    prompts = [
        tuple(text.ids[: text.learnt_from]) if text.learnt_from > 1 else number for number, text in enumerate(texts)
    ]
    train, held_out = split_validation(len(texts), config.validation_share, seed, groups=prompts)

    width = config.max_tokens if config.packing else None

    def chosen(rows: Sequence[int]) -> list[LearntText]:
        return [texts[row] for row in rows]

    @torch.no_grad()
    def validate(metrics: Metrics) -> None:
        tokens = config.tokens_per_pass
        for part, counts in _passes(model, chosen(held_out), tokens, width)[0] if held_out else []:
            loss = -model.packed_logprobs(part, _masks(model, part)).sum()
            if counts:
                metrics.add("loss", loss, int(part.targets.sum()))

    task = SupervisedTask(
        stage=stage,
        what="language model",
        module=model,
        num_rows=len(train),
        minibatch_rows=config.minibatch_sequences,
        backward=lambda rows, metrics: learn(
            model, chosen([train[row] for row in rows]), metrics, tokens_per_pass=config.tokens_per_pass, width=width
        ),
        validate=validate,
        detail=lambda metrics: f"loss {metrics['loss']:.3f}",
    )
    return train_supervised(task, config, seed=seed, log=log, checkpoints=checkpoints, progress=progress)


def learn(
    model: LanguageModel,
    texts: Sequence[LearntText],
    metrics: Metrics,
    *,
    tokens_per_pass: int,
    width: int | None,
    coef: float = 1.0,
    logprobs: Callable[[PackedRows, Tensor | dict[str, Tensor]], Tensor] | None = None,
    name: str = "loss",
) -> None:
    """Forward and backward of this rank's share of a minibatch of texts, whose loss it adds to the metric `name`.

    loss = - sum over the minibatch's learnt tokens of log p(token | tokens before) / their number
    Texts are packed into rows of `width` tokens, or of the longest; None leaves each by itself. The gradient is that
    of coef * loss. `logprobs` computes as the model's `packed_logprobs`, where that is part of a larger one.
    """
    logprobs = logprobs or model.packed_logprobs
    passes, num_learnt = _passes(model, texts, tokens_per_pass, width)
    for part, counts in passes:
        loss = -logprobs(part, _masks(model, part)).sum()
        if counts:
            metrics.add(name, loss, int(part.targets.sum()))
        torch.autograd.backward(coef * loss / num_learnt * counts)


def _passes(
    model: LanguageModel, texts: Sequence[LearntText], tokens_per_pass: int, width: int | None
) -> tuple[list[tuple[PackedRows, bool]], int]:
    """(this rank's share of the packed rows, by passes, and whether they count; tokens that are learnt in all)."""
    packed = pack(
        [text.ids for text in texts],
        [text.learnt_from for text in texts],
        earlier=[text.earlier for text in texts],
        max_tokens=None if width is None else max(width, max(len(text.ids) for text in texts)),
        pad=model.encoder.pad_id,
        device=model.device,
    )
    per_part = max(1, tokens_per_pass // packed.ids.shape[1])
    own = packed[slice(ranks().rank, None, ranks().size)]
    passes = (own[start : start + per_part] for start in range(0, len(own), per_part))
    return ranks().in_step(passes, packed[:1]), int(packed.targets.sum())


def _masks(model: LanguageModel, rows: PackedRows) -> Tensor | dict[str, Tensor]:
    return additive_masks(model.config, rows.allowed(), rows.position_ids, rows.position_ids, model.dtype)
