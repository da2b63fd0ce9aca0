"""Bradley-Terry reward model: training, and what it is worth on held-out pairs."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhfkit.config.training import RewardModelConfig
from rlhfkit.errors import RewardError
from rlhfkit.machine.progress import Progress
from rlhfkit.metrics import Metrics
from rlhfkit.models.reward_model import LengthTrend, Normalization, RewardModel, reward_ids
from rlhfkit.padding import pad_right
from rlhfkit.records import Preference
from rlhfkit.rundir.log import RunLog
from rlhfkit.stats.intervals import rate_interval
from rlhfkit.training.checkpoint import Checkpoints
from rlhfkit.training.pairs import of_each_pair, pair_passes
from rlhfkit.training.rates import decided
from rlhfkit.training.supervised import (
    SupervisedTask,
    split_validation,
    train_supervised,
)

__all__ = [
    "EncodedPair",
    "bradley_terry_loss",
    "encode_pairs",
    "length_trend",
    "measure",
    "normalization_of",
    "train_reward_model",
]


DEGREES = {1: "negligibly better", 2: "slightly better", 3: "better", 4: "much better"}


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """Two whole sequences, the first preferred."""

    chosen: list[int]
    rejected: list[int]
    margin: float
    prompt: Hashable = None
    """What tells which pairs are of the same prompt; None for one of its own."""
    strength: float | None = None
    """How much better people found the chosen one, from 1 (negligibly) to 4 (much), where the data say so."""


def encode_pairs(
    preferences: Sequence[Preference], model: RewardModel, *, max_tokens: int, use_margin: bool
) -> list[EncodedPair]:
    """Pairs as the reward model reads them: prompt, response and EOS."""
    pairs = []
    for preference in preferences:
        chosen, rejected = (
            reward_ids(model.encoder, preference.prompt, response, finished=True, max_tokens=max_tokens)
            for response in (preference.chosen, preference.rejected)
        )
        margin = (preference.margin or 0.0) if use_margin else 0.0
        pairs.append(EncodedPair(chosen, rejected, margin, preference.prompt.content, _strength(preference)))
    return pairs


def _strength(preference: Preference) -> float | None:
    """The column that votes of a store come with."""
    value = preference.prompt.columns.get("strength")
    return float(value) if isinstance(value, int | float) and 1 <= value <= len(DEGREES) else None


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, margin: Tensor) -> Tensor:
    """(B,) negative log-likelihood that the chosen response wins: -log sigmoid(chosen - rejected - margin).

    Source: Bradley & Terry 1952; margin: Touvron et al. 2023, arXiv 2307.09288, eq. 2.
    """
    return -logsigmoid(chosen - rejected - margin)


def train_reward_model(
    model: RewardModel,
    pairs: Sequence[EncodedPair],
    config: RewardModelConfig,
    *,
    stage: str,
    seed: int,
    log: RunLog,
    checkpoints: Checkpoints,
    progress: Progress,
) -> dict[str, float]:
    """Train `model` on `pairs`; the last validation metrics.

    Raises: TrainingError where the loss or a gradient is not finite.
    """
    config = config.model_copy(update={"optim": decided(config.optim, model, "reward_model")})
    train, held_out = split_validation(len(pairs), config.validation_share, seed, groups=prompts_of(pairs))

    def run(rows: Sequence[int], metrics: Metrics, *, denominator: int | None) -> None:
        for numbers, counts in pair_passes(pairs, rows, max_tokens=config.tokens_per_pass, device=model.device):
            part = [pairs[number] for number in numbers]
            chosen, rejected = score_pairs(model, part)
            margin = torch.tensor([pair.margin for pair in part], device=chosen.device)
            loss = bradley_terry_loss(chosen, rejected, margin).sum()
            if counts:
                metrics.add("loss", loss, len(part))
                metrics.add("accuracy", (chosen > rejected).sum() + 0.5 * (chosen == rejected).sum(), len(part))
            if denominator is not None:
                torch.autograd.backward(loss / denominator * counts)

    @torch.no_grad()
    def validate(metrics: Metrics) -> None:
        run(held_out, metrics, denominator=None)

    task = SupervisedTask(
        stage=stage,
        what="reward model",
        module=model,
        num_rows=len(train),
        minibatch_rows=config.minibatch_pairs,
        backward=lambda rows, metrics: run([train[row] for row in rows], metrics, denominator=len(rows)),
        validate=validate,
        detail=lambda metrics: (
            f"loss {metrics['loss']:.3f}"
            + (
                f" · validation accuracy {metrics['validation/accuracy']:.2f}"
                if "validation/accuracy" in metrics
                else ""
            )
        ),
    )
    return train_supervised(task, config, seed=seed, log=log, checkpoints=checkpoints, progress=progress)


def score_pairs(model: RewardModel, pairs: Sequence[EncodedPair]) -> tuple[Tensor, Tensor]:
    """(scores of the chosen (B,), scores of the rejected (B,)), in one pass."""
    rows = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    ids = pad_right(rows, pad=model.encoder.pad_id, device=model.device)
    scores = model(ids, torch.tensor([len(row) for row in rows], device=model.device))
    return scores[: len(pairs)], scores[len(pairs) :]


def prompts_of(pairs: Sequence[EncodedPair]) -> list[Hashable]:
    """Which pairs are of the same prompt."""
    return [number if pair.prompt is None else (pair.prompt,) for number, pair in enumerate(pairs)]


@torch.no_grad()
def measure(
    model: RewardModel,
    pairs: Sequence[EncodedPair],
    *,
    max_tokens: int,
    on_finished: Callable[[int], None] = lambda num: None,
) -> dict[str, Any]:
    """Accuracy on held-out pairs with a 95 % interval, calibration, accuracy by difference in length and by degree.

    The interval knows that pairs of one prompt hang together.
    Calibration compares, in bins of the stated confidence sigmoid(|difference of scores|), with the share of pairs in
    which the side that the model prefers is the chosen one.
    """

    def values_of(rows: list[int]) -> Tensor:
        chosen, rejected = score_pairs(model, [pairs[row] for row in rows])
        return (chosen - rejected)[:, None]

    difference = of_each_pair(
        pairs, values_of, width=1, max_tokens=max_tokens, device=model.device, on_finished=on_finished
    )[:, 0]
    right = (difference > 0).float() + 0.5 * (difference == 0).float()
    accuracy = float(right.mean())
    low, high = rate_interval(right.tolist(), prompts_of(pairs))
    return {
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "num_pairs": len(pairs),
        "num_prompts": len(set(prompts_of(pairs))),
        "calibration": _calibration(difference, right),
        "by_length_difference": _by_length_difference(pairs, right),
        "by_degree": _by_degree(pairs, right),
    }


def _calibration(difference: Tensor, right: Tensor) -> list[dict[str, float]]:
    confidence = torch.sigmoid(difference.abs())
    bins = []
    for low in (0.5, 0.6, 0.7, 0.8, 0.9):
        inside = (confidence >= low) & (confidence < low + 0.1 + (low == 0.9))
        if inside.any():
            bins.append(
                {
                    "confidence": float(confidence[inside].mean()),
                    "accuracy": float(right[inside].mean()),
                    "count": int(inside.sum()),
                }
            )
    return bins


def _length_label(low: int, high: int) -> str:
    """How much longer or shorter the chosen response is, in words."""
    if low == high == 0:
        return "as long as each other"
    if high <= 0:
        return f"chosen shorter by {_range(-high, -low)}"
    if low >= 0:
        return f"chosen longer by {_range(low, high)}"
    return f"chosen from {-low} tokens shorter to {high} longer"


def _range(least: int, most: int) -> str:
    return f"{least} to {most} tokens" if least < most else f"{most} token{'' if most == 1 else 's'}"


def _by_length_difference(pairs: Sequence[EncodedPair], right: Tensor) -> list[dict[str, Any]]:
    """Pairs by how much longer the chosen response is, about a third in each group; none where that tells no groups.

    Pairs of the same difference are in one group, so that there may be two.
    """
    difference = torch.tensor([len(pair.chosen) - len(pair.rejected) for pair in pairs])
    ordered = difference.sort().values
    least = sorted({int(third[0]) for third in ordered.tensor_split(3) if len(third)})
    groups = []
    for low, high in pairwise([*least, int(ordered[-1]) + 1] if len(least) > 1 else []):
        inside = (difference >= low) & (difference < high)
        label = _length_label(low, int(difference[inside].max()))
        groups.append({"label": label, "accuracy": float(right[inside].mean()), "count": int(inside.sum())})
    return groups


def normalization_of(raw_scores: Tensor) -> Normalization:
    """The normalisation that gives these scores mean 0 and deviation 1.

    Raises: RewardError where they are all the same, so that the reward model says nothing about this policy.
    """
    std = float(raw_scores.std(correction=0))
    rounding = 10 * torch.finfo(raw_scores.dtype).eps * float(raw_scores.abs().mean())
    if std < max(1e-6, rounding):
        raise RewardError(
            f"the reward model gives all {len(raw_scores)} reference responses the score {float(raw_scores[0]):g}; "
            "train it on more pairs, or look at reward_model.optim.learning_rate"
        )
    return Normalization(mean=float(raw_scores.mean()), std=std)


def length_trend(raw_scores: Tensor, lengths: Tensor) -> LengthTrend | None:
    """The straight line through raw scores (B,) over lengths (B,); None where there is no such line.

    slope = cov(score, length) / var(length); the line has the mean score at the mean length.
    """
    scores, lengths = raw_scores.double(), lengths.double()
    spread, score_std = lengths.std(correction=0), scores.std(correction=0)
    if len(scores) < FEWEST_FOR_TREND or not spread > 0 or not score_std > 0:
        return None
    covariance = ((scores - scores.mean()) * (lengths - lengths.mean())).mean()
    slope, correlation = covariance / spread.square(), covariance / (spread * score_std)
    std = score_std * (1 - correlation.square()).clamp(min=0.0).sqrt()
    if not std > 1e-6 * score_std:
        return None  # the score is the length, and nothing is left of it
    return LengthTrend(float(slope), float(lengths.mean()), float(std), float(correlation))


FEWEST_FOR_TREND = 8
"""Reference responses below which a line through them says nothing."""


def _by_degree(pairs: Sequence[EncodedPair], right: Tensor) -> list[dict[str, Any]]:
    """Pairs by how much better people found the chosen response, rounded to the nearest degree; where they said so."""
    degrees = torch.tensor([0 if pair.strength is None else int(pair.strength + 0.5) for pair in pairs])
    return [
        {"label": name, "accuracy": float(right[degrees == degree].mean()), "count": int((degrees == degree).sum())}
        for degree, name in DEGREES.items()
        if (degrees == degree).any()
    ]
