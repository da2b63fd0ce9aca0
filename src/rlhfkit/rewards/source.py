"""The one protocol of all rewards."""

import decimal
import math
import numbers
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

from rlhfkit.errors import RewardError
from rlhfkit.records import Prompt
from rlhfkit.wording import counted

__all__ = [
    "Detailed",
    "RewardSource",
    "ScoredText",
    "ScoresElsewhere",
    "ScoresInDetail",
    "as_number",
    "check_scores",
    "references_of",
    "scored_in_detail",
]

DEFAULT_MAX_TOKENS = 2048
"""Longest sequence of a model that scores, where neither the recipe nor the model says how long it may be."""


@dataclass(frozen=True, slots=True)
class ScoredText:
    """A finished episode as a reward source sees it."""

    prompt: Prompt
    prompt_text: str
    """The prompt as the policy read it, chat template included."""
    response: str
    """The response without special tokens."""
    finished: bool = field(default=True)
    """Whether the policy ended it with EOS or a stop token, rather than at the length limit."""


class RewardSource(Protocol):
    """Says how good finished episodes are."""

    def score(self, episodes: Sequence[ScoredText]) -> torch.Tensor:
        """Scores (B,), float32 on the CPU, finite, higher is better.

        Raises: RewardError where it cannot score; a failure is never a number.
        """
        ...


Detailed = tuple[torch.Tensor, dict[str, torch.Tensor]]
"""Scores (B,), and name → further numbers (B,) of the same episodes."""


@runtime_checkable
class ScoresInDetail(Protocol):
    """A reward source that also tells what its scores are made of."""

    def score_in_detail(self, episodes: Sequence[ScoredText]) -> Detailed:
        """Scores (B,) as `score` gives them, and by name further numbers (B,), such as how far members disagree."""
        ...


@runtime_checkable
class ScoresElsewhere(Protocol):
    """A reward source that works outside of this process, while it does something else."""

    def begin(self, episodes: Sequence[ScoredText]) -> Callable[[], Detailed]:
        """Have episodes scored; what gives their scores once they are there. All ranks must ask for them, in order."""
        ...


def scored_in_detail(source: RewardSource, episodes: Sequence[ScoredText]) -> Detailed:
    """Scores (B,) of `source`, and what it tells of them beyond that; nothing more of most sources."""
    if isinstance(source, ScoresInDetail):
        return source.score_in_detail(episodes)
    return source.score(episodes), {}


def check_scores(scores: object, episodes: Sequence[ScoredText], *, source: str) -> torch.Tensor:
    """`scores` as a float32 tensor (B,), once they are one finite number per episode.

    A list, or what can be listed in order: a tensor, an array, a column of a table. True is 1, and False 0.
    Raises: RewardError, naming `source`, the first bad index and its value.
    """
    listed = scores.tolist() if hasattr(scores, "tolist") else scores
    num = len(episodes)
    if isinstance(listed, numbers.Number):
        raise RewardError(
            f"{source} returned {reprlib.repr(listed)}, not a list of numbers: one score for {num} responses; return a "
            "list with one float per response, in order"
        )
    if not isinstance(listed, Sequence) or isinstance(listed, str | bytes):
        raise _not_numbers(scores, source, f"but {type(scores).__name__}")
    if any(isinstance(value, list | tuple) for value in listed):
        index = next(index for index, value in enumerate(listed) if isinstance(value, list | tuple))
        shape = f" of shape ({', '.join(map(str, scores.shape))})" if hasattr(scores, "shape") else ""
        raise RewardError(
            f"{source} returned scores{shape} for {num} responses in which response {index} has the list "
            f"{reprlib.repr(listed[index])}; return one float per response, in order"
        )
    if len(listed) != num:
        scored = counted(len(listed), "score")
        raise RewardError(f"{source} returned {scored} for {num} responses; return one float per response, in order")
    found = [as_number(value) for value in listed]
    if None in found:
        index = found.index(None)
        raise _not_numbers(scores, source, f"{reprlib.repr(listed[index])} for response {index}")
    tensor = torch.tensor(found, dtype=torch.float64).to(torch.float32)
    bad = (~torch.isfinite(tensor)).nonzero().flatten().tolist()
    if bad:
        response = episodes[bad[0]].response
        raise RewardError(
            f"{source} returned {tensor[bad[0]].item()} for response {bad[0]} ({response[:60]!r}) and "
            f"{len(bad)} of {num} scores are not finite; return finite numbers"
        )
    return tensor


def as_number(value: object) -> float | None:
    """A number of any library as a float; None for what is no number."""
    if hasattr(value, "item"):  # of numpy and torch
        try:
            value = value.item()
        except (ValueError, RuntimeError):  # several numbers
            return None
    if not isinstance(value, numbers.Real | decimal.Decimal):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf  # an integer of more than 308 digits; of which sign does not matter


def references_of(prompts: Sequence[Prompt], *, wanted_by: str) -> list[tuple[str, ...]]:
    """The responses that each prompt's row, or rows, give, without the blanks around them.

    Raises: RewardError, naming `wanted_by` and the first row that gives none.
    """
    lacking = [prompt for prompt in prompts if not prompt.references]
    if lacking:
        raise RewardError(
            f"{wanted_by} compares with the right response, and the row {lacking[0].origin or 'of a prompt'} gives "
            f'none ({len(lacking)} of {len(prompts)} rows); add a column "completion", or name yours '
            'as in columns = {completion = "label"}'
        )
    return [prompt.references for prompt in prompts]


def _not_numbers(scores: object, source: str, what: str) -> RewardError:
    return RewardError(
        f"{source} returned {reprlib.repr(scores)}, not a list of numbers ({what}); return one float per response"
    )
