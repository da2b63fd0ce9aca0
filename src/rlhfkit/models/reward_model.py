"""A reward model: a sequence-classification model with one output, read at the last real token."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhfkit.errors import ModelError
from rlhfkit.machine.fast_paths import FastPaths
from rlhfkit.models.encoder import Encoder
from rlhfkit.models.frozen_layers import Stem
from rlhfkit.models.hidden_states import hidden_at
from rlhfkit.models.loading import quiet_transformers
from rlhfkit.models.lora import merged, unwrapped
from rlhfkit.models.saving import check_saved_classifier
from rlhfkit.records import Prompt
from rlhfkit.rundir.atomic import write_json

__all__ = [
    "HEADS_FILE",
    "MEMBERS",
    "SETTINGS_FILE",
    "LengthTrend",
    "Normalization",
    "RewardModel",
    "Scale",
    "members_of",
    "read_heads",
    "read_max_tokens",
    "read_normalization",
    "read_scales",
    "reward_ids",
    "score_head",
    "write_heads",
]

SETTINGS_FILE, HEADS_FILE, MEMBERS = "rlhfkit_reward.json", "heads.safetensors", "members"


@dataclass(frozen=True)
class Normalization:
    """Scores are (raw - mean) / std, so that responses of the policy's starting point have mean 0, deviation 1."""

    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class LengthTrend:
    """The straight line through raw scores over lengths of the reference responses, by least squares."""

    slope: float
    """Raw score per token of the response."""
    mean_tokens: float
    """Mean length, where the line has the mean of the raw scores."""
    std: float
    """Deviation of the raw scores around the line."""
    correlation: float
    """Pearson's correlation of raw score and length."""


@dataclass(frozen=True)
class Scale:
    """What becomes of the raw scores of one head."""

    normalization: Normalization = Normalization()
    trend: LengthTrend | None = None
    """None where there were no reference responses, or they were all of one length."""

    def normalised(self, raw: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(raw - mean) / std (B,); with `lengths` (B,) less the trend, (raw - mean - slope * (length - mean)) / std.

        Either has mean 0 and deviation 1 on the reference responses; the second does not depend on the length there.
        """
        mean, std = self.normalization.mean, self.normalization.std
        if lengths is None:
            return (raw - mean) / std
        assert self.trend is not None  # the builder saw to it
        return (raw - mean - self.trend.slope * (lengths - self.trend.mean_tokens)) / self.trend.std


def reward_ids(encoder: Encoder, prompt: Prompt, response: str, *, finished: bool, max_tokens: int) -> list[int]:
    """Prompt and response as the reward model reads them, in at most `max_tokens`.

    The prompt is cut as the policy's prompts are, to no less than a quarter of the tokens; then the response loses its
    beginning. What the template writes first, such as BOS, stays.
    """
    before, after = encoder.joined(prompt, response, finished=finished)
    if len(before) + len(after) <= max_tokens:
        return [*before, *after]
    room = max(max_tokens - len(after), max_tokens // 4, 1)
    before, after = encoder.joined(encoder.shortened(prompt, max_tokens=room), response, finished=finished)
    if len(before) < max_tokens:
        return [*before, *after[-(max_tokens - len(before)) :]]
    ids = [*before, *after]
    return [ids[0], *ids[len(ids) - max_tokens + 1 :]]


def score_head(classifier: PreTrainedModel | PeftModel) -> nn.Linear:
    """The head of a sequence-classification model.

    Raises: ModelError where it has none that is linear in one hidden state, as encoders have not.
    """
    head = getattr(unwrapped(classifier), "score", None)
    if not isinstance(head, nn.Linear):
        raise ModelError(f"{type(unwrapped(classifier)).__name__} has no linear head `score`; choose a decoder model")
    return head


class RewardModel(nn.Module):
    """The raw score of whole sequences."""

    def __init__(self, classifier: PreTrainedModel | PeftModel, encoder: Encoder) -> None:
        """Score with `classifier`, which has one output.

        Raises: ModelError where it is no decoder.
        """
        super().__init__()
        self.classifier = classifier
        self.encoder = encoder
        self.stem: Stem | None = None  # what it begins with, in common with the policy
        self.further_heads: Tensor | None = None  # (H, width) of an ensemble on one trunk
        self.paths = FastPaths()
        score_head(classifier)

    @staticmethod
    def init_head(classifier: PreTrainedModel, generator: torch.Generator) -> None:
        """Weights from N(0, 1 / (width + 1)), which gives scores of deviation about 1 at the start.

        Source: Ziegler et al. 2019, arXiv 1909.08593, as in its code.
        """
        weight = score_head(classifier).weight
        fresh = torch.randn(weight.shape, generator=generator) / (weight.shape[1] + 1) ** 0.5
        with torch.no_grad():
            weight.copy_(fresh)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.classifier.parameters()).device

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(B,) raw scores, float32, read at position lengths - 1 of right-padded `ids` (B, T).

        Where there are further heads (B, 1 + H), theirs after its own.
        """
        scores = self.read(self.last_hidden(ids, lengths))
        return scores.squeeze(-1) if self.further_heads is None else scores

    def read(self, hidden: Tensor) -> Tensor:
        """Raw scores (N, 1 + H) that the heads, its own first, read in float32 hidden states (N, width)."""
        own = nn.functional.linear(hidden, score_head(self.classifier).weight.float())
        if self.further_heads is None:
            return own
        return torch.cat([own, nn.functional.linear(hidden, self.further_heads.to(hidden))], dim=1)

    def last_hidden(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(B, width) what the head reads, float32."""
        below = None if self.stem is None else self.stem.hidden(ids, lengths)
        places = torch.arange(len(ids), device=ids.device), lengths - 1
        last = hidden_at(self.classifier, ids, lengths, places, stem=self.stem, below=below, paths=self.paths)
        return last.float()

    def save(
        self,
        directory: Path,
        *,
        normalization: Normalization,
        max_tokens: int | None = None,
        trend: LengthTrend | None = None,
    ) -> None:
        """Write a directory with the normalisation beside the model, and how long the sequences of training could be.

        `transformers` alone can load it where it has a sequence-classification class for the family.
        Raises: ModelError where what is loaded gives other scores.
        """
        model = merged(self.classifier)
        model.config.pad_token_id = self.encoder.pad_id
        with quiet_transformers():
            model.save_pretrained(directory)
            self.encoder.tokenizer.save_pretrained(directory)
        settings = {"normalization": asdict(normalization), "template": self.encoder.template_hash}
        length = {} if trend is None else {"length": asdict(trend)}
        write_json(directory / SETTINGS_FILE, settings | {"max_tokens": max_tokens} | length)

        def scores_of(ids: Tensor) -> Tensor:
            scores: Tensor = self(ids, torch.full((len(ids),), ids.shape[1], device=ids.device))
            return scores

        check_saved_classifier(directory, unwrapped(self.classifier), self.encoder, scores_of)


def read_normalization(directory: str | Path) -> Normalization | None:
    """The normalisation that is stored with a reward model of ours; None for somebody else's model.

    Raises: ModelError where the file is damaged.
    """
    settings = _settings(directory)
    try:
        return None if settings is None else Normalization(**settings["normalization"])
    except (KeyError, TypeError) as error:
        raise _damaged(Path(directory) / SETTINGS_FILE, error) from error


def read_scales(directory: str | Path) -> list[Scale]:
    """The scale of the head of a reward model of ours, and those of its further heads.

    Raises: ModelError where the file is damaged, or it is none of ours.
    """
    settings = _settings(directory)
    try:
        assert settings is not None
        return [_scale(found) for found in (settings, *settings.get("heads", ()))]
    except (AssertionError, AttributeError, KeyError, TypeError) as error:
        raise _damaged(Path(directory) / SETTINGS_FILE, error) from error


def _scale(stored: Mapping[str, Any]) -> Scale:
    length = stored.get("length")
    return Scale(Normalization(**stored["normalization"]), None if length is None else LengthTrend(**length))


def write_heads(directory: Path, heads: Tensor, scales: Sequence[Scale]) -> None:
    """Add further heads (H, width) on its trunk, each with its scale, to a reward model that is saved."""
    save_file({"weight": heads.contiguous().cpu()}, directory / HEADS_FILE)
    told = [
        {"normalization": asdict(scale.normalization), "length": None if scale.trend is None else asdict(scale.trend)}
        for scale in scales
    ]
    write_json(directory / SETTINGS_FILE, {**(_settings(directory) or {}), "heads": told})


def read_heads(directory: str | Path) -> Tensor | None:
    """The further heads (H, width) on the trunk of a reward model; None where it has none.

    Raises: ModelError where the file is damaged.
    """
    path = Path(directory) / HEADS_FILE
    if not path.exists():
        return None
    try:
        return load_file(path)["weight"]
    except (OSError, KeyError, SafetensorError) as error:
        raise _damaged(path, error) from error


def members_of(directory: str | Path) -> list[Path]:
    """The directories of the further members of an ensemble, each a whole reward model; none of a single one."""
    return sorted(
        (path for path in (Path(directory) / MEMBERS).glob("*") if path.name.isdecimal()),
        key=lambda path: int(path.name),
    )


def read_max_tokens(directory: str | Path) -> int | None:
    """Longest sequence that a reward model of ours was trained on; None where that is not stored.

    Raises: ModelError where the file is damaged.
    """
    settings = _settings(directory) or {}
    max_tokens = settings.get("max_tokens")
    if max_tokens is not None and not (isinstance(max_tokens, int) and max_tokens > 0):
        raise _damaged(Path(directory) / SETTINGS_FILE, f"max_tokens is {max_tokens!r}")
    return max_tokens


def _settings(directory: str | Path) -> dict[str, Any] | None:
    path = Path(directory) / SETTINGS_FILE
    if not path.exists():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, why: object) -> ModelError:
    return ModelError(f"{path} is damaged ({why}); put back the file that was saved with the reward model")
