import math

import numpy as np
import pytest
import torch

from rlhfkit.config.schema import AnnotatorsConfig
from rlhfkit.errors import ShapeError
from rlhfkit.feedback.simulated import SimulatedAnnotators
from rlhfkit.records import Prompt
from rlhfkit.rewards.source import ScoredText


class LengthReward:
    """Longer is better."""

    def score(self, episodes):
        return torch.tensor([float(len(episode.response)) for episode in episodes])


def episodes(*responses):
    return [ScoredText(Prompt(f"prompt {number}"), "", response) for number, response in enumerate(responses)]


def vote(first, second, *, disagreement=0.0, votes_per_pair=1, seed=0):
    annotators = SimulatedAnnotators(
        AnnotatorsConfig(disagreement=disagreement, votes_per_pair=votes_per_pair), LengthReward()
    )
    return annotators.vote(episodes(*first), episodes(*second), np.random.default_rng(seed))


def test_people_who_never_err_choose_the_truly_better_response():
    result = vote(["long one", "b"], ["a", "longer"])
    assert [(p.prompt.content, p.chosen, p.rejected) for p in result.preferences] == [
        ("prompt 0", "long one", "a"),
        ("prompt 1", "longer", "b"),
    ]
    assert (result.num_votes, result.disagreement) == (2, 0.0)


def test_people_who_always_err_choose_the_worse_one():
    result = vote(["long one", "b"], ["a", "longer"], disagreement=1.0, votes_per_pair=3)
    assert [(p.chosen, p.rejected) for p in result.preferences] == [("a", "long one"), ("b", "longer")]
    assert (result.num_votes, result.num_disagreeing_votes, result.disagreement) == (6, 6, 1.0)


def test_disagreement_is_the_configured_share_of_votes():
    size = 4000
    result = vote(["long"] * size, ["a"] * size, disagreement=0.15)
    bound = 4 * math.sqrt(0.15 * 0.85 / size)
    assert abs(result.disagreement - 0.15) < bound
    wrong = sum(preference.chosen == "a" for preference in result.preferences)
    assert wrong == result.num_disagreeing_votes


def test_majority_of_three_errs_less_than_one_vote():
    size = 4000
    result = vote(["long"] * size, ["a"] * size, disagreement=0.2, votes_per_pair=3)
    wrong = sum(preference.chosen == "a" for preference in result.preferences) / size
    expected = 0.2**3 + 3 * 0.2**2 * 0.8  # 0.104
    assert abs(wrong - expected) < 4 * math.sqrt(expected * (1 - expected) / size)
    assert result.num_votes == 3 * size


def test_tie_drops_the_pair_and_is_counted():
    size = 2000
    result = vote(["long"] * size, ["a"] * size, disagreement=0.5, votes_per_pair=2)
    assert len(result.preferences) + result.num_ties == size
    assert abs(result.num_ties / size - 0.5) < 4 * math.sqrt(0.25 / size)


def test_equal_rewards_are_decided_by_a_coin_and_are_no_disagreement():
    size = 2000
    result = vote(["ab"] * size, ["cd"] * size, disagreement=0.0)
    assert (result.num_equal, result.num_votes, result.disagreement) == (size, 0, 0.0)
    first = sum(preference.chosen == "ab" for preference in result.preferences)
    assert abs(first / size - 0.5) < 4 * math.sqrt(0.25 / size)


def test_pairs_that_cannot_teach_are_left_out_and_counted():
    result = vote(["same", "", "long one"], ["same", "a", "b"])
    assert [preference.chosen for preference in result.preferences] == ["long one"]
    assert result.num_unusable == 2


def test_nothing_to_vote_on_gives_nothing():
    assert vote([], []).preferences == []


def test_same_seed_gives_the_same_votes():
    first, second = ["long"] * 50, ["a"] * 50
    assert vote(first, second, disagreement=0.3, seed=1) == vote(first, second, disagreement=0.3, seed=1)
    assert vote(first, second, disagreement=0.3, seed=1) != vote(first, second, disagreement=0.3, seed=2)


def test_lists_of_different_length_are_refused():
    with pytest.raises(ShapeError, match="2 first and 1 second responses"):
        vote(["a", "b"], ["c"])
