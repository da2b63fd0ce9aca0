"""Further heads on one trunk, and the line of scores over lengths, against independent computations."""

import numpy as np
import pytest
import torch
from scipy.optimize import approx_fprime
from scipy.stats import linregress

from rlhfkit.models.reward_model import Normalization, Scale
from rlhfkit.training.reward_heads import drawn_with_replacement, fit_head
from rlhfkit.training.reward_model import length_trend

GENERATOR = np.random.default_rng(0)
DIFFERENCES, MARGINS, ANCHOR = GENERATOR.normal(size=(40, 3)), np.full(40, 0.1), np.array([0.3, -0.2, 0.1])


def penalised_loss(head):
    logits = DIFFERENCES @ head - MARGINS
    return np.log(1 + np.exp(-logits)).sum() + ((head - ANCHOR) ** 2).sum() / (2 * 0.5**2)


def test_a_head_is_where_the_penalised_loss_has_no_slope():
    head = fit_head(DIFFERENCES, MARGINS, ANCHOR, std=0.5)
    assert np.abs(approx_fprime(head, penalised_loss, 1e-6)).max() < 1e-3
    assert penalised_loss(head) < penalised_loss(ANCHOR)


def test_where_the_pairs_say_nothing_a_head_stays_at_its_anchor():
    blind = DIFFERENCES * [1.0, 1.0, 0.0]
    assert fit_head(blind, MARGINS, ANCHOR, std=0.5)[2] == pytest.approx(ANCHOR[2])


def test_a_draw_takes_all_rows_of_a_prompt_as_often_as_the_prompt():
    prompts = ["a", "b", "a", "c", "c", "c"]
    rows = drawn_with_replacement(prompts, seed=1)
    counts = {prompt: {rows.count(row) for row, other in enumerate(prompts) if other == prompt} for prompt in "abc"}
    assert all(len(times) == 1 for times in counts.values())
    assert sum(times.pop() for times in counts.values()) == 3
    assert rows == drawn_with_replacement(prompts, seed=1)
    assert len({tuple(drawn_with_replacement(prompts, seed=seed)) for seed in range(20)}) > 5


def test_the_line_over_the_length_is_that_of_least_squares():
    lengths = torch.tensor([5.0, 9.0, 2.0, 7.0, 12.0, 4.0, 8.0, 3.0])
    raw = 0.3 * lengths + torch.tensor([0.5, -0.4, 0.2, 0.0, -0.6, 0.9, 0.1, -0.7])
    trend, expected = length_trend(raw, lengths), linregress(lengths.numpy(), raw.numpy())
    assert trend.slope == pytest.approx(expected.slope, rel=1e-5)
    assert trend.correlation == pytest.approx(expected.rvalue, rel=1e-5)
    scale = Scale(Normalization(float(raw.mean()), float(raw.std(correction=0))), trend)
    debiased = scale.normalised(raw, lengths)
    assert float(debiased.mean()) == pytest.approx(0, abs=1e-5)
    assert float(debiased.std(correction=0)) == pytest.approx(1, rel=1e-5)
    assert float((debiased * (lengths - lengths.mean())).mean()) == pytest.approx(0, abs=1e-4)
    residuals = raw.numpy() - expected.intercept - expected.slope * lengths.numpy()
    np.testing.assert_allclose(debiased.numpy(), residuals / residuals.std(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("raw", "lengths"),
    [
        ([1.0, 2.0] * 4, [3.0] * 8),
        ([1.0] * 8, [1.0, 2.0] * 4),
        ([1.0, 2.0] * 4, [1.0, 2.0] * 4),
        ([1.0, 3.0], [1.0, 2.0]),
    ],
    ids=["equal lengths", "equal scores", "the length itself", "too few"],
)
def test_there_is_no_line_where_it_would_say_nothing(raw, lengths):
    assert length_trend(torch.tensor(raw), torch.tensor(lengths)) is None
