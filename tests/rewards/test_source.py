import math

import pytest
import torch

from rlhfkit.errors import RewardError
from rlhfkit.rewards import check_scores


def test_scores_become_float32_on_the_cpu(make_episodes):
    scores = check_scores([1, 2.5], make_episodes("a", "b"), source="mine")
    assert scores.dtype == torch.float32
    assert scores.tolist() == [1.0, 2.5]


def test_scores_of_no_episodes_are_empty():
    assert check_scores([], [], source="mine").shape == (0,)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (None, "mine returned None, not a list of numbers"),
        (["a", "b"], r"mine returned \['a', 'b'\], not a list of numbers"),
        ([1.0, None], "not a list of numbers"),
        ([1.0], "returned 1 score for 2 responses"),
        ([1.0, 2.0, 3.0], "returned 3 scores for 2 responses"),
        ([[1.0], [2.0]], r"shape \(2, 1\) for 2 responses"),
        (3.0, r"returned 3\.0, not a list of numbers"),
        ([1.0, math.nan], r"returned nan for response 1 \('b'\) and 1 of 2"),
        ([math.inf, -math.inf], r"returned inf for response 0 \('a'\) and 2 of 2"),
        ([1e300, 0.0], "returned inf for response 0"),
    ],
)
def test_anything_but_one_finite_number_per_response_is_an_error(make_episodes, scores, words):
    with pytest.raises(RewardError, match=words):
        check_scores(scores, make_episodes("a", "b"), source="mine")
