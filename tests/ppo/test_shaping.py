import math

import numpy as np
import pytest
import torch

from rlhfkit.errors import ConfigError, ShapeError
from rlhfkit.ppo import brevity_penalty, clip_scores, length_penalty, missing_eos_penalty, token_rewards
from tests.oracles import ppo as oracle

SCORES = torch.tensor([1.0, 2.0, 3.0])
DIFFERENCES = torch.tensor([[-0.1], [-0.2], [-0.3]]).repeat(1, 3)


# ── token rewards ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_token_pays_kl_and_the_last_earns_the_score():
    mask = torch.ones(3, 3, dtype=torch.bool)
    rewards = token_rewards(SCORES, DIFFERENCES, torch.zeros(3, 3), mask, kl_coef=0.5)
    expected = [[0.05, 0.05, 1.05], [0.1, 0.1, 2.1], [0.15, 0.15, 3.15]]
    torch.testing.assert_close(rewards, torch.tensor(expected))


def test_the_score_goes_to_the_last_masked_token_and_nothing_beyond_it():
    mask = torch.tensor([[True, True, False], [True, False, False], [True, False, True]])
    dirty = DIFFERENCES.masked_fill(~mask, math.nan)
    rewards = token_rewards(SCORES, dirty, torch.zeros(3, 3), mask, kl_coef=0.5)
    torch.testing.assert_close(rewards, torch.tensor([[0.05, 1.05, 0.0], [2.1, 0.0, 0.0], [0.15, 0.0, 3.15]]))


def test_a_policy_likelier_than_the_reference_pays():
    one = torch.tensor([[True]])
    rewards = token_rewards(torch.zeros(1), torch.tensor([[-1.0]]), torch.tensor([[-3.0]]), one, kl_coef=0.1)
    assert rewards.item() == pytest.approx(-0.2)


def test_token_rewards_equal_the_explicit_loop():
    rng = np.random.default_rng(0)
    logprobs, ref_logprobs = -rng.exponential(size=(2, 5, 8))
    scores, mask = rng.normal(size=5), rng.random((5, 8)) < 0.5
    mask[:, 2] = True
    arrays = (scores, logprobs, ref_logprobs, mask)
    rewards = token_rewards(*map(torch.from_numpy, arrays), kl_coef=0.3)
    np.testing.assert_allclose(rewards, oracle.token_rewards(*arrays, 0.3), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_estimates_whose_gradient_is_not_that_of_the_kl_are_refused_in_a_reward(kind):
    one = torch.ones(1, 1)
    with pytest.raises(ConfigError, match=rf"kind '{kind}' in a reward: expected 'k1', .*; leave `kind` out"):
        token_rewards(torch.zeros(1), -one, -one, one.bool(), kl_coef=0.1, kind=kind)


VOCABULARY, LENGTH = 3, 2


def sequence_logprobs(logits):
    """(9, 2) logprobs of the tokens of every sequence of two tokens; `logits` (4, 3): first token, then after each."""
    logprobs = logits.log_softmax(-1)
    rows = [[logprobs[0, a], logprobs[1 + a, b]] for a in range(VOCABULARY) for b in range(VOCABULARY)]
    return torch.stack([torch.stack(row) for row in rows])


@pytest.mark.parametrize("distance", [0.01, 1.0])
def test_the_policy_gradient_of_the_leash_alone_is_that_of_the_kl_divergence(distance):
    generator = torch.Generator().manual_seed(4)
    ref_logits = torch.randn(1 + VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)
    away = torch.randn(1 + VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)
    logits = (ref_logits + distance * away).requires_grad_()
    logprobs, ref_logprobs = sequence_logprobs(logits), sequence_logprobs(ref_logits)
    probabilities = logprobs.sum(1).exp()

    kl = (probabilities * (logprobs.sum(1) - ref_logprobs.sum(1))).sum()
    (gradient_of_kl,) = torch.autograd.grad(kl, logits, retain_graph=True)

    # REINFORCE over all sequences: sum of pi(y) * return(y) * grad log pi(y), the rewards without a gradient.
    everything, no_score = torch.ones(9, LENGTH, dtype=torch.bool), torch.zeros(9, dtype=torch.float64)
    rewards = token_rewards(no_score, logprobs.detach(), ref_logprobs, everything, kl_coef=0.3)
    (gradient,) = torch.autograd.grad((probabilities.detach() * rewards.sum(1) * logprobs.sum(1)).sum(), logits)
    assert float(gradient_of_kl.abs().max()) > 1e-3 * distance
    torch.testing.assert_close(gradient, -0.3 * gradient_of_kl, rtol=1e-10, atol=1e-14)


def test_rewards_of_a_row_add_up_to_its_score_minus_its_kl():
    mask = torch.tensor([[True, False, True, False]])
    logprobs, zeros = torch.tensor([[-0.5, 9.0, 0.25, 9.0]]), torch.zeros(1, 4)
    rewards = token_rewards(torch.tensor([2.0]), logprobs, zeros, mask, kl_coef=0.5)
    assert rewards.sum().item() == pytest.approx(2.0 - 0.5 * (-0.25))


def test_token_rewards_of_half_precision_are_float32():
    x, mask = torch.zeros(1, 2, dtype=torch.bfloat16), torch.ones(1, 2, dtype=torch.bool)
    assert token_rewards(torch.ones(1, dtype=torch.bfloat16), x, x, mask, kl_coef=0.1).dtype == torch.float32


def test_a_row_without_a_token_is_refused():
    mask = torch.tensor([[True, False], [False, False]])
    with pytest.raises(ShapeError, match=r"mask has no True in rows \[1\]"):
        token_rewards(torch.ones(2), torch.zeros(2, 2), torch.zeros(2, 2), mask, kl_coef=0.1)


def test_token_rewards_refuse_shapes_that_would_broadcast():
    x, mask = torch.zeros(3, 3), torch.ones(3, 3, dtype=torch.bool)
    with pytest.raises(ShapeError, match=r"scores \(3, 1\), mask \(3, 3\): expected scores \(B,\) and mask \(B, T\)"):
        token_rewards(SCORES[:, None], x, x, mask, kl_coef=0.1)
    with pytest.raises(ShapeError, match=r"ref_logprobs \(3, 3, 1\)"):
        token_rewards(SCORES, x, x[..., None], mask, kl_coef=0.1)
    with pytest.raises(ShapeError):
        token_rewards(SCORES, x, x, mask[..., None], kl_coef=0.1)


# ── penalties on the score ───────────────────────────────────────────────────────────────────────────────────────────

FINISHED = torch.tensor([True, False, False])


def test_the_score_of_an_unfinished_response_is_replaced():
    scores = torch.tensor([1.0, 2.0, math.nan])
    assert missing_eos_penalty(scores, FINISHED, replace=-1.0).tolist() == [1.0, -1.0, -1.0]


def test_the_score_of_an_unfinished_response_is_lowered():
    assert missing_eos_penalty(SCORES, FINISHED, penalty=1.5).tolist() == [1.0, 0.5, 1.5]


def test_scores_stay_without_a_penalty():
    assert missing_eos_penalty(SCORES, FINISHED).tolist() == SCORES.tolist()
    assert missing_eos_penalty(SCORES, FINISHED, penalty=0.0).tolist() == SCORES.tolist()


def test_a_replacement_of_zero_is_a_replacement():
    assert missing_eos_penalty(SCORES, FINISHED, replace=0.0, penalty=0.0).tolist() == [1.0, 0.0, 0.0]


def test_missing_eos_settings_without_sense_are_refused():
    with pytest.raises(ConfigError, match="expected one of the two"):
        missing_eos_penalty(SCORES, FINISHED, replace=-1.0, penalty=1.0)
    with pytest.raises(ConfigError, match="drop the sign"):
        missing_eos_penalty(SCORES, FINISHED, penalty=-1.0)
    with pytest.raises(ShapeError, match=r"finished \(3, 1\)"):
        missing_eos_penalty(SCORES, FINISHED[:, None], replace=-1.0)
    with pytest.raises(ShapeError, match="finished has dtype"):
        missing_eos_penalty(SCORES, FINISHED.long(), replace=-1.0)


def test_only_tokens_beyond_the_target_cost():
    lengths = torch.tensor([9, 10, 14])
    penalised = length_penalty(SCORES, lengths, coef=0.25, target_tokens=10)
    assert penalised.tolist() == [1.0, 2.0, 2.0]


def test_only_tokens_that_are_missing_to_the_target_cost():
    lengths = torch.tensor([6, 10, 14])
    penalised = brevity_penalty(SCORES, lengths, coef=0.25, target_tokens=10)
    assert penalised.tolist() == [0.0, 2.0, 3.0]


@pytest.mark.parametrize("penalty", [length_penalty, brevity_penalty])
def test_a_penalty_on_length_refuses_a_shape_that_would_broadcast(penalty):
    with pytest.raises(ShapeError, match=r"lengths \(3, 1\)"):
        penalty(SCORES, torch.ones(3, 1), coef=0.1, target_tokens=1)


def test_clipping_says_which_share_was_clipped():
    clipped, share = clip_scores(torch.tensor([-7.0, -5.0, 0.5, 6.0]), limit=5.0)
    assert clipped.tolist() == [-5.0, -5.0, 0.5, 5.0]
    assert share.item() == 0.5


@pytest.mark.parametrize("limit", [0.0, -5.0, math.nan])
def test_a_limit_that_leaves_nothing_is_refused(limit):
    with pytest.raises(ConfigError, match="expected more than 0"):
        clip_scores(SCORES, limit=limit)


def test_scores_of_half_precision_become_float32():
    scores = SCORES.bfloat16()
    assert missing_eos_penalty(scores, FINISHED, replace=-1.0).dtype == torch.float32
    assert length_penalty(scores, torch.tensor([1, 2, 3]), coef=0.1, target_tokens=2).dtype == torch.float32
    assert clip_scores(scores, limit=1.0)[0].dtype == torch.float32
