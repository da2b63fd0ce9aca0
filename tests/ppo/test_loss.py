import math

import numpy as np
import pytest
import torch

from rlhfkit.errors import ConfigError, ShapeError
from rlhfkit.ppo import (
    approx_kl,
    clip_fraction,
    explained_variance,
    importance_weights,
    policy_loss,
    ratio_max_deviation,
    value_loss,
)
from tests.oracles import ppo as oracle

ONE = torch.tensor([[True]])


def one_token_loss(ratio, advantage, **settings):
    logprobs, zero = torch.tensor([[math.log(ratio)]]), torch.zeros(1, 1)
    return policy_loss(logprobs, zero, torch.tensor([[advantage]]), ONE, clip_range=0.2, **settings).item()


def random_batch(seed, spread=0.3, shape=(4, 9)):
    """Logprobs, old logprobs, advantages, values, old values, returns and a mask, in float64."""
    rng = np.random.default_rng(seed)
    old_logprobs, old_values = -rng.exponential(size=shape), rng.normal(size=shape)
    logprobs = old_logprobs + spread * rng.normal(size=shape)
    values = old_values + spread * rng.normal(size=shape)
    mask = rng.random(shape) < 0.6
    mask[0, 0] = True
    return logprobs, old_logprobs, rng.normal(size=shape), values, old_values, rng.normal(size=shape), mask


def torched(*arrays):
    return tuple(torch.from_numpy(array) for array in arrays)


# ── policy loss ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (math.e, 1.0, -1.2),  # a good action is already likelier: clipped
        (1 / math.e, 1.0, -0.36788),  # a good action got rarer: not clipped
        (math.e, -1.0, 2.71828),  # a bad action got likelier: not clipped
        (1 / math.e, -1.0, 0.8),  # a bad action is already rarer: clipped
        (1.1, 2.0, -2.2),
    ],
)
def test_ratio_is_clipped_only_where_it_helps(ratio, advantage, expected):
    assert one_token_loss(ratio, advantage) == pytest.approx(expected, abs=5e-6)


def test_gradient_of_the_objective_raises_the_chosen_action():
    logits = torch.tensor([1.0, 2.0, 1.0, 1.0], requires_grad=True)
    logprobs = logits.log_softmax(-1)[1].view(1, 1)
    policy_loss(logprobs, logprobs.detach(), torch.ones(1, 1), ONE, clip_range=0.2).backward()
    expected = torch.tensor([-0.1749, 0.5246, -0.1749, -0.1749])
    torch.testing.assert_close(-logits.grad, expected, atol=5e-5, rtol=0)  # 4 digits


def test_gradient_stops_where_the_ratio_is_clipped():
    logprobs = torch.tensor([[0.5, -0.5, 0.5, -0.5]], requires_grad=True)
    advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    policy_loss(logprobs, torch.zeros(1, 4), advantages, mask, clip_range=0.2).backward()
    expected = torch.tensor([[0.0, -math.exp(-0.5), math.exp(0.5), 0.0]]) / 4
    torch.testing.assert_close(logprobs.grad, expected)


@pytest.mark.parametrize("dual_clip", [None, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_policy_loss_equals_the_explicit_loop(seed, dual_clip):
    logprobs, old_logprobs, advantages, *_, mask = random_batch(seed, spread=1.5)
    loss = policy_loss(*torched(logprobs, old_logprobs, advantages, mask), clip_range=0.2, dual_clip=dual_clip)
    expected = oracle.policy_loss(logprobs, old_logprobs, advantages, mask, 0.2, dual_clip)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dual_clip", [None, 3.0])
def test_policy_loss_gradient_equals_finite_differences(dual_clip):
    logprobs, old_logprobs, advantages, *_, mask = torched(*random_batch(5, spread=1.5))
    logprobs.requires_grad_()

    def loss(logprobs):
        return policy_loss(logprobs, old_logprobs, advantages, mask, clip_range=0.2, dual_clip=dual_clip)

    assert torch.autograd.gradcheck(loss, logprobs)


def test_policy_loss_gives_gradient_to_nothing_but_the_logprobs():
    inputs = [torch.zeros(1, 1, requires_grad=True) for _ in range(3)]
    policy_loss(*inputs[:2], inputs[2] + 1, ONE, clip_range=0.2).backward()
    assert inputs[0].grad.item() == -1.0
    assert inputs[1].grad is None
    assert inputs[2].grad is None


@pytest.mark.parametrize(
    ("ratio", "advantage", "bounded"),
    [(4.0, -1.0, True), (2.9, -1.0, False), (4.0, 1.0, False), (0.1, -1.0, False), (0.1, 1.0, False)],
)
def test_dual_clip_matters_only_for_bad_actions_with_a_ratio_above_it(ratio, advantage, bounded):
    plain, dual = one_token_loss(ratio, advantage), one_token_loss(ratio, advantage, dual_clip=3.0)
    assert dual == pytest.approx(3.0 if bounded else plain)
    assert (dual != plain) == bounded


@pytest.mark.parametrize("dual_clip", [1.0, 0.5, -3.0])
def test_dual_clip_that_would_undo_the_clip_is_refused(dual_clip):
    with pytest.raises(ConfigError, match="expected more than 1"):
        one_token_loss(1.0, 1.0, dual_clip=dual_clip)


def test_weights_multiply_the_loss_of_each_token_after_both_clips():
    ratios, advantages = torch.tensor([[1.1, 1.5, 5.0, 9.0]]), torch.tensor([[2.0, 1.0, -1.0, 7.0]])
    mask = torch.tensor([[True, True, True, False]])
    loss = policy_loss(
        ratios.log(),
        torch.zeros(1, 4),
        advantages,
        mask,
        clip_range=0.2,
        dual_clip=3.0,
        weights=torch.tensor([[0.5, 2.0, 0.1, math.nan]]),
    )
    # 0.5 x -2.2, 2 x -1.2 (clipped), 0.1 x 3 (bounded by the dual clip): the mean is still over three tokens.
    assert loss.item() == pytest.approx((-1.1 - 2.4 + 0.3) / 3, rel=1e-6)


def test_weights_of_one_change_nothing_and_get_no_gradient():
    logprobs, old_logprobs, advantages, *_, mask = torched(*random_batch(7))
    weights = torch.ones_like(logprobs, requires_grad=True)
    logprobs.requires_grad_()
    plain = policy_loss(logprobs, old_logprobs, advantages, mask, clip_range=0.2)
    weighted = policy_loss(logprobs, old_logprobs, advantages, mask, clip_range=0.2, weights=weights)
    assert torch.equal(plain, weighted)
    weighted.backward()
    assert weights.grad is None


def test_weights_of_another_shape_are_refused():
    zeros = torch.zeros(1, 1)
    with pytest.raises(ShapeError, match="weights"):
        policy_loss(zeros, zeros, zeros, ONE, clip_range=0.2, weights=torch.ones(1))


# ── importance weights ───────────────────────────────────────────────────────────────────────────────────────────────


def test_importance_weight_is_the_ratio_of_the_probabilities_up_to_the_cap():
    old = torch.tensor([[0.2, 0.3, 0.5, 0.9]]).log()  # under the training pass
    sampled = torch.tensor([[0.4, 0.2, 0.2, 0.1]]).log()  # under the engine that drew the token
    mask = torch.tensor([[True, True, True, False]])
    weights = importance_weights(old, sampled, mask, cap=2.0)
    torch.testing.assert_close(weights, torch.tensor([[0.5, 1.5, 2.0, 1.0]]))


def test_weighted_loss_is_on_average_the_one_of_the_training_policy():
    rng = torch.Generator().manual_seed(0)
    trained, engine = torch.tensor([0.1, 0.3, 0.6]), torch.tensor([0.2, 0.4, 0.4])
    advantage_of = torch.tensor([3.0, -1.0, 2.0])
    drawn = torch.multinomial(engine, 400_000, replacement=True, generator=rng)[None]
    mask = torch.ones_like(drawn, dtype=torch.bool)
    old, advantages = trained.log()[drawn], advantage_of[drawn]
    weights = importance_weights(old, engine.log()[drawn], mask, cap=10.0)
    loss = policy_loss(old, old, advantages, mask, clip_range=0.2, weights=weights).item()
    assert loss == pytest.approx(-(0.1 * 3 - 0.3 + 0.6 * 2), abs=0.02)  # unweighted it is about -1.0, not -1.2


def test_a_cap_below_one_is_refused():
    zeros = torch.zeros(1, 1)
    with pytest.raises(ConfigError, match=r"importance cap 0\.5: expected at least 1"):
        importance_weights(zeros, zeros, ONE, cap=0.5)


# ── value loss ───────────────────────────────────────────────────────────────────────────────────────────────────────


def one_token_value_loss(value, old_value, target, value_clip_range):
    tensors = [torch.tensor([[x]]) for x in (value, old_value, target)]
    return value_loss(*tensors, ONE, value_clip_range=value_clip_range).item()


def test_value_loss_takes_the_larger_of_the_two_squares():
    # the value moved from 0 to 1 towards 3; clipped to 0.2 its error is 2.8, larger than 2
    assert one_token_value_loss(1.0, 0.0, 3.0, 0.2) == pytest.approx(0.5 * 2.8**2)
    # it moved away from -3; the clipped error 3.2 is smaller than 4
    assert one_token_value_loss(1.0, 0.0, -3.0, 0.2) == pytest.approx(0.5 * 4.0**2)
    # it moved down to -1, away from 3
    assert one_token_value_loss(-1.0, 0.0, 3.0, 0.2) == pytest.approx(0.5 * 4.0**2)
    assert one_token_value_loss(-1.0, 0.0, -3.0, 0.2) == pytest.approx(0.5 * 2.8**2)


def test_value_loss_without_clipping_is_half_the_squared_error():
    assert one_token_value_loss(1.0, 0.0, 3.0, None) == 0.5 * 2.0**2


@pytest.mark.parametrize("value_clip_range", [0.2, None])
@pytest.mark.parametrize("seed", range(3))
def test_value_loss_equals_the_explicit_loop(seed, value_clip_range):
    *_, values, old_values, returns, mask = random_batch(seed)
    loss = value_loss(*torched(values, old_values, returns, mask), value_clip_range=value_clip_range)
    expected = oracle.value_loss(values, old_values, returns, mask, value_clip_range)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("value_clip_range", [0.2, None])
def test_value_loss_gradient_equals_finite_differences(value_clip_range):
    *_, values, old_values, returns, mask = torched(*random_batch(6))
    values.requires_grad_()

    def loss(values):
        return value_loss(values, old_values, returns, mask, value_clip_range=value_clip_range)

    assert torch.autograd.gradcheck(loss, values)


def test_value_loss_gives_gradient_to_nothing_but_the_values():
    inputs = [torch.zeros(1, 1, requires_grad=True) for _ in range(3)]
    value_loss(inputs[0], inputs[1], inputs[2] + 1, ONE, value_clip_range=0.2).backward()
    assert inputs[0].grad.item() == -1.0
    assert inputs[1].grad is None
    assert inputs[2].grad is None


# ── both losses ──────────────────────────────────────────────────────────────────────────────────────────────────────


def rows_of_lengths_one_and_three():
    mask = torch.tensor([[True, False, False], [True, True, True]])
    advantages = torch.where(mask, torch.tensor([[1.0], [-1.0]]), 0.0)
    logits = torch.tensor([[0.3, -0.1, 0.4], [-0.2, 0.1, 0.05]], requires_grad=True)
    return logits, advantages, mask


def clipped_policy_loss(x, target, mask, denominator=None):
    return policy_loss(x, torch.zeros_like(x), target, mask, clip_range=0.2, denominator=denominator)


def clipped_value_loss(x, target, mask, denominator=None):
    return value_loss(x, torch.zeros_like(x), target, mask, value_clip_range=0.2, denominator=denominator)


@pytest.mark.parametrize("loss", [clipped_policy_loss, clipped_value_loss])
@pytest.mark.parametrize("split", [[[0, 1]], [[0], [1]], [[1], [0]]])
def test_cutting_a_minibatch_into_microbatches_changes_neither_loss_nor_gradient(loss, split):
    x, target, mask = rows_of_lengths_one_and_three()
    whole = loss(x, target, mask)
    (whole_gradient,) = torch.autograd.grad(whole, x)

    count = mask.sum()
    parts = [loss(x[rows], target[rows], mask[rows], count) for rows in split]
    (gradient,) = torch.autograd.grad(sum(parts), x)
    assert sum(parts).item() == pytest.approx(whole.item(), abs=1e-6)
    torch.testing.assert_close(gradient, whole_gradient, atol=1e-6, rtol=0)


def test_every_token_of_a_minibatch_weighs_the_same():
    # ratio 1 everywhere: one token with A = 1, three with A = -1, so -(1 - 3) / 4; a mean of row means would give 0
    _, advantages, mask = rows_of_lengths_one_and_three()
    assert clipped_policy_loss(torch.zeros(2, 3), advantages, mask).item() == 0.5


@pytest.mark.parametrize("loss", [clipped_policy_loss, clipped_value_loss])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_numbers_outside_the_mask_leak_neither_into_loss_nor_gradient(loss, bad):
    x, target, mask = rows_of_lengths_one_and_three()
    clean = loss(x, target, mask)
    (clean_gradient,) = torch.autograd.grad(clean, x)
    dirty_x = x.detach().masked_fill(~mask, bad).requires_grad_()
    dirty = loss(dirty_x, target.masked_fill(~mask, bad), mask)
    dirty.backward()
    assert dirty.item() == clean.item()
    assert torch.equal(dirty_x.grad, clean_gradient)


@pytest.mark.parametrize("loss", [clipped_policy_loss, clipped_value_loss])
def test_losses_of_half_precision_are_float32(loss):
    x, target, mask = rows_of_lengths_one_and_three()
    result = loss(x.bfloat16(), target.bfloat16(), mask)
    assert result.dtype == torch.float32
    # the inputs are rounded to 8 bits, the arithmetic is not
    assert result.item() == pytest.approx(loss(x.bfloat16().float(), target, mask).item(), rel=1e-6)


def test_the_ratio_of_half_precision_logprobs_is_taken_in_float32():
    # exact in bfloat16, but their difference 8.0625 - 1 / 128 is not
    logprobs, old_logprobs = torch.tensor([[-0.0078125]]).bfloat16(), torch.tensor([[-8.0625]]).bfloat16()
    loss = policy_loss(-logprobs, -old_logprobs, torch.ones(1, 1), ONE, clip_range=0.2)
    assert loss.item() == pytest.approx(-math.exp(0.0078125 - 8.0625), rel=1e-5)


def with_one_odd_shape(num_tensors, odd):
    tensors = [torch.zeros(2, 3) for _ in range(num_tensors)] + [torch.ones(2, 3, dtype=torch.bool)]
    tensors[odd] = tensors[odd][..., None]
    return tensors


@pytest.mark.parametrize("odd", range(4))
def test_losses_refuse_a_shape_that_would_broadcast(odd):
    with pytest.raises(ShapeError, match=r"\(2, 3, 1\).*expected one shape"):
        policy_loss(*with_one_odd_shape(3, odd), clip_range=0.2)
    with pytest.raises(ShapeError, match=r"\(2, 3, 1\).*expected one shape"):
        value_loss(*with_one_odd_shape(3, odd), value_clip_range=0.2)


@pytest.mark.parametrize("odd", range(3))
def test_statistics_refuse_a_shape_that_would_broadcast(odd):
    tensors = with_one_odd_shape(2, odd)
    for statistic in (approx_kl, ratio_max_deviation, explained_variance):
        with pytest.raises(ShapeError):
            statistic(*tensors)
    with pytest.raises(ShapeError):
        clip_fraction(*tensors, clip_range=0.2)


# ── statistics ───────────────────────────────────────────────────────────────────────────────────────────────────────

MOVED = torch.tensor([[math.log(1.5), math.log(0.5), math.log(1.1), math.nan]])
STILL = torch.tensor([[0.0, 0.0, 0.0, math.nan]])
FIRST_THREE = torch.tensor([[True, True, True, False]])


def test_approx_kl_is_the_mean_of_ratio_minus_one_minus_log_ratio():
    expected = (0.5 - math.log(1.5) - 0.5 - math.log(0.5) + 0.1 - math.log(1.1)) / 3
    assert approx_kl(MOVED, STILL, FIRST_THREE).item() == pytest.approx(expected)
    assert approx_kl(MOVED, STILL, FIRST_THREE, denominator=6).item() == pytest.approx(expected / 2)


def test_approx_kl_by_k1_is_the_mean_fall_of_the_logprobs():
    expected = -(math.log(1.5) + math.log(0.5) + math.log(1.1)) / 3
    assert approx_kl(MOVED, STILL, FIRST_THREE, kind="k1").item() == pytest.approx(expected)


def test_approx_kl_of_samples_approaches_the_true_kl():
    generator = torch.Generator().manual_seed(0)
    old, new = torch.randn(2, 6, generator=generator).log_softmax(-1)
    tokens = torch.multinomial(old.exp(), 200_000, replacement=True, generator=generator)
    truth = (old.exp() * (old - new)).sum().item()
    estimate = approx_kl(new[tokens], old[tokens], torch.ones(len(tokens), dtype=torch.bool)).item()
    assert estimate == pytest.approx(truth, rel=0.02)  # standard error of 200 000 samples is about 0.4 %
    wrong_way = (new.exp() * (new - old)).sum().item()
    assert abs(estimate - wrong_way) > 0.05 * truth


def test_clip_fraction_counts_both_sides_inside_the_mask():
    assert clip_fraction(MOVED, STILL, FIRST_THREE, clip_range=0.2).item() == pytest.approx(2 / 3)
    assert clip_fraction(MOVED, STILL, FIRST_THREE, clip_range=0.05).item() == 1.0
    assert clip_fraction(MOVED, STILL, FIRST_THREE, clip_range=0.2, denominator=4).item() == 0.5


def test_ratio_max_deviation_is_the_largest_inside_the_mask():
    assert ratio_max_deviation(MOVED, STILL, FIRST_THREE).item() == pytest.approx(0.5)
    assert ratio_max_deviation(STILL, MOVED, FIRST_THREE).item() == pytest.approx(1.0)
    assert ratio_max_deviation(MOVED[:, 1:], STILL[:, 1:], FIRST_THREE[:, 1:]).item() == pytest.approx(0.5)
    assert ratio_max_deviation(MOVED, MOVED, FIRST_THREE).item() == 0.0


def test_explained_variance_is_one_for_perfect_values_and_zero_for_a_constant():
    returns, mask = torch.tensor([[1.0, 2.0, 6.0, math.nan]]), FIRST_THREE
    assert explained_variance(returns, returns, mask).item() == 1.0
    assert explained_variance(torch.full((1, 4), 3.0), returns, mask).item() == pytest.approx(0.0, abs=1e-6)
    assert explained_variance(-returns, returns, mask).item() == pytest.approx(-3.0)  # error 2 R: 1 - 4
    # a constant offset is not counted
    assert explained_variance(returns + 5, returns, mask).item() == pytest.approx(1.0)


def test_explained_variance_equals_numpy():
    *_, values, _, returns, mask = random_batch(7)
    result = explained_variance(*torched(values, returns, mask))
    assert result.item() == pytest.approx(oracle.explained_variance(values, returns, mask), rel=1e-12)


@pytest.mark.parametrize("constant", [0.0, 0.1, -7.7, 1e6])
def test_explained_variance_of_constant_returns_is_zero(constant):
    # the mean of many equal numbers is rounded, so their float32 variance is not exactly 0
    returns = torch.full((9, 1111), constant)
    values = torch.randn(returns.shape, generator=torch.Generator().manual_seed(0))
    assert explained_variance(values, returns, torch.ones_like(returns, dtype=torch.bool)).item() == 0.0


def test_statistics_keep_no_graph():
    logprobs = torch.zeros(1, 1, requires_grad=True)
    other = torch.ones(1, 1)
    assert not approx_kl(logprobs, other, ONE).requires_grad
    assert not ratio_max_deviation(logprobs, other, ONE).requires_grad
    assert not explained_variance(logprobs, other, ONE).requires_grad
