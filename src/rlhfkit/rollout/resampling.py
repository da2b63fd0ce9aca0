"""Dynamic sampling: other prompts in place of those whose responses all score alike, which teach nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhfkit.diagnosis.limits import FLAT_SCORES
from rlhfkit.distributed.ranks import ranks
from rlhfkit.models.encoder import EncodedPrompt
from rlhfkit.rollout.generation import Response

__all__ = ["Answered", "flat_groups", "with_variance"]


@dataclass(frozen=True)
class Answered:
    """Prompts, each `group_size` times in a row, with their responses and what the reward says of them."""

    prompts: list[EncodedPrompt]
    responses: list[Response]
    scores: Tensor
    """(B,) as the reward gives them."""
    details: dict[str, Tensor]
    """(B,) each, what the reward tells beside them."""

    def parts(self) -> tuple[list[EncodedPrompt], list[Response], Tensor, dict[str, Tensor]]:
        """Prompts, responses, scores and details."""
        return self.prompts, self.responses, self.scores, self.details

    def put(self, rows: Sequence[int], other: "Answered", places: Sequence[int]) -> "Answered":
        """The same with the rows `places` of `other` in place of `rows`."""
        prompts, responses = list(self.prompts), list(self.responses)
        for row, place in zip(rows, places, strict=True):
            prompts[row], responses[row] = other.prompts[place], other.responses[place]

        def merged(own: Tensor, new: Tensor) -> Tensor:
            into, out_of = (torch.tensor(x, dtype=torch.long, device=own.device) for x in (rows, places))
            return own.index_copy(0, into, new.to(own)[out_of])

        return Answered(
            prompts,
            responses,
            merged(self.scores, other.scores),
            {name: merged(numbers, other.details[name]) for name, numbers in self.details.items()},
        )


def flat_groups(scores: Tensor, group_size: int) -> list[int]:
    """Numbers of the groups, of `group_size` neighbours each, whose `scores` (B,) do not differ."""
    groups = scores.view(-1, group_size)
    is_flat = groups.amax(1) - groups.amin(1) <= FLAT_SCORES
    return [int(number) for number in is_flat.nonzero().flatten()]


def with_variance(
    answered: Answered, *, group_size: int, rounds: int, answer: Callable[[int, int], Answered]
) -> tuple[Answered, dict[str, float]]:
    """What was answered, with other prompts in place of the groups that score alike, and metrics of that.

    `answer(round, num)` samples and scores `num` further prompts. There are `rounds` of it at most: where a reward is
    the same for everything it would never end. Groups that are flat after the last one stay as they are.
    Source: Yu et al. 2025 (DAPO), arXiv 2503.14476, section 3.2.
    """
    num_groups, drawn = len(answered.scores) // group_size, 0
    flat = ranks().from_first(flat_groups(answered.scores, group_size))
    first_share = len(flat) / num_groups
    for number in range(rounds):
        if not flat:
            break
        other = answer(number, len(flat))
        drawn += len(flat)
        still = set(ranks().from_first(flat_groups(other.scores, group_size)))
        good = [place for place in range(len(flat)) if place not in still]
        rows, places = _rows([flat[place] for place in good], group_size), _rows(good, group_size)
        answered = answered.put(rows, other, places)
        flat = [flat[place] for place in sorted(still)]
    return answered, {
        "rollout/flat_share": first_share,
        "rollout/flat_share_left": len(flat) / num_groups,
        "rollout/resampled_prompts": float(drawn),
    }


def _rows(groups: Sequence[int], group_size: int) -> list[int]:
    return [row for group in groups for row in range(group * group_size, (group + 1) * group_size)]
