"""How long a response is, as a score."""

from collections.abc import Sequence

import torch

from rlhfkit.config.rewards import LengthRewardConfig
from rlhfkit.rewards.source import ScoredText, check_scores

__all__ = ["LengthReward"]


class LengthReward:
    """Words or characters of a response; what ends it does not count."""

    def __init__(self, config: LengthRewardConfig) -> None:
        """Count what `config` says."""
        self.unit = config.unit

    def score(self, episodes: Sequence[ScoredText]) -> torch.Tensor:
        """Lengths (B,)."""
        texts = [episode.response for episode in episodes]
        lengths = [len(text.split()) if self.unit == "words" else len(text) for text in texts]
        return check_scores(lengths, episodes, source="length")
