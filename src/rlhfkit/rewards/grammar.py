"""The true score of the synthetic reviews as a reward; it exists because that world is made up."""

from collections.abc import Sequence

import torch

from rlhfkit.data.grammar import true_score
from rlhfkit.errors import DataError, RewardError
from rlhfkit.rewards.source import ScoredText, check_scores

__all__ = ["GrammarReward"]


class GrammarReward:
    """Good clauses less bad ones of a restaurant review; see `data/grammar.py`."""

    def score(self, episodes: Sequence[ScoredText]) -> torch.Tensor:
        """True scores (B,), from -8 upwards to 8 where no clause is malformed.

        Raises: RewardError where a prompt does not ask for a review.
        """
        try:
            scores = [true_score(_prompt(episode), episode.response) for episode in episodes]
        except DataError as error:
            raise RewardError(f'reward.type = "grammar": {error}') from error
        return check_scores(scores, episodes, source="the grammar's reward")


def _prompt(episode: ScoredText) -> str:
    content = episode.prompt.content
    return content if isinstance(content, str) else content[-1].content
