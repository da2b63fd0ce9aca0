"""The best distance from the reference is found where it is known; where the points do not say it, nothing is said."""

import math

import numpy as np
import pytest
from scipy.optimize import least_squares, minimize_scalar

from rlhfkit.stats.over_optimization import fit_over_optimization

KL = [0.0, 0.3, 1.2, 2.0, 3.5, 5.0, 8.0, 12.0, 16.0, 20.0, 26.0, 33.0]


def gains(distances, alpha, beta):
    """Written for itself: Gao et al., equation 1."""
    return np.array([d * (alpha - beta * math.log(d)) if d else 0.0 for d in distances])


def points(alpha=1.5, beta=0.7, start=-0.4, *, noise=0.0, prompts=1, seed=0):
    generator = np.random.default_rng(seed)
    gold = start + gains(np.sqrt(KL), alpha, beta)
    return gold[:, None] + noise * generator.standard_normal((len(KL), prompts))


def test_parameters_and_the_best_distance_of_exact_points_are_found():
    fit = fit_over_optimization(KL, points())
    assert (fit.alpha, fit.beta, fit.start) == pytest.approx((1.5, 0.7, -0.4))
    assert fit.best_distance == pytest.approx(math.exp(1.5 / 0.7 - 1))  # 3.14, so KL 9.8
    assert fit.best_kl == pytest.approx(math.exp(1.5 / 0.7 - 1) ** 2)
    assert fit.low == pytest.approx(fit.best_distance) == fit.high
    assert fit.r_squared == pytest.approx(1) and fit.num_points == 10


def test_the_best_distance_is_where_the_curve_is_highest():
    fit = fit_over_optimization(KL, points())
    highest = minimize_scalar(lambda d: -fit.gold(d), bounds=(0.1, 10), method="bounded", options={"xatol": 1e-9})
    assert highest.x == pytest.approx(fit.best_distance, rel=1e-4)
    assert fit.gold(0.0) == -0.4


def test_it_is_the_least_squares_fit_over_the_points_at_a_distance_of_one_and_more():
    gold = points(noise=0.2)[:, 0]
    far = [index for index, kl in enumerate(KL) if kl >= 1]
    distances = np.sqrt(np.array(KL)[far])
    oracle = least_squares(lambda p: gains(distances, *p) - (gold[far] - gold[0]), [1.0, 1.0]).x
    fit = fit_over_optimization(KL, gold)
    assert (fit.alpha, fit.beta) == pytest.approx(tuple(oracle), rel=1e-6)


def test_the_interval_holds_the_truth_and_narrows_with_the_prompts():
    truth, hits, widths = math.exp(1.5 / 0.7 - 1), {40: 0, 400: 0}, {40: 0.0, 400: 0.0}
    for prompts in hits:
        for seed in range(8):
            fit = fit_over_optimization(KL, points(noise=0.9, prompts=prompts, seed=seed))
            hits[prompts] += fit.low <= truth <= fit.high
            widths[prompts] += (fit.high - fit.low) / 8
    assert min(hits.values()) >= 7  # of 8: at 95 %, fewer come in one of 17 cases
    assert widths[400] < 0.6 * widths[40]


def test_the_same_points_give_the_same_interval():
    assert fit_over_optimization(KL, points(noise=0.2)) == fit_over_optimization(KL, points(noise=0.2))


@pytest.mark.parametrize(
    ("kl", "gold"),
    [
        (KL[:7], points()[:7]),  # five far points
        (KL, gains(np.sqrt(KL), 1.0, -0.2)),  # rises ever faster
        (KL, gains(np.sqrt(KL), 1.0, 0.2)),  # highest at a distance of 55, where nothing was seen
        (KL, points(noise=3.0)),  # noise
        (KL, [0.0] * len(KL)),
        (KL[2:], points()[2:]),  # does not begin at the reference
        ([0.0, *[4.0] * 8], [0.0, 1, 2, 1, 2, 1, 2, 1, 2]),  # one distance
    ],
    ids=["few", "rising", "far off", "noise", "constant", "no start", "one distance"],
)
def test_nothing_is_said_where_points_do_not_say_it(kl, gold):
    assert fit_over_optimization(kl, gold) is None


def test_nothing_is_said_where_the_interval_is_wide():
    """A curve that is nearly flat at its top, with noise: half of all prompts could put it elsewhere."""
    wide = [fit_over_optimization(KL, points(0.5, 0.15, noise=3.0, prompts=60, seed=seed)) for seed in range(10)]
    assert wide.count(None) >= 8


def test_a_kl_below_zero_by_chance_is_none():
    assert fit_over_optimization([-0.1, *KL[1:]], points()) == fit_over_optimization(KL, points())
