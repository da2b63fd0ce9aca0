import dataclasses
import math

import numpy as np
import pytest
import torch

from rlhfkit.errors import ConfigError, ShapeError, TrainingError
from rlhfkit.ppo import AdaptiveKL, FixedKL, kl_estimate
from tests.oracles import ppo as oracle

KINDS = ["k1", "k2", "k3"]


# ── estimators ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("k1", [0.5, -0.5]), ("k2", [0.125, 0.125]), ("k3", [math.exp(-0.5) - 0.5, math.exp(0.5) - 1.5])],
)
def test_estimates_of_a_likelier_and_a_rarer_token(kind, expected):
    estimate = kl_estimate(torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.5]), kind)
    torch.testing.assert_close(estimate, torch.tensor(expected))


@pytest.mark.parametrize("kind", KINDS)
def test_estimates_equal_those_from_the_probability_ratio(kind):
    rng = np.random.default_rng(0)
    logprobs, ref_logprobs = -rng.exponential(size=(2, 5, 7))
    estimate = kl_estimate(torch.from_numpy(logprobs), torch.from_numpy(ref_logprobs), kind)
    np.testing.assert_allclose(estimate, oracle.kl_estimate(logprobs, ref_logprobs, kind), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("kind", "tolerance"), [("k1", 0.03), ("k2", None), ("k3", 0.03)])
def test_estimates_of_samples_from_the_policy_approach_the_true_kl(kind, tolerance):
    generator = torch.Generator().manual_seed(1)
    policy, reference = torch.randn(2, 6, generator=generator).log_softmax(-1)
    tokens = torch.multinomial(policy.exp(), 200_000, replacement=True, generator=generator)
    truth = (policy.exp() * (policy - reference)).sum().item()
    estimate = kl_estimate(policy[tokens], reference[tokens], kind).mean().item()
    if tolerance is None:
        assert abs(estimate / truth - 1) > 0.1  # k2 is biased where the two are far apart
    else:
        assert estimate == pytest.approx(truth, rel=tolerance)  # standard error of 200 000 samples is below 1 %


def test_k1_may_be_negative_for_a_sample_and_k3_never_is():
    # differences down to 1e-7, where a careless k3 rounds to below 0
    generator = torch.Generator().manual_seed(0)
    differences = torch.randn(100_000, generator=generator) * torch.logspace(-7, 0, 100_000)
    zeros = torch.zeros_like(differences)
    assert (kl_estimate(differences, zeros, "k1") < 0).any()
    assert (kl_estimate(differences, zeros, "k2") >= 0).all()
    assert (kl_estimate(differences, zeros, "k3") >= 0).all()


def test_k3_of_nearly_equal_policies_keeps_its_digits():
    assert kl_estimate(torch.tensor(1e-4), torch.tensor(0.0), "k3").item() == pytest.approx(5e-9, rel=1e-3)


def expected_gradient(kind):
    """Gradient over all tokens, weighed by the policy, of the estimate as a loss; with the policy and the reference."""
    logits = torch.tensor([0.5, -1.0, 0.2, 1.0], dtype=torch.float64, requires_grad=True)
    policy = logits.log_softmax(-1)
    reference = torch.tensor([0.0, 0.3, -0.4, 0.1], dtype=torch.float64).log_softmax(-1)
    loss = (policy.exp().detach() * kl_estimate(policy, reference, kind)).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    return gradient, policy.exp().detach(), reference.exp()


def test_gradient_of_k1_as_a_loss_vanishes():
    gradient, *_ = expected_gradient("k1")
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_gradient_of_k2_as_a_loss_is_that_of_the_kl_to_the_reference():
    gradient, policy, reference = expected_gradient("k2")
    difference = policy.log() - reference.log()
    torch.testing.assert_close(gradient, policy * (difference - (policy * difference).sum()))


def test_gradient_of_k3_as_a_loss_is_that_of_the_kl_from_the_reference():
    gradient, policy, reference = expected_gradient("k3")
    torch.testing.assert_close(gradient, policy - reference)


@pytest.mark.parametrize("kind", KINDS)
def test_estimates_of_half_precision_are_float32(kind):
    x = torch.tensor([-1.0], dtype=torch.bfloat16)
    assert kl_estimate(x, x, kind).dtype == torch.float32


def test_an_unknown_kind_is_refused():
    with pytest.raises(ConfigError, match="kind 'k4': expected 'k1', 'k2' or 'k3'"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")


def test_estimates_refuse_a_shape_that_would_broadcast():
    with pytest.raises(ShapeError, match=r"logprobs \(2, 3\), ref_logprobs \(2, 3, 1\)"):
        kl_estimate(torch.zeros(2, 3), torch.zeros(2, 3, 1), "k1")


# ── coefficients ─────────────────────────────────────────────────────────────────────────────────────────────────────

ADAPTIVE = AdaptiveKL(initial_coef=0.15, target=6.0, horizon_episodes=10_000)


def test_fixed_coefficient_never_moves():
    control = FixedKL(0.05)
    assert control.initial_coef == 0.05
    assert control.next(0.05, 100.0, 512) == 0.05


@pytest.mark.parametrize(
    ("observed_kl", "factor"),
    [
        (6.0, 1.0),
        (1e9, 1.01024),  # clipped: 1 + 0.2 * 512 / 10 000
        (7.2001, 1.01024),
        (0.0, 0.98976),
        (-3.0, 0.98976),
        (6.6, 1.00512),  # 10 % above: 1 + 0.1 * 512 / 10 000
        (5.4, 0.99488),
    ],
)
def test_adaptive_coefficient_moves_by_the_clipped_error(observed_kl, factor):
    assert ADAPTIVE.next(0.15, observed_kl, 512) == pytest.approx(0.15 * factor, rel=1e-9)


def test_adaptive_coefficient_starts_from_the_one_it_is_given():
    assert ADAPTIVE.initial_coef == 0.15
    assert ADAPTIVE.next(2.0, 6.6, 512) == pytest.approx(2.0 * 1.00512)


def test_a_wider_error_clip_moves_further():
    control = AdaptiveKL(initial_coef=0.1, target=6.0, horizon_episodes=1000, error_clip=0.5)
    assert control.next(0.1, 1e9, 100) == pytest.approx(0.1 * 1.05)


def test_the_coefficient_is_driven_to_where_the_kl_meets_its_target():
    coef = ADAPTIVE.initial_coef
    for _ in range(2000):
        coef = ADAPTIVE.next(coef, 1.5 / coef, 512)  # a policy whose KL falls as the coefficient rises
    assert 1.5 / coef == pytest.approx(6.0, rel=1e-3)


def test_controllers_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ADAPTIVE.target = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        FixedKL(0.05).coef = 1.0


@pytest.mark.parametrize("observed_kl", [math.nan, math.inf, -math.inf])
def test_a_kl_that_is_not_finite_stops_the_run(observed_kl):
    with pytest.raises(TrainingError, match="expected a finite KL"):
        ADAPTIVE.next(0.15, observed_kl, 512)


def test_a_rollout_that_could_turn_the_coefficient_negative_is_refused():
    assert ADAPTIVE.next(0.15, 0.0, 49_999) > 0
    with pytest.raises(ConfigError, match="raise the horizon"):
        ADAPTIVE.next(0.15, 0.0, 50_000)


@pytest.mark.parametrize(
    "wrong",
    [{"initial_coef": -0.1}, {"initial_coef": math.nan}, {"target": 0.0}, {"horizon_episodes": 0}, {"error_clip": 0}],
)
def test_adaptive_settings_without_sense_are_refused(wrong):
    with pytest.raises(ConfigError):
        dataclasses.replace(ADAPTIVE, **wrong)


@pytest.mark.parametrize("coef", [-0.1, math.nan, math.inf])
def test_a_negative_or_endless_coefficient_is_refused(coef):
    with pytest.raises(ConfigError, match="KL coefficient"):
        FixedKL(coef)
