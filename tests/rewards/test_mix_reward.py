from collections.abc import Sequence

import pytest
import torch

from rlhfkit.errors import RewardError
from rlhfkit.rewards import MixReward, ScoredText


class Scripted:
    """A source that says what it was told to say."""

    def __init__(self, *scores: float) -> None:
        self.scores = scores

    def score(self, episodes: Sequence[ScoredText]) -> torch.Tensor:
        return torch.tensor(self.scores)


class Broken:
    def score(self, episodes: Sequence[ScoredText]) -> torch.Tensor:
        raise RewardError("the endpoint is gone")


def test_score_is_the_weighted_sum_of_the_parts(make_episodes):
    mix = MixReward([(2.0, Scripted(1.0, 2.0)), (-0.5, Scripted(4.0, -4.0))])
    assert mix.score(make_episodes("a", "b")).tolist() == [0.0, 6.0]


def test_parts_are_seen_unweighted_and_combine_to_the_score(make_episodes):
    mix = MixReward([(2.0, Scripted(1.0, 2.0)), (-0.5, Scripted(4.0, -4.0))])
    parts = mix.score_parts(make_episodes("a", "b"))
    assert parts.tolist() == [[1.0, 4.0], [2.0, -4.0]]
    assert torch.equal(mix.combine(parts), mix.score(make_episodes("a", "b")))


def test_a_mix_of_mixes_is_a_source_too(make_episodes):
    inner = MixReward([(3.0, Scripted(1.0))])
    assert MixReward([(2.0, inner)]).score(make_episodes("a")).tolist() == [6.0]


def test_the_failure_of_a_part_is_the_failure_of_the_mix(make_episodes):
    with pytest.raises(RewardError, match="the endpoint is gone"):
        MixReward([(1.0, Scripted(1.0)), (1.0, Broken())]).score(make_episodes("a"))
