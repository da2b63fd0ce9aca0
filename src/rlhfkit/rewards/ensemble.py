"""The members of a reward-model ensemble as one reward."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhfkit.config.rewards import Combination
from rlhfkit.rewards.mix import combined, disagreement
from rlhfkit.rewards.model import RewardModelReward
from rlhfkit.rewards.source import Detailed, ScoredText

__all__ = ["EnsembleReward"]


class EnsembleReward:
    """What the normalised scores of all members come to: their mean, the worst case, or the mean less variance."""

    def __init__(self, members: Sequence[RewardModelReward], *, how: Combination, variance_coef: float) -> None:
        """Combine `members`, of which each may have several heads, as `combined` does."""
        self.members, self.how, self.variance_coef = tuple(members), how, variance_coef

    def score_members(self, episodes: Sequence[ScoredText]) -> Tensor:
        """Normalised scores (B, K) of all members."""
        return torch.cat([member.score_heads(episodes) for member in self.members], dim=1)

    def score_in_detail(self, episodes: Sequence[ScoredText]) -> Detailed:
        """Scores (B,), and as "disagreement" the deviation of the members around their mean."""
        scores = self.score_members(episodes)
        return self.combine(scores), {"disagreement": disagreement(scores)}

    def combine(self, scores: Tensor) -> Tensor:
        """(B,) of the scores (B, K) of all members."""
        return combined(scores, self.how, variance_coef=self.variance_coef)

    def score(self, episodes: Sequence[ScoredText]) -> Tensor:
        """Scores (B,)."""
        return self.score_in_detail(episodes)[0]
