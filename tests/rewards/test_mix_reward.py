from collections.abc import Sequence

import pytest
import torch

from rlhfkit.config.rewards import LengthRewardConfig
from rlhfkit.errors import RewardError
from rlhfkit.rewards import MixReward, ScoredText
from rlhfkit.rewards.length import LengthReward
from rlhfkit.rewards.mix import combined, disagreement


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


MEMBERS = torch.tensor([[1.0, 3.0, 5.0], [2.0, 2.0, 2.0], [0.0, -6.0, 3.0]])
"""Means 3, 2 and -1; variances 8/3, 0 and 14."""


def test_members_are_combined_as_worked_out_by_hand():
    assert combined(MEMBERS, "sum").tolist() == [9.0, 6.0, -3.0]
    assert combined(MEMBERS, "mean").tolist() == [3.0, 2.0, -1.0]
    assert combined(MEMBERS, "min").tolist() == [1.0, 2.0, -6.0]
    less = combined(MEMBERS, "mean_minus_variance", variance_coef=0.75)
    assert less.tolist() == pytest.approx([3 - 2.0, 2.0, -1 - 10.5])
    assert disagreement(MEMBERS).square().tolist() == pytest.approx([8 / 3, 0.0, 14.0])


@pytest.mark.parametrize("how", ["sum", "mean", "min", "mean_minus_variance"])
def test_one_member_is_the_score_itself_to_the_last_bit(how):
    scores = torch.randn(100, 1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(combined(scores, how, variance_coef=3.0), scores[:, 0])


def test_an_ensemble_of_sources_tells_how_far_they_disagree(make_episodes):
    parts = [(1.0, Scripted(1.0, 2.0)), (1.0, Scripted(3.0, 2.0))]
    scores, details = MixReward(parts, how="min").score_in_detail(make_episodes("a", "b"))
    assert scores.tolist() == [1.0, 2.0]
    assert {name: numbers.tolist() for name, numbers in details.items()} == {"disagreement": [1.0, 0.0]}


def test_a_sum_tells_its_parts_those_of_weight_0_too(make_episodes):
    scores, details = MixReward([(2.0, Scripted(1.0)), (0.0, Scripted(7.0))]).score_in_detail(make_episodes("a"))
    assert scores.tolist() == [2.0]
    assert {name: numbers.tolist() for name, numbers in details.items()} == {"part_0": [1.0], "part_1": [7.0]}


def test_what_a_part_tells_is_told_by_the_mix(make_episodes):
    inner = MixReward([(1.0, Scripted(1.0)), (1.0, Scripted(5.0))], how="mean")
    _, details = MixReward([(1.0, inner), (1.0, Scripted(0.0))]).score_in_detail(make_episodes("a"))
    assert details["disagreement"].tolist() == [2.0]


@pytest.mark.parametrize(("unit", "lengths"), [("words", [0.0, 3.0]), ("characters", [0.0, 14.0])])
def test_a_length_is_counted_in_its_unit(make_episodes, unit, lengths):
    assert LengthReward(LengthRewardConfig(unit=unit)).score(make_episodes("", " one two three")).tolist() == lengths
