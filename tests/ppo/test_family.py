"""The other members of the family: where they clip, what their ratio is of, what their loss is a mean over."""

import math

import numpy as np
import pytest
import torch

from rlhfkit.errors import ConfigError, ShapeError
from rlhfkit.ppo import (
    cispo_loss,
    clip_fraction,
    kl_loss,
    loss_denominator,
    outside_clip,
    policy_loss,
    policy_ratio,
    reinforce_advantages,
    token_weights,
    whiten,
)
from tests.oracles import ppo as oracle

ONE = torch.tensor([[True]])
RATIOS = [("clip", "token"), ("clip", "sequence"), ("cispo", "token")]
HOW = ["token", "sequence", "constant"]


def batch_of(seed, *, spread=0.5, shape=(5, 7)):
    """Logprobs, old logprobs, advantages and a mask with rows of every length, an empty one too."""
    rng = np.random.default_rng(seed)
    old_logprobs = -rng.exponential(size=shape)
    mask = np.arange(shape[1])[None] < np.array([7, 1, 0, 4, 2])[:, None]
    mask[0, 3] = False  # words of an environment
    return old_logprobs + spread * rng.normal(size=shape), old_logprobs, rng.normal(size=shape), mask


def torched(*arrays):
    return tuple(torch.from_numpy(array) for array in arrays)


def loss_of(batch, objective, ratio, how, *, rows=slice(None), whole=None, **clip):
    """The loss of some rows of a minibatch, of which `whole` is the mask."""
    logprobs, old_logprobs, advantages, mask = (x[rows] for x in batch)
    whole = mask if whole is None else whole
    settings = {
        **clip,
        "denominator": loss_denominator(whole, how, constant_tokens=9),
        "weights": token_weights(mask, how, dtype=logprobs.dtype),
    }
    if objective == "cispo":
        return cispo_loss(logprobs, old_logprobs, advantages, mask, **settings)
    return policy_loss(logprobs, old_logprobs, advantages, mask, ratio=ratio, **settings)


def with_gradient(loss, logprobs):
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return loss.item(), gradient


# ── forward and gradient ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("objective", "ratio"), RATIOS)
@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradient_equal_the_explicit_loop(seed, objective, ratio, how):
    arrays = batch_of(seed)
    logprobs, *rest = torched(*arrays)
    logprobs.requires_grad_()
    clip = {"clip_range": 0.15, "clip_range_high": 0.3}
    loss, gradient = with_gradient(loss_of((logprobs, *rest), objective, ratio, how, **clip), logprobs)
    terms, slopes = oracle.family_terms(*arrays, 0.15, 0.3, objective=objective, ratio_of=ratio)
    expected, expected_gradient = oracle.aggregated(terms, slopes, arrays[-1], how, constant_tokens=9)
    assert loss == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(gradient.numpy(), expected_gradient, rtol=1e-11, atol=1e-15)
    assert 0 < np.count_nonzero(expected_gradient) <= arrays[-1].sum()


@pytest.mark.parametrize(("objective", "ratio"), RATIOS[:2])
def test_gradient_equals_finite_differences(objective, ratio):
    logprobs, *rest = torched(*batch_of(4))

    def loss(logprobs):
        return loss_of((logprobs, *rest), objective, ratio, "sequence", clip_range=0.2, clip_range_high=0.4)

    assert torch.autograd.gradcheck(loss, logprobs.requires_grad_())


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("objective", "ratio"), RATIOS)
@pytest.mark.parametrize("split", [[[0, 1, 2, 3, 4]], [[4, 0], [3, 1, 2]], [[2], [0], [1], [3], [4]]])
def test_microbatches_change_neither_loss_nor_gradient(split, objective, ratio, how):
    logprobs, *rest = torched(*batch_of(6))
    batch = (logprobs.requires_grad_(), *rest)
    whole, gradient = with_gradient(loss_of(batch, objective, ratio, how, clip_range=0.2), logprobs)
    parts = [loss_of(batch, objective, ratio, how, rows=rows, whole=batch[-1], clip_range=0.2) for rows in split]
    summed, its_gradient = with_gradient(sum(parts), logprobs)
    assert summed == pytest.approx(whole, rel=1e-12)
    torch.testing.assert_close(its_gradient, gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("objective", "ratio"), RATIOS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_numbers_outside_the_mask_leak_neither_into_loss_nor_gradient(bad, objective, ratio):
    batch = torched(*batch_of(7))
    mask = batch[-1]
    dirty = (*(x.masked_fill(~mask, bad) for x in batch[:-1]), mask)
    results = []
    for logprobs, *rest in (batch, dirty):
        loss = loss_of((logprobs.requires_grad_(), *rest), objective, ratio, "sequence", clip_range=0.2)
        results.append(with_gradient(loss, logprobs))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


# ── the clip ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def one_token(ratio, advantage, **settings):
    logprobs = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    inputs = torch.zeros(1, 1), torch.tensor([[advantage]])
    return with_gradient(policy_loss(logprobs, *inputs, ONE, **settings), logprobs)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [
        (1.25, 1.0, -1.25),  # the higher clip lets a good action become likelier still
        (1.35, 1.0, -1.28),
        (0.75, -1.0, 0.8),  # below 1 nothing has changed
        (0.75, 1.0, -0.75),
        (1.35, -1.0, 1.35),
    ],
)
def test_the_clip_above_may_be_wider_than_the_one_below(ratio, advantage, loss):
    assert one_token(ratio, advantage, clip_range=0.2, clip_range_high=0.28)[0] == pytest.approx(loss)


def test_the_clip_above_is_by_default_the_one_below():
    for ratio in (0.5, 0.79, 1.0, 1.21, 3.0):
        assert one_token(ratio, 1.0, clip_range=0.2) == one_token(ratio, 1.0, clip_range=0.2, clip_range_high=0.2)


def test_clip_fraction_counts_by_both_bounds():
    logprobs = torch.tensor([[0.75, 0.85, 1.0, 1.25, 1.35, 9.0]]).log()
    mask = torch.tensor([[True] * 5 + [False]])
    bounds = {"clip_range": 0.2, "clip_range_high": 0.28}
    outside = outside_clip(logprobs, torch.zeros(1, 6), mask, **bounds)
    assert outside.tolist() == [[True, False, False, False, True, False]]
    assert clip_fraction(logprobs, torch.zeros(1, 6), mask, **bounds).item() == pytest.approx(2 / 5)


def test_published_case_of_the_clip():
    """NeMo RL, tests/unit/algorithms/test_loss_functions.py (ppo clipping): ratios 0.5, 1, 1.5, advantages 1, -1, 2."""
    logprobs = torch.tensor([[0.5, 1.0, 1.5]]).log()
    loss = policy_loss(
        logprobs, torch.zeros(1, 3), torch.tensor([[1.0, -1.0, 2.0]]), torch.ones(1, 3).bool(), clip_range=0.2
    )
    assert loss.item() == pytest.approx(-0.6333, abs=5e-5)


@pytest.mark.parametrize(("num_rows", "expected"), [(1, -0.6057), (2, -0.4912)])
def test_published_cases_of_the_ratio_of_a_response(num_rows, expected):
    """NeMo RL, tests/unit/algorithms/test_loss_functions.py (gspo): ratios 0.9086 and 2.4697, clipped at 0.2."""
    logprobs = torch.tensor([[-1.69315, -1.0, -0.59453]] * num_rows)
    old_logprobs = torch.tensor([[-1.0], [-2.0]])[:num_rows].expand(num_rows, 3)
    advantages = torch.tensor([[1.0, -1.0, 2.0]] * num_rows)
    mask = torch.ones(num_rows, 3, dtype=torch.bool)
    loss = loss_of((logprobs, old_logprobs, advantages, mask), "clip", "sequence", "sequence", clip_range=0.2)
    assert loss.item() == pytest.approx(expected, abs=1e-4)


# ── the ratio of a response ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_ratio_of_a_response_is_the_geometric_mean_of_its_tokens():
    logprobs = torch.tensor([[2.0, 4.0, 1.0], [3.0, math.nan, math.nan]]).log()
    mask = torch.tensor([[True, True, True], [True, False, False]])
    ratio = policy_ratio(logprobs, torch.zeros(2, 3), mask, of="sequence")
    torch.testing.assert_close(ratio, torch.tensor([[2.0, 2.0, 2.0], [3.0, 1.0, 1.0]]))


def test_a_response_is_clipped_as_a_whole():
    logprobs = torch.tensor([[1.5, 1.0], [1.0002, 1.0]], dtype=torch.float64).log().requires_grad_()
    mask = torch.ones(2, 2, dtype=torch.bool)
    bounds = {"clip_range": 3e-4, "clip_range_high": 4e-4, "ratio": "sequence"}
    loss = policy_loss(logprobs, torch.zeros(2, 2), torch.ones(2, 2), mask, **bounds)
    loss.backward()
    assert logprobs.grad[0].tolist() == [0.0, 0.0]  # both tokens, though the second has not moved
    torch.testing.assert_close(logprobs.grad[1], torch.full((2,), -(1.0002**0.5) / 4, dtype=torch.float64))
    assert clip_fraction(logprobs.detach(), torch.zeros(2, 2), mask, **bounds).item() == 0.5


def test_responses_of_one_token_have_that_token_s_ratio():
    logprobs, old_logprobs, advantages, _ = torched(*batch_of(3, shape=(5, 7)))
    mask = torch.zeros(5, 7, dtype=torch.bool)
    mask[:, 2] = True
    by_token, by_sequence = (
        policy_loss(logprobs, old_logprobs, advantages, mask, clip_range=0.2, ratio=ratio)
        for ratio in ("token", "sequence")
    )
    assert by_token.item() == pytest.approx(by_sequence.item(), rel=1e-12)


def test_a_ratio_of_anything_else_is_refused():
    with pytest.raises(ConfigError, match="ratio of 'word': expected 'token' or 'sequence'"):
        policy_ratio(torch.zeros(1, 1), torch.zeros(1, 1), ONE, of="word")


# ── CISPO ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_clip_stops_the_gradient_of_cispo():
    ratios = torch.tensor([[0.01, 0.5, 1.0, 1.2, 50.0]], dtype=torch.float64)
    advantages = torch.tensor([[1.0, -2.0, 1.0, 3.0, 1.0]])
    old = torch.full((1, 5), -2.0, dtype=torch.float64)
    logprobs = (old + ratios.log()).requires_grad_()
    mask = torch.ones(1, 5, dtype=torch.bool)
    cispo_loss(logprobs, old, advantages, mask, clip_range=1.0, clip_range_high=0.28).backward()
    expected = -torch.tensor([[0.01, -2 * 0.5, 1.0, 3 * 1.2, 1.28]], dtype=torch.float64) / 5
    torch.testing.assert_close(logprobs.grad, expected)


def test_on_the_policy_that_sampled_all_of_them_have_one_gradient():
    logprobs, _, advantages, mask = torched(*batch_of(8))
    mask = mask.roll(1, 1)
    same = (logprobs.detach().clone(), advantages * 0 + advantages[:, :1], mask)  # one advantage a response
    gradients = []
    for objective, ratio in RATIOS:
        moved = logprobs.detach().clone().requires_grad_()
        loss = loss_of((moved, *same), objective, ratio, "sequence", clip_range=0.2)
        gradients.append(with_gradient(loss, moved)[1])
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-12, atol=1e-15)


# ── what the loss is a mean over ─────────────────────────────────────────────────────────────────────────────────────


def test_aggregations_by_hand():
    # Ratio 1: the losses are -A. Lengths 1 and 3, advantages 1 and -1, so sums -1 and 3.
    mask = torch.tensor([[True, False, False], [True, True, True]])
    advantages = torch.tensor([[1.0], [-1.0]]).expand(2, 3)
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    batch = (zeros, zeros, advantages, mask)
    found = [loss_of(batch, "clip", "token", how, clip_range=0.2).item() for how in HOW]
    assert found == pytest.approx([(-1 + 3) / 4, (-1 + 1) / 2, (-1 / 9 + 3 / 9) / 2])


def test_rows_without_a_token_do_not_count():
    mask = torch.tensor([[True, True], [False, False]])
    assert [loss_denominator(mask, how, constant_tokens=5).item() for how in HOW] == [2, 1, 5]
    torch.testing.assert_close(token_weights(mask, "sequence"), torch.tensor([[0.5, 0.5], [0.0, 0.0]]))


@pytest.mark.parametrize("tokens", [None, 0])
def test_a_constant_needs_its_length(tokens):
    with pytest.raises(ConfigError, match=r"constant_tokens .*: expected a length .*; set ppo\.loss_tokens"):
        loss_denominator(ONE, "constant", constant_tokens=tokens)


def test_an_unknown_aggregation_is_refused():
    with pytest.raises(ConfigError, match="loss aggregation 'word'"):
        loss_denominator(ONE, "word")


# ── REINFORCE++ ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("group_size", [None, 2, 3])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_reinforce_equals_the_explicit_loop(gamma, group_size):
    rng = np.random.default_rng(9)
    mask = rng.random((6, 8)) < 0.7
    mask[:, 5] = True
    rewards, scores = rng.normal(size=mask.shape) * mask, rng.normal(size=6)
    given = {} if group_size is None else {"scores": scores, "group_size": group_size}
    expected = oracle.reinforce_advantages(rewards, mask, gamma, **given)
    if group_size is not None:
        given["scores"] = torch.from_numpy(scores)
    found = reinforce_advantages(*torched(rewards, mask), gamma=gamma, **given)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("score", [0.1, 1 / 3, 1e6 + 0.1])
def test_a_group_of_equal_scores_teaches_nothing(score):
    mask = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
    last = torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 0]]).bool()
    scores = torch.full((3,), score)
    advantages = reinforce_advantages(last * score, mask, gamma=1.0, scores=scores, group_size=3)
    assert not advantages.any()
    assert not whiten(advantages, mask).any()


def test_the_deviation_is_that_of_the_rollout_and_not_of_the_group():
    """A group that differs by 0.01 beside one that differs by 1: GRPO would make both as large."""
    scores = torch.tensor([0.5, 0.51, 0.0, 1.0])
    mask = torch.ones(4, 1, dtype=torch.bool)
    found = whiten(reinforce_advantages(scores[:, None], mask, gamma=1.0, scores=scores, group_size=2), mask)
    raw = np.array([-0.005, 0.005, -0.5, 0.5])
    np.testing.assert_allclose(found[:, 0].numpy(), raw / raw.std(), rtol=1e-5)


def test_reinforce_refuses_groups_of_one_and_scores_of_another_shape():
    with pytest.raises(ConfigError, match="group_size 1"):
        reinforce_advantages(torch.zeros(2, 1), torch.ones(2, 1).bool(), gamma=1.0, scores=torch.zeros(2))
    with pytest.raises(ShapeError):
        reinforce_advantages(torch.zeros(2, 1), torch.ones(2, 1).bool(), gamma=1.0, scores=torch.zeros(3), group_size=2)


# ── the KL as a term of the loss ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", ["k2", "k3"])
@pytest.mark.parametrize("seed", range(3))
def test_kl_loss_and_gradient_equal_the_explicit_loop(seed, kind, how):
    logprobs, old_logprobs, shift, mask = batch_of(seed)
    arrays = logprobs, old_logprobs, logprobs + shift, mask
    now, old, ref, selected = torched(*arrays)
    loss = kl_loss(
        now.requires_grad_(),
        old,
        ref,
        selected,
        kind=kind,
        denominator=loss_denominator(selected, how, constant_tokens=9),
        weights=token_weights(selected, how, dtype=now.dtype),
    )
    loss, gradient = with_gradient(loss, now)
    expected, expected_gradient = oracle.aggregated(*oracle.kl_terms(*arrays, kind), mask, how, constant_tokens=9)
    assert loss == pytest.approx(expected, rel=1e-11)
    np.testing.assert_allclose(gradient.numpy(), expected_gradient, rtol=1e-11, atol=1e-15)


def mean_gradient(kind, logits, old_logits, ref_logits):
    """Over all tokens that the old policy may draw, by their probability: of the KL loss of each, in the logits."""
    total = torch.zeros_like(logits)
    for token, probability in enumerate(old_logits.softmax(0)):
        moved = logits.clone().requires_grad_()
        one = [x.log_softmax(0)[token].view(1, 1) for x in (moved, old_logits, ref_logits)]
        (gradient,) = torch.autograd.grad(kl_loss(*one, ONE, kind=kind), moved)
        total += probability * gradient
    return total


def gradient_of_kl(logits, ref_logits):
    moved = logits.clone().requires_grad_()
    probabilities = moved.softmax(0)
    kl = (probabilities * (probabilities.log() - ref_logits.softmax(0).log())).sum()
    return torch.autograd.grad(kl, moved)[0]


LOGITS = torch.tensor([[0.3, -1.2, 2.0, 0.1], [0.0, 0.5, 1.0, -0.7], [1.0, -0.4, 0.2, 0.9]], dtype=torch.float64)


def test_on_average_the_gradient_of_both_is_that_of_the_kl_for_the_policy_that_sampled():
    now, _, ref = LOGITS
    for kind in ("k2", "k3"):
        torch.testing.assert_close(mean_gradient(kind, now, now, ref), gradient_of_kl(now, ref))


def test_after_an_update_it_is_so_of_k3_alone():
    now, old, ref = LOGITS
    torch.testing.assert_close(mean_gradient("k3", now, old, ref), gradient_of_kl(now, ref))
    assert not torch.allclose(mean_gradient("k2", now, old, ref), gradient_of_kl(now, ref), rtol=0.1)


def test_the_value_of_k3_is_on_average_the_kl():
    now, old, ref = LOGITS
    values = [
        kl_loss(*(x.log_softmax(0)[token].view(1, 1) for x in LOGITS), ONE, kind="k3").item() for token in range(4)
    ]
    expected = (now.softmax(0) * (now.log_softmax(0) - ref.log_softmax(0))).sum()
    assert float(old.softmax(0) @ torch.tensor(values, dtype=torch.float64)) == pytest.approx(float(expected))


@pytest.mark.parametrize("kind", ["k2", "k3"])
@pytest.mark.parametrize("distance", [-30.0, 30.0])
def test_the_gradient_of_a_distant_token_is_exact_in_float32(kind, distance):
    logprobs = torch.tensor([[-31.0]], requires_grad=True)
    kl_loss(logprobs, torch.tensor([[-31.0]]), torch.tensor([[-31.0 - distance]]), ONE, kind=kind).backward()
    assert logprobs.grad.item() == distance


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_the_kl_of_a_policy_that_is_the_reference_is_nothing(kind):
    logprobs = torch.tensor([[-1.0, math.nan]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    loss = kl_loss(logprobs, logprobs.detach(), logprobs.detach(), mask, kind=kind)
    loss.backward()
    assert loss.item() == 0
    assert logprobs.grad.tolist() == [[0.0, 0.0]]


def test_k1_in_a_loss_is_refused():
    zero = torch.zeros(1, 1)
    with pytest.raises(ConfigError, match="kind 'k1' in a loss: expected 'k2' or 'k3'"):
        kl_loss(zero, zero, zero, ONE, kind="k1")
