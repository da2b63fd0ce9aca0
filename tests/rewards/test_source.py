import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
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
        (["a", "b"], r"mine returned \['a', 'b'\], not a list of numbers \('a' for response 0\)"),
        ([1.0, None], r"not a list of numbers \(None for response 1\)"),
        ({"score": 1.0}, r"mine returned \{'score': 1\.0\}, not a list of numbers \(but dict\)"),
        ({1.0, 2.0}, r"not a list of numbers \(but set\)"),  # a set has no order
        ("12", "not a list of numbers"),
        ([1.0, "2"], r"\('2' for response 1\)"),
        ([1 + 2j, 0.0], r"\(\(1\+2j\) for response 0\)"),
        (torch.ones(2, 1), r"shape \(2, 1\) for 2 responses"),
        (torch.tensor(0.5), r"returned 0\.5, not a list of numbers: one score for 2 responses"),
        ([10**400, 0.0], "returned inf for response 0"),
        ([1.0], "returned 1 score for 2 responses"),
        ([1.0, 2.0, 3.0], "returned 3 scores for 2 responses"),
        ([1.0, [2.0]], r"returned scores for 2 responses in which response 1 has the list \[2\.0\]"),
        (3.0, r"returned 3\.0, not a list of numbers"),
        ([1.0, math.nan], r"returned nan for response 1 \('b'\) and 1 of 2"),
        ([math.inf, -math.inf], r"returned inf for response 0 \('a'\) and 2 of 2"),
        ([1e300, 0.0], "returned inf for response 0"),
    ],
)
def test_anything_but_one_finite_number_per_response_is_an_error(make_episodes, scores, words):
    with pytest.raises(RewardError, match=words):
        check_scores(scores, make_episodes("a", "b"), source="mine")


@pytest.mark.parametrize(
    "scores",
    [
        (1.0, 0.0),
        np.array([1.0, 0.0]),
        [np.float32(1.0), np.int64(0)],
        torch.tensor([1.0, 0.0], dtype=torch.bfloat16, requires_grad=True),
        [torch.tensor(1.0), torch.tensor([0.0])],
        [True, False],
        [Fraction(1), Decimal(0)],
    ],
    ids=str,
)
def test_numbers_of_any_library_are_scores(make_episodes, scores):
    assert check_scores(scores, make_episodes("a", "b"), source="mine").tolist() == [1.0, 0.0]
