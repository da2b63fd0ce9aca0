import math

import numpy as np
import pytest
import torch

from rlhfkit.errors import ConfigError, ShapeError
from rlhfkit.ppo import gae, grpo_advantages, next_token_values, rloo_advantages, spread_over_tokens, whiten
from tests.oracles import ppo as oracle

NAN = math.nan


def text_gae(rewards, values, *, gamma, gae_lambda, mask=None):
    """GAE of rows of text: terminated at the last token that counts."""
    rewards, values = torch.tensor(rewards), torch.tensor(values)
    mask = torch.ones(rewards.shape, dtype=torch.bool) if mask is None else torch.tensor(mask)
    last = torch.zeros_like(mask)
    for row in range(len(mask)):
        last[row, mask[row].nonzero().max()] = True
    next_values = next_token_values(values, mask)
    return gae(rewards, values, next_values, last, last, gamma=gamma, gae_lambda=gae_lambda, mask=mask)


def random_episodes(seed, num_rows=4, num_steps=12):
    rng = np.random.default_rng(seed)
    shape = (num_rows, num_steps)
    terminated = rng.random(shape) < 0.15
    ended = terminated | (rng.random(shape) < 0.15)
    return rng.normal(size=shape), rng.normal(size=shape), rng.normal(size=shape), terminated, ended


# ── GAE: numbers ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_returns_of_a_late_reward_decay_with_gamma_and_lambda():
    values = [[0.0, 0.0, 0.0, 1.0]]
    advantages = text_gae([[0.0, 0.0, 0.0, 1.0]], values, gamma=0.9, gae_lambda=0.95)
    returns = advantages + torch.tensor(values)
    torch.testing.assert_close(returns, torch.tensor([[0.65792, 0.7695, 0.9, 1.0]]), atol=5e-6, rtol=0)  # 5 digits
    torch.testing.assert_close(returns, torch.tensor([[0.9**3 * 0.95**2, 0.9**2 * 0.95, 0.9, 1.0]]))


@pytest.mark.parametrize("shift_mean", [True, False])
def test_nan_is_not_whitened_away(shift_mean):
    x, mask = torch.tensor([[1.0, math.nan, 3.0]]), torch.ones(1, 3, dtype=torch.bool)
    assert whiten(x, mask, shift_mean=shift_mean).isnan().all()


def test_lambda_zero_is_the_one_step_error():
    advantages = text_gae([[0.0, 0.0, 5.0]], [[1.0, 2.0, 3.0]], gamma=1.0, gae_lambda=0.0)
    assert advantages.tolist() == [[1.0, 1.0, 2.0]]


def test_lambda_and_gamma_one_is_the_return_minus_the_value():
    advantages = text_gae([[0.0, 0.0, 0.0, 1.0]], [[0.5] * 4], gamma=1.0, gae_lambda=1.0)
    assert advantages.tolist() == [[0.5] * 4]


def test_advantages_carry_over_a_gap_of_environment_tokens():
    settings = {"gamma": 0.99, "gae_lambda": 0.95}
    gap = text_gae(
        [[0.0, 0.0, 0.0, 0.0, 1.0]],
        [[0.1, 0.2, 999.0, 0.4, 0.5]],
        mask=[[True, True, False, True, True]],
        **settings,
    )
    no_gap = text_gae([[0.0, 0.0, 0.0, 1.0]], [[0.1, 0.2, 0.4, 0.5]], **settings)
    assert gap[0, [0, 1, 3, 4]].tolist() == no_gap[0].tolist()
    assert gap[0, 2] == 0.0


def test_value_after_the_response_does_not_reach_it():
    advantages = text_gae(
        [[0.0, 1.0, 0.0]], [[0.0, 0.0, 100.0]], gamma=1.0, gae_lambda=0.95, mask=[[True, True, False]]
    )
    torch.testing.assert_close(advantages, torch.tensor([[0.95, 1.0, 0.0]]))


def test_environment_that_never_ends_is_worth_one_over_one_minus_gamma():
    gamma, value, flags = 0.98, torch.full((2, 30), 50.0), torch.zeros(2, 30, dtype=torch.bool)
    advantages = gae(torch.ones(2, 30), value, value, flags, flags, gamma=gamma, gae_lambda=0.95)
    torch.testing.assert_close(advantages, torch.zeros(2, 30), atol=1e-4, rtol=0)  # 50 in float32, summed 30 times
    half = value / 2
    advantages = gae(torch.ones(2, 30), half, half, flags, flags, gamma=gamma, gae_lambda=1.0)
    truth = [sum(gamma**k for k in range(30 - t)) + gamma ** (30 - t) * 25 - 25 for t in range(30)]
    torch.testing.assert_close(advantages[0], torch.tensor(truth), atol=1e-4, rtol=0)


def test_truncated_step_bootstraps_and_terminated_does_not():
    rewards, values, next_values = torch.tensor([[1.0]]), torch.tensor([[2.0]]), torch.tensor([[10.0]])
    yes, no = torch.tensor([[True]]), torch.tensor([[False]])
    settings = {"gamma": 0.5, "gae_lambda": 0.9}
    assert gae(rewards, values, next_values, no, yes, **settings).item() == 1 + 0.5 * 10 - 2
    assert gae(rewards, values, next_values, yes, yes, **settings).item() == 1 - 2


def test_nothing_flows_back_over_the_end_of_an_episode():
    terminated = torch.tensor([[False, False, False, False]])
    ended = torch.tensor([[False, True, False, False]])
    args = {"gamma": 0.9, "gae_lambda": 0.9}
    zeros = torch.zeros(1, 4)
    quiet = gae(zeros, zeros, zeros, terminated, ended, **args)
    loud = gae(torch.tensor([[0.0, 0.0, 0.0, 1000.0]]), zeros, zeros, terminated, ended, **args)
    assert loud[0, :2].tolist() == quiet[0, :2].tolist() == [0.0, 0.0]
    assert loud[0, 2] == pytest.approx(810.0)


def test_a_terminated_step_ends_even_if_ended_forgets_it():
    step = torch.tensor([[True, False]])
    advantages = gae(
        torch.tensor([[1.0, 50.0]]), torch.zeros(1, 2), torch.zeros(1, 2), step, ~step, gamma=1.0, gae_lambda=1.0
    )
    assert advantages.tolist() == [[1.0, 50.0]]


def test_an_episode_that_ends_on_an_environment_token_does_not_leak_into_the_one_before():
    no = torch.zeros(1, 3, dtype=torch.bool)
    ended = torch.tensor([[False, True, False]])
    mask = torch.tensor([[True, False, True]])
    zeros = torch.zeros(1, 3)
    advantages = gae(torch.tensor([[1.0, 0.0, 9.0]]), zeros, zeros, no, ended, gamma=1.0, gae_lambda=1.0, mask=mask)
    assert advantages.tolist() == [[1.0, 0.0, 9.0]]


# ── GAE: oracle and invariances ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0)])
def test_gae_equals_the_explicit_double_sum(seed, gamma, gae_lambda):
    episodes = random_episodes(seed)
    expected = [oracle.gae(*row, gamma, gae_lambda) for row in zip(*episodes, strict=True)]
    advantages = gae(*map(torch.from_numpy, episodes), gamma=gamma, gae_lambda=gae_lambda)
    np.testing.assert_allclose(advantages, expected, rtol=1e-12, atol=1e-12)


def test_gae_with_lambda_one_is_the_discounted_return_minus_the_value():
    rewards, values, *_ = random_episodes(1)
    no, last = np.zeros(rewards.shape, bool), np.zeros(rewards.shape, bool)
    last[:, -1] = True
    next_values = np.roll(values, -1, axis=1)
    advantages = gae(*map(torch.from_numpy, (rewards, values, next_values, no | last, last)), gamma=0.9, gae_lambda=1.0)
    expected = np.array([oracle.discounted_return(row, 0.9) for row in rewards]) - values
    np.testing.assert_allclose(advantages, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_gaps_and_padding_change_nothing(seed):
    rng = np.random.default_rng(seed)
    length = 6
    rewards, values = rng.normal(size=(1, length)), rng.normal(size=(1, length))
    where = np.sort(rng.choice(15, size=length, replace=False))
    wide = {name: np.full((1, 15), NAN) for name in ("rewards", "values")}
    wide["rewards"][:, where], wide["values"][:, where] = rewards, values
    mask = np.zeros((1, 15), bool)
    mask[:, where] = True
    settings = {"gamma": 0.97, "gae_lambda": 0.9}
    dense = text_gae(rewards.tolist(), values.tolist(), **settings)
    sparse = text_gae(wide["rewards"].tolist(), wide["values"].tolist(), mask=mask.tolist(), **settings)
    assert sparse[0, where].tolist() == dense[0].tolist()
    assert (sparse[~torch.from_numpy(mask)] == 0).all()


def test_a_row_alone_equals_the_row_in_a_batch():
    episodes = [torch.from_numpy(x) for x in random_episodes(3)]
    together = gae(*episodes, gamma=0.99, gae_lambda=0.95)
    alone = gae(*(x[2:3] for x in episodes), gamma=0.99, gae_lambda=0.95)
    assert torch.equal(together[2:3], alone)


def test_nan_outside_the_mask_never_leaks_into_advantages():
    mask = torch.tensor([[True, False, True, False]])
    x = torch.tensor([[1.0, NAN, 2.0, NAN]])
    no = torch.zeros_like(mask)
    advantages = gae(x, x, x, no, no, gamma=0.9, gae_lambda=0.9, mask=mask)
    assert advantages.isfinite().all()


def test_a_reward_outside_the_mask_is_refused_because_it_would_be_lost():
    mask = torch.tensor([[True, True, True, True], [True, False, True, False]])
    rewards, zeros, no = torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros_like(mask)
    rewards[1, 1] = 0.5
    with pytest.raises(ShapeError, match=r"rewards has 0.5 at \[1, 1\], outside the mask, .*; add it to the reward of"):
        gae(rewards, zeros, zeros, no, no, gamma=1.0, gae_lambda=1.0, mask=mask)


def test_advantages_carry_no_gradient():
    values = torch.ones(1, 2, requires_grad=True)
    no = torch.zeros(1, 2, dtype=torch.bool)
    assert not gae(torch.ones(1, 2), values, values, no, no, gamma=1.0, gae_lambda=1.0).requires_grad


def test_gae_of_half_precision_values_is_float32():
    x, no = torch.ones(1, 2, dtype=torch.bfloat16), torch.zeros(1, 2, dtype=torch.bool)
    assert gae(x, x, x, no, no, gamma=1.0, gae_lambda=1.0).dtype == torch.float32


@pytest.mark.parametrize("odd", range(5))
def test_gae_refuses_a_shape_that_would_broadcast(odd):
    flags = torch.zeros(2, 3, dtype=torch.bool)
    args = [torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3), flags, flags]
    args[odd] = args[odd][..., None]
    with pytest.raises(ShapeError, match=r"\(2, 3, 1\)"):
        gae(*args, gamma=1.0, gae_lambda=1.0)


def test_gae_refuses_what_is_not_rows_of_steps():
    x, flags = torch.zeros(3), torch.zeros(3, dtype=torch.bool)
    with pytest.raises(ShapeError, match=r"mask \(3,\): expected mask \(B, T\)"):
        gae(x, x, x, flags, flags, gamma=1.0, gae_lambda=1.0)


def test_gae_refuses_flags_of_numbers():
    x, flags = torch.zeros(1, 3), torch.zeros(1, 3)
    with pytest.raises(ShapeError, match=r"terminated has dtype torch\.float32; expected torch.bool"):
        gae(x, x, x, flags, flags, gamma=1.0, gae_lambda=1.0)


# ── values of the next token ─────────────────────────────────────────────────────────────────────────────────────────


def test_next_token_values_skip_what_the_policy_did_not_sample():
    values = torch.tensor([[1.0, 2.0, NAN, 4.0, NAN], [5.0, NAN, NAN, NAN, 6.0]])
    mask = torch.tensor([[True, True, False, True, False], [True, False, False, False, True]])
    next_values = next_token_values(values, mask)
    assert next_values[mask].tolist() == [2.0, 4.0, 0.0, 6.0, 0.0]
    assert next_values.isfinite().all()


def test_next_token_values_refuse_another_shape():
    with pytest.raises(ShapeError):
        next_token_values(torch.zeros(2, 3), torch.ones(2, 3, 1, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"\(B, T\)"):
        next_token_values(torch.zeros(3), torch.ones(3, dtype=torch.bool))


# ── whitening ────────────────────────────────────────────────────────────────────────────────────────────────────────

TABLE = torch.tensor([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]])
EVERYTHING = torch.ones(3, 3, dtype=torch.bool)


def test_whiten_without_shift_keeps_the_mean():
    expected = torch.tensor([[0.0508, 0.4381, 0.8254], [1.2127, 1.6, 1.9873], [2.3746, 2.7619, 3.1492]])
    torch.testing.assert_close(whiten(TABLE, EVERYTHING, shift_mean=False), expected, atol=5e-5, rtol=0)  # 4 digits


def test_whiten_centres_by_default():
    expected = torch.tensor([[0.0508, 0.4381, 0.8254], [1.2127, 1.6, 1.9873], [2.3746, 2.7619, 3.1492]]) - 1.6
    torch.testing.assert_close(whiten(TABLE, EVERYTHING), expected, atol=5e-5, rtol=0)


def test_whiten_uses_only_masked_entries_and_zeroes_the_others():
    # mean 3, biased variance 14 / 3
    x = torch.tensor([[1.0, 2.0, NAN], [6.0, math.inf, -50.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    deviation = math.sqrt(14 / 3)
    expected = torch.tensor([[-2 / deviation, -1 / deviation, 0.0], [3 / deviation, 0.0, 0.0]])
    torch.testing.assert_close(whiten(x, mask), expected)
    torch.testing.assert_close(whiten(x, mask, shift_mean=False), torch.where(mask, expected + 3, 0.0))


@pytest.mark.parametrize(("x", "mask"), [([4.0, 4.0, 4.0], [True] * 3), ([4.0, 1.0, 2.0], [True, False, False])])
def test_whiten_of_equal_entries_stays_finite(x, mask):
    x, mask = torch.tensor([x]), torch.tensor([mask])
    assert (whiten(x, mask) == 0).all()
    assert whiten(x, mask, shift_mean=False).tolist() == torch.where(mask, 4.0, 0.0).tolist()


@pytest.mark.parametrize("value", [1000.1, -0.7, 1e-3, 3e7])
@pytest.mark.parametrize("num", [7, 1000, 100_003])
def test_whiten_of_equal_entries_is_zero_whatever_their_mean_rounds_to(value, num):
    x, mask = torch.full((1, num), value), torch.ones(1, num, dtype=torch.bool)
    assert (whiten(x, mask) == 0).all()
    assert torch.equal(whiten(x, mask, shift_mean=False), x)


def test_whiten_still_sees_a_small_variation_of_large_numbers():
    x = torch.tensor([[1000.0, 1001.0]])
    torch.testing.assert_close(whiten(x, torch.ones_like(x, dtype=torch.bool)), torch.tensor([[-1.0, 1.0]]))


def test_whiten_of_nothing_is_nothing():
    assert (whiten(TABLE, ~EVERYTHING) == 0).all()


def test_whiten_of_half_precision_is_float32():
    assert whiten(TABLE.bfloat16(), EVERYTHING).dtype == torch.float32


def test_whiten_refuses_another_shape():
    with pytest.raises(ShapeError):
        whiten(TABLE, EVERYTHING[..., None])


# ── without a critic ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_rloo_compares_each_score_with_the_others():
    advantages = rloo_advantages(torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0]), group_size=3)
    assert advantages.tolist() == [1 - 4.0, 2 - 3.5, 6 - 1.5, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("group_size", [2, 3, 6])
def test_rloo_equals_the_explicit_loop(group_size):
    scores = np.random.default_rng(0).normal(size=12)
    advantages = rloo_advantages(torch.from_numpy(scores), group_size=group_size)
    np.testing.assert_allclose(advantages, oracle.rloo_advantages(scores, group_size), rtol=1e-12, atol=1e-12)


def test_grpo_divides_by_the_deviation_of_the_group():
    # group 1: mean 3, deviations -2, -1, 3, sample variance 14 / 2; group 2: mean 0, variance (1 + 1) / 2
    scores = torch.tensor([1.0, 2.0, 6.0, -1.0, 0.0, 1.0])
    root = math.sqrt(7)
    expected = torch.tensor([-2 / (root + 1e-4), -1 / (root + 1e-4), 3 / (root + 1e-4), -1 / 1.0001, 0.0, 1 / 1.0001])
    torch.testing.assert_close(grpo_advantages(scores, group_size=3), expected, rtol=2e-6, atol=0)
    plain = grpo_advantages(scores, group_size=3, normalize_std=False)
    torch.testing.assert_close(plain, torch.tensor([-2.0, -1.0, 3.0, -1.0, 0.0, 1.0]))


def test_grpo_makes_little_of_a_spread_that_is_rounding():
    # Two scores 5e-5 apart: deviation 3.5e-5, so 2.5e-5 / 1.35e-4; an epsilon of 1e-6 would make it .69.
    advantages = grpo_advantages(torch.tensor([0.0, 5e-5]), group_size=2)
    torch.testing.assert_close(advantages, torch.tensor([-0.18469, 0.18469]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("group_size", [2, 3, 6])
@pytest.mark.parametrize("normalize_std", [True, False])
def test_grpo_equals_the_explicit_loop(group_size, normalize_std):
    rng = np.random.default_rng(1)
    scores, penalties = rng.normal(size=12), 0.05 * rng.normal(size=12)
    advantages = grpo_advantages(
        torch.from_numpy(scores), torch.from_numpy(penalties), group_size=group_size, normalize_std=normalize_std
    )
    expected = oracle.grpo_advantages(scores, penalties, group_size, normalize_std)
    np.testing.assert_allclose(advantages, expected, rtol=1e-12, atol=1e-12)


def test_the_kl_penalty_is_not_divided_by_the_deviation_of_the_scores():
    scores, penalties = torch.tensor([1.0, 1.0, 1.0, 0.0, 10.0, 20.0]), torch.tensor([0.3, 0.1, 0.2, 0.3, 0.1, 0.2])
    without = grpo_advantages(scores, group_size=3)
    held = grpo_advantages(scores, penalties, group_size=3)
    torch.testing.assert_close(held - without, torch.tensor([-0.1, 0.1, 0.0, -0.1, 0.1, 0.0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("estimate", [rloo_advantages, grpo_advantages])
def test_a_group_of_equal_scores_teaches_nothing(estimate):
    # 10.1 * 7 / 7 is not 10.1 in float32, and a tiny deviation must not be blown up
    assert (estimate(torch.full((14,), 10.1), group_size=7) == 0).all()


@pytest.mark.parametrize("estimate", [rloo_advantages, grpo_advantages])
def test_group_estimators_refuse_what_cannot_be_compared(estimate):
    with pytest.raises(ConfigError, match="group_size 1: expected at least 2"):
        estimate(torch.zeros(4), group_size=1)
    with pytest.raises(ShapeError, match=r"scores \(4,\): expected \(B,\) with B a multiple of group_size 3"):
        estimate(torch.zeros(4), group_size=3)
    with pytest.raises(ShapeError, match=r"scores \(4, 1\)"):
        estimate(torch.zeros(4, 1), group_size=2)


@pytest.mark.parametrize("estimate", [rloo_advantages, grpo_advantages])
def test_group_estimators_of_half_precision_are_float32(estimate):
    assert estimate(torch.ones(4, dtype=torch.bfloat16), group_size=2).dtype == torch.float32


def test_spreading_gives_every_masked_token_the_advantage_of_its_response():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert spread_over_tokens(torch.tensor([2.0, -3.0]), mask).tolist() == [[2.0, 2.0, 0.0], [-3.0, 0.0, 0.0]]
    with pytest.raises(ShapeError, match=r"advantages \(2, 1\), mask \(2, 3\): expected advantages \(B,\)"):
        spread_over_tokens(torch.zeros(2, 1), mask)
