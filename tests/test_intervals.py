"""95 % intervals against published values."""

import math

import numpy as np
import pytest
from scipy import optimize

from rlhfkit.intervals import bootstrap_interval, difference_interval, mean_interval, rate_interval, wilson_interval


@pytest.mark.parametrize(
    ("successes", "num", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3, and the next three too
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
        (5, 10, 0.2366, 0.7634),
    ],
)
def test_wilson_interval_has_the_published_values(successes, num, low, high):
    assert wilson_interval(successes / num, num) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_is_symmetric_and_stays_between_0_and_1():
    low, high = wilson_interval(0.1, 7)
    assert wilson_interval(0.9, 7) == pytest.approx((1 - high, 1 - low))
    assert wilson_interval(0.0, 1)[0] == 0.0
    assert wilson_interval(1.0, 1)[1] == 1.0


def test_mean_interval_by_hand():
    # Mean 3, deviation sqrt((4 + 1 + 0 + 1 + 4) / 4), half width 2.776445 (t of 4 degrees) * deviation / sqrt(5).
    mean, low, high, std = mean_interval([1, 2, 3, 4, 5])
    assert mean == 3
    assert std == pytest.approx(math.sqrt(2.5))
    assert (low, high) == pytest.approx((3 - 1.963243, 3 + 1.963243), abs=1e-6)


def test_one_value_has_no_interval():
    assert mean_interval([4.0]) == (4.0, None, None, 0.0)


def test_mean_interval_does_not_lose_small_numbers_beside_large_ones():
    mean, *_ = mean_interval([1e16, 1.0, -1e16, 1.0])
    assert mean == 0.5


# ── ties, groups, few rows ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_tie_is_no_coin():
    # 70 wins, 900 ties, 30 losses: rate 0.52, variance 0.07 + 0.9 / 4 - 0.52² = 0.0246; 0.52 ± 1.96 sqrt(0.0246 / n)
    low, high = rate_interval([1.0] * 70 + [0.5] * 900 + [0.0] * 30)
    assert (low, high) == pytest.approx((0.5103, 0.5297), abs=6e-4)
    assert low > 0.5


@pytest.mark.parametrize(("successes", "num"), [(0, 20), (1, 29), (20, 20), (5, 10), (81, 263)])
def test_without_ties_it_is_wilsons(successes, num):
    values = [1.0] * successes + [0.0] * (num - successes)
    assert rate_interval(values) == pytest.approx(wilson_interval(successes / num, num), abs=1e-9)


def test_nothing_but_ties_still_has_an_interval():
    # The score test refuses a difference d of n ties where n d / sqrt(n d (1 - d)) > 1.96: d = z² / (n + z²).
    d = 1.959964**2 / (10 + 1.959964**2)
    assert rate_interval([0.5] * 10) == pytest.approx((0.5 - d / 2, 0.5 + d / 2), abs=1e-9)


@pytest.mark.parametrize(("wins", "losses", "num"), [(9, 2, 30), (3, 0, 12), (0, 5, 8), (40, 25, 90)])
def test_the_ends_are_where_the_score_test_is_at_its_level(wins, losses, num):
    low, high = difference_interval([1.0] * wins + [-1.0] * losses + [0.0] * (num - wins - losses))
    for d in (low, high):
        ties = num - wins - losses

        def unlikely(lost, d=d, ties=ties):  # minus the log-likelihood if the difference is d
            shares = ((wins, lost + d), (losses, lost), (ties, 1 - 2 * lost - d))
            return -sum(count * math.log(max(share, 1e-300)) for count, share in shares if count)

        bounds = max(0.0, -d), (1 - d) / 2
        found = optimize.minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-12})
        score = (wins - losses - num * d) / math.sqrt(num * (2 * found.x + d - d * d))
        assert abs(score) == pytest.approx(1.959964, abs=1e-3)


def test_equal_values_of_a_group_count_once():
    # 6 groups of 5 equal values are as good as 6 values, with Student's t of 5 degrees, 2.570582, in place of 1.96.
    values = [float(group < 4) for group in range(6) for _ in range(5)]
    groups = [group for group in range(6) for _ in range(5)]
    effect = 5 * 29 / 30 * 6 / 5  # variance over groups p (1 - p) / 5, over values p (1 - p) / 29
    assert rate_interval(values, groups) == pytest.approx(wilson_interval(4 / 6, 30 / effect, 2.570582), abs=1e-6)


def test_groups_of_one_value_are_no_groups():
    values = [1.0, 0.0, 0.5, 1.0, 1.0]
    assert rate_interval(values, range(5)) == rate_interval(values)
    assert mean_interval(values, range(5)) == mean_interval(values)


def test_one_group_says_nothing_of_others():
    assert rate_interval([1.0, 1.0, 0.0], ["a"] * 3) == (0.0, 1.0)
    assert mean_interval([1.0, 2.0], ["a", "a"])[1:3] == (None, None)


def test_mean_of_groups_by_hand():
    # Means 1, 2, 6 of three groups of two: overall 3. Left out in turn, a group moves it by (mean - 3) / 2 = -1, -1/2,
    # 3/2; v = 2/3 (1 + 1/4 + 9/4) = 7/3; t of 2 degrees is 4.302653.
    mean, low, high, _ = mean_interval([0, 2, 1, 3, 5, 7], ["a", "a", "b", "b", "c", "c"])
    half = 4.302653 * math.sqrt(7 / 3)
    assert (mean, low, high) == pytest.approx((3, 3 - half, 3 + half), abs=1e-5)


def test_a_bootstrap_of_few_groups_is_wider_than_its_percentiles():
    resampled = [index / 1000 for index in range(1001)]
    low, high = bootstrap_interval(resampled, 10)
    # Phi(-sqrt(10 / 9) * 2.262157) = Phi(-2.384519) = 0.008551
    assert (low, high) == pytest.approx((0.008551, 1 - 0.008551), abs=1e-5)
    assert bootstrap_interval([0.7] * 50, 10) == (None, None)
    assert bootstrap_interval(resampled, 1) == (None, None)


def covered(draw, truth, *, num, seed):
    """Share of `num` samples whose interval holds the truth."""
    generator = np.random.default_rng(seed)
    hits = 0
    for _ in range(num):
        low, high = rate_interval(*draw(generator))
        hits += low - 1e-9 <= truth <= high + 1e-9
    return hits / num


def trinomial(num, win, tie):
    return lambda generator: (generator.choice([1.0, 0.5, 0.0], size=num, p=[win, tie, 1 - win - tie]).tolist(), None)


def grouped(num_groups, size, rate, likeness):
    """Groups whose own rate is beta distributed, so that two values of one have the correlation `likeness`."""
    a, b = rate * (1 - likeness) / likeness, (1 - rate) * (1 - likeness) / likeness

    def draw(generator):
        rates = generator.beta(a, b, size=num_groups)
        values = generator.random((num_groups, size)) < rates[:, None]
        return values.ravel().astype(float).tolist(), np.repeat(np.arange(num_groups), size).tolist()

    return draw


CASES = [
    (trinomial(1000, 0.07, 0.9), 0.52),
    (trinomial(200, 0.3, 0.4), 0.5),
    (trinomial(50, 0.6, 0.2), 0.7),
    (trinomial(20, 0.3, 0.4), 0.5),
    (trinomial(10, 0.3, 0.3), 0.45),
    (grouped(100, 2, 0.7, 0.5), 0.7),
    (grouped(50, 4, 0.65, 0.3), 0.65),
    (grouped(30, 7, 0.8, 0.2), 0.8),
    (grouped(13, 15, 0.7, 0.3), 0.7),
]


@pytest.mark.thorough
@pytest.mark.parametrize(("draw", "truth"), CASES)
def test_intervals_cover_what_they_say(draw, truth):
    assert covered(draw, truth, num=4000, seed=0) == pytest.approx(0.95, abs=0.015)


def test_intervals_of_ties_and_of_groups_cover_about_what_they_say():
    # 300 samples: a coverage of 0.95 is seen as 0.95 ± 0.025 (two standard errors).
    for draw, truth in (CASES[1], CASES[6]):
        assert covered(draw, truth, num=300, seed=1) == pytest.approx(0.95, abs=0.03)
