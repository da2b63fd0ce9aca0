"""Scores of a reward within a budget of time: as many as fit, and how many were left out."""

import time
from collections.abc import Callable, Sequence

import torch

from rlhfkit.rewards.source import RewardSource, ScoredText

__all__ = ["BUDGET_SECONDS", "left_out", "scored_within"]

BUDGET_SECONDS = 20.0
"""What each try of a reward may take; the first few texts are scored however slow it is."""
FIRST = 2


def scored_within(
    reward: RewardSource,
    episodes: Sequence[ScoredText],
    *,
    seconds: float = BUDGET_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> list[float]:
    """Scores of the first episodes, an even number of them, as many as fit into the budget by the pace so far.

    Parts double in size as long as they are expected to fit, so that a fast reward sees nearly all in one call.
    """
    scores: list[float] = []
    start, size = clock(), FIRST
    while len(scores) < len(episodes):
        scores += torch.as_tensor(reward.score(episodes[len(scores) : len(scores) + size])).tolist()
        spent = clock() - start
        pace = spent / len(scores)
        room = int((seconds - spent) / pace) if pace > 0 else len(episodes)
        if room < FIRST:
            break
        size = min(2 * size, room // FIRST * FIRST)
    return scores


def left_out(num: int, of: int, what: str) -> str:
    """That only `num` were scored, and why; nothing where none is left out."""
    if num >= of:
        return ""
    return f" (of {of} {what}; the others are skipped, as they would take more than {BUDGET_SECONDS:.0f} s)"
