"""A weighted sum of rewards."""

from collections.abc import Sequence

import torch

from rlhfkit.rewards.source import RewardSource, ScoredText

__all__ = ["MixReward"]


class MixReward:
    """score = sum over parts of weight * part's score."""

    def __init__(self, parts: Sequence[tuple[float, RewardSource]]) -> None:
        """Mix `parts`, each a weight and a source."""
        self.parts = tuple(parts)

    def score(self, episodes: Sequence[ScoredText]) -> torch.Tensor:
        """Scores (B,)."""
        return self.combine(self.score_parts(episodes))

    def score_parts(self, episodes: Sequence[ScoredText]) -> torch.Tensor:
        """What each part says by itself, unweighted (B, parts)."""
        return torch.stack([source.score(episodes) for _, source in self.parts], dim=1)

    def combine(self, part_scores: torch.Tensor) -> torch.Tensor:
        """Scores (B,) out of `score_parts`, for callers that log the parts too."""
        return (part_scores * torch.tensor([weight for weight, _ in self.parts])).sum(dim=1)
