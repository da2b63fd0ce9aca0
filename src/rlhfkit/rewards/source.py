"""The one protocol of all rewards."""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from rlhfkit.errors import RewardError
from rlhfkit.records import Prompt

__all__ = ["RewardSource", "ScoredText", "check_scores", "references_of"]


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


def check_scores(
    scores: Sequence[float] | torch.Tensor, episodes: Sequence[ScoredText], *, source: str
) -> torch.Tensor:
    """`scores` as a float32 tensor (B,), once they are one finite number per episode.

    Raises: RewardError, naming `source`, the first bad index and its value.
    """
    try:
        tensor = torch.as_tensor(scores, dtype=torch.float32).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise _not_numbers(scores, source) from error
    if tensor.dim() == 0:
        raise _not_numbers(scores, source)
    if tensor.shape != (len(episodes),):
        plural = "s" * (len(tensor) != 1)
        returned = f"{len(tensor)} score{plural}" if tensor.dim() == 1 else f"scores of shape {tuple(tensor.shape)}"
        raise RewardError(
            f"{source} returned {returned} for {len(episodes)} responses; return one float per response, in order"
        )
    bad = (~torch.isfinite(tensor)).nonzero().flatten().tolist()
    if bad:
        response = episodes[bad[0]].response
        raise RewardError(
            f"{source} returned {tensor[bad[0]].item()} for response {bad[0]} ({response[:60]!r}) and "
            f"{len(bad)} of {len(episodes)} scores are not finite; return finite numbers"
        )
    return tensor


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


def _not_numbers(scores: object, source: str) -> RewardError:
    return RewardError(
        f"{source} returned {reprlib.repr(scores)}, not a list of numbers; return one float per response"
    )
