"""Whether a response is the one that the prompt's row gives."""

from collections.abc import Sequence

import torch

from rlhfkit.rewards.source import ScoredText, check_scores, references_of

__all__ = ["MatchReward"]


class MatchReward:
    """score = 1 where the response equals one of the prompt's references, blanks around them aside; 0 elsewhere."""

    type = "match"

    def score(self, episodes: Sequence[ScoredText]) -> torch.Tensor:
        """Scores (B,).

        Raises: RewardError where a prompt has no reference.
        """
        references = references_of([episode.prompt for episode in episodes], wanted_by='reward.type = "match"')
        right = [
            float(episode.response.strip() in accepted) for episode, accepted in zip(episodes, references, strict=True)
        ]
        return check_scores(right, episodes, source="match")
