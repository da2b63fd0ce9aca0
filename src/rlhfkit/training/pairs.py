"""The walk over pairs of texts that the reward model, its further heads and DPO share: a rank's part, by passes."""

from collections.abc import Callable, Sequence, Sized
from typing import Protocol

import torch
from torch import Tensor

from rlhfkit.distributed.ranks import ranks
from rlhfkit.padding import microbatches

__all__ = ["of_each_pair", "pair_passes"]


class TwoTexts(Protocol):
    """Two texts in tokens."""

    @property
    def chosen(self) -> Sized: ...
    @property
    def rejected(self) -> Sized: ...


def pair_passes(
    pairs: Sequence[TwoTexts], rows: Sequence[int], *, max_tokens: int, device: torch.device
) -> list[tuple[list[int], bool]]:
    """This rank's share of `rows`, which are numbers of pairs, by passes, and whether each counts (see `in_step`).

    Both texts of a pair go in one pass, which has at most `max_tokens` with its padding, or one pair.
    """
    own = [rows[place] for place in ranks().share(len(rows))]
    lengths = [2 * max(len(pairs[row].chosen), len(pairs[row].rejected)) for row in own]
    groups = microbatches(lengths, max_tokens=max_tokens, device=device)
    return ranks().in_step([[own[place] for place in group] for group in groups], list(rows[:1]))


def of_each_pair(
    pairs: Sequence[TwoTexts],
    values_of: Callable[[list[int]], Tensor],
    *,
    width: int,
    max_tokens: int,
    device: torch.device,
    on_finished: Callable[[int], None] = lambda num: None,
) -> Tensor:
    """What `values_of` says of each of N pairs (N, width), whole on every rank: float32 on the CPU.

    `values_of` takes the numbers of n pairs, and gives (n, width). `on_finished` hears how many more are done.
    """
    found, num_own = torch.zeros(len(pairs), width), 0
    for rows, counts in pair_passes(pairs, range(len(pairs)), max_tokens=max_tokens, device=device):
        values = values_of(rows)
        if counts:
            found[rows] = values.float().cpu()
            num_own += len(rows)
            on_finished(len(rows))
    ranks().add_up([found])  # zero where it is another rank's
    if num_own < len(pairs):
        on_finished(len(pairs) - num_own)
    return found
