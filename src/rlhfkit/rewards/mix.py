"""Several rewards as one: a weighted sum, or an ensemble's mean, worst case, or mean less variance."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhfkit.config.rewards import Combination
from rlhfkit.rewards.source import Detailed, RewardSource, ScoredText, scored_in_detail

__all__ = ["MixReward", "combined", "disagreement"]


def combined(scores: Tensor, how: Combination, *, variance_coef: float = 0.0) -> Tensor:
    """One score (B,) out of what K sources say (B, K).

    sum                  r_1 + … + r_K
    mean                 (r_1 + … + r_K) / K
    min                  min_k r_k
    mean_minus_variance  mean - variance_coef * (1 / K) * sum_k (r_k - mean)^2

    The last two believe a response less where the sources disagree, as they do on what none of them was trained on.
    With K = 1 all four are r_1, to the last bit.
    Source: Coste et al. 2023, arXiv 2310.02743, eq. 4 and 5 (worst-case and uncertainty-weighted optimization).
    """
    if how == "sum":
        return scores.sum(dim=1)
    if how == "min":
        return scores.amin(dim=1)
    mean = scores.mean(dim=1)
    return mean if how == "mean" else mean - variance_coef * disagreement(scores).square()


def disagreement(scores: Tensor) -> Tensor:
    """Standard deviation (B,) of what K sources say (B, K) of one response, sqrt((1 / K) * sum_k (r_k - mean)^2)."""
    return scores.std(dim=1, correction=0)


class MixReward:
    """score = combination over parts of weight * part's score."""

    def __init__(
        self,
        parts: Sequence[tuple[float, RewardSource]],
        *,
        how: Combination = "sum",
        variance_coef: float = 0.0,
    ) -> None:
        """Mix `parts`, each a weight and a source; for `how` and `variance_coef` see `combined`."""
        self.parts, self.how, self.variance_coef = tuple(parts), how, variance_coef

    def score(self, episodes: Sequence[ScoredText]) -> Tensor:
        """Scores (B,)."""
        return self.score_in_detail(episodes)[0]

    def score_parts(self, episodes: Sequence[ScoredText]) -> Tensor:
        """What each part says by itself, unweighted (B, parts)."""
        return torch.stack([source.score(episodes) for _, source in self.parts], dim=1)

    def combine(self, part_scores: Tensor) -> Tensor:
        """Scores (B,) out of `score_parts`, for callers that log the parts too."""
        weighted = part_scores * torch.tensor([weight for weight, _ in self.parts])
        return combined(weighted, self.how, variance_coef=self.variance_coef)

    def score_in_detail(self, episodes: Sequence[ScoredText]) -> Detailed:
        """Scores (B,); of a sum what each part says, unweighted, of an ensemble the disagreement of its members."""
        found = [scored_in_detail(source, episodes) for _, source in self.parts]
        details = {name: numbers for _, inner in reversed(found) for name, numbers in inner.items()}
        scores = torch.stack([scores for scores, _ in found], dim=1)
        weighted = scores * torch.tensor([weight for weight, _ in self.parts])
        if self.how == "sum":
            details |= {f"part_{index}": numbers for index, numbers in enumerate(scores.unbind(1))}
        else:
            details["disagreement"] = disagreement(weighted)
        return self.combine(scores), details
