"""Simulated people, who know the true reward and err at a stated rate."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhfkit.config.schema import AnnotatorsConfig
from rlhfkit.errors import ShapeError
from rlhfkit.records import Preference
from rlhfkit.rewards.source import RewardSource, ScoredText

__all__ = ["SimulatedAnnotators", "Vote"]


@dataclass(frozen=True, slots=True)
class Vote:
    """What the simulated people said of pairs of responses."""

    preferences: list[Preference]
    """The pairs with a majority, in order."""
    num_votes: int
    """Votes on pairs of which one is truly better."""
    num_disagreeing_votes: int
    """Those of them that went to the worse one."""
    num_equal: int
    """Pairs with equal true scores, which were voted on with a fair coin."""
    num_ties: int
    """Pairs dropped because as many voted for the one as for the other."""
    num_unusable: int
    """Pairs dropped without a vote because both responses are the same, or one is empty."""

    @property
    def disagreement(self) -> float:
        """Share of the votes that went against the true reward; 0 where there were none."""
        return self.num_disagreeing_votes / max(1, self.num_votes)


class SimulatedAnnotators:
    """People who prefer the response with the higher true reward, except by mistake.

    Each vote on a pair is a mistake with probability `config.disagreement`, whatever the other votes and however large
    the difference; on a pair with equal rewards each vote is a coin flip.
    """

    def __init__(self, config: AnnotatorsConfig, reward: RewardSource) -> None:
        """Vote as `config` says, by what `reward` says is better."""
        self.config = config
        self.reward = reward

    def vote(self, first: Sequence[ScoredText], second: Sequence[ScoredText], generator: np.random.Generator) -> Vote:
        """Preferences between first[i] and second[i], two responses to the same prompt.

        Raises: ShapeError where the two lists have different lengths, RewardError where the reward cannot score.
        """
        if len(first) != len(second):
            raise ShapeError(f"{len(first)} first and {len(second)} second responses; expected as many; pair them up")
        pairs = [(one, other) for one, other in zip(first, second, strict=True) if _usable(one, other)]
        num_votes = self.config.votes_per_pair
        gains = self._scores([one for one, _ in pairs]) - self._scores([other for _, other in pairs])
        draws = generator.random((len(pairs), num_votes))
        equal = gains == 0
        mistaken = draws < self.config.disagreement
        for_first = np.where(equal[:, None], draws < 0.5, (gains > 0)[:, None] ^ mistaken).sum(axis=1)
        preferences = [
            Preference(one.prompt, one.response, other.response)
            if 2 * votes > num_votes
            else Preference(one.prompt, other.response, one.response)
            for (one, other), votes in zip(pairs, for_first, strict=True)
            if 2 * votes != num_votes
        ]
        return Vote(
            preferences,
            num_votes=int((~equal).sum()) * num_votes,
            num_disagreeing_votes=int(mistaken[~equal].sum()),
            num_equal=int(equal.sum()),
            num_ties=len(pairs) - len(preferences),
            num_unusable=len(first) - len(pairs),
        )

    def _scores(self, episodes: list[ScoredText]) -> np.ndarray:
        return self.reward.score(episodes).double().numpy() if episodes else np.zeros(0)


def _usable(one: ScoredText, other: ScoredText) -> bool:
    return bool(one.response.strip() and other.response.strip() and one.response != other.response)
