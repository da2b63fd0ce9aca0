"""95 % intervals against published values."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from rlhfkit.stats.intervals import (
    bootstrap_interval,
    difference_interval,
    mean_interval,
    rate_interval,
    share_interval,
)


def wilson(rate, num, z=1.959964):
    """Wilson 1927, as Newcombe 1998 writes it (method 3)."""
    centre, half = 2 * num * rate + z * z, z * math.sqrt(z * z + 4 * num * rate * (1 - rate))
    return (centre - half) / (2 * (num + z * z)), (centre + half) / (2 * (num + z * z))


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
def test_shares_without_ties_are_a_little_wider_than_the_published_values(successes, num, low, high):
    assert wilson(successes / num, num) == pytest.approx((low, high), abs=5e-5)
    found = share_interval([1] * successes + [0] * (num - successes), [1] * num)
    assert low - 1 / (2 * num) < found[0] <= low + 5e-5  # Yates' whole correction would be 1 / (2 num)
    assert high - 5e-5 <= found[1] < high + 1 / (2 * num)


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


def wilson_with(half_step, successes, num, effective):
    """Where |rate - p| less `half_step` is 1.96 deviations of so many independent values, found by a root finder."""
    rate = successes / num

    def end(bound):
        def beyond(p):
            return max(0.0, abs(rate - p) - half_step) - 1.959964 * math.sqrt(p * (1 - p) / effective)

        return bound if rate == bound else optimize.brentq(beyond, bound, rate + 1e-9 * (bound - rate), xtol=1e-12)

    return end(0.0), end(1.0)


@pytest.mark.parametrize(("successes", "num"), [(0, 20), (1, 29), (20, 20), (5, 10), (81, 263)])
def test_without_ties_it_is_wilsons_with_half_the_correction_for_continuity(successes, num):
    values = [1.0] * successes + [0.0] * (num - successes)
    assert rate_interval(values) == pytest.approx(wilson_with(1 / (4 * num), successes, num, num), abs=1e-9)
    assert share_interval([successes], [num]) == (0.0, 1.0)  # of one group
    assert share_interval(values, [1] * num) == rate_interval(values)


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


@pytest.mark.parametrize("won", [4, 6])
def test_equal_values_of_a_group_count_once(won):
    # 6 groups of 5 equal values are as good as 6 values; a step of 30 values is small beside them.
    values = [float(group < won) for group in range(6) for _ in range(5)]
    groups = [group for group in range(6) for _ in range(5)]
    assert rate_interval(values, groups) == pytest.approx(wilson_with(1 / 120, won, 6, 6), abs=1e-9)


def test_groups_that_differ_little_cost_students_t_of_their_number():
    # Each of 6 groups has 3 of 5 wins: nothing hangs together, so the design effect is 1, and t of 5 degrees 2.570582.
    values, groups = [1.0, 1.0, 1.0, 0.0, 0.0] * 6, [group for group in range(6) for _ in range(5)]
    expected = [wilson(0.6 + sign / 120, 30, 2.570582)[sign > 0] for sign in (-1, 1)]
    assert rate_interval(values, groups) == pytest.approx(expected, abs=1e-6)


def test_groups_that_hold_the_rarer_value_are_those_that_count():
    # 20 groups of 5, of which 3 have one loss: t of 2 degrees, 4.302653, in place of 2.093024 of 19; but each group
    # counts at least once, which is the narrower one.
    values = [0.0 if index in (0, 5, 10) else 1.0 for index in range(100)]
    groups = [index // 5 for index in range(100)]
    assert rate_interval(values, groups) == pytest.approx(
        tuple(wilson(0.97 + sign / 400, 100, min(4.302653, 1.959964 * 5**0.5))[sign > 0] for sign in (-1, 1)),
        abs=1e-6,
    )


def test_shares_by_group_are_those_of_the_single_values():
    values, groups = [1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0], ["a", "a", "a", "b", "c", "c", "c"]
    assert share_interval([2, 1, 2], [3, 1, 3]) == rate_interval(values, groups)


def test_groups_of_one_value_are_no_groups():
    values = [1.0, 0.0, 0.5, 1.0, 1.0]
    assert rate_interval(values, range(5)) == rate_interval(values)
    assert mean_interval(values, range(5)) == mean_interval(values)


def test_values_of_the_one_prompt_there_is_are_independent():
    """Reviews that all continue the same prompt: 429 of 534 right is far from a coin's half."""
    right = [1.0] * 429 + [0.0] * 105
    low, high = rate_interval(right, ["Write a review."] * 534)
    assert (low, high) == rate_interval(right)
    assert 0.76 < low < 429 / 534 < high < 0.84
    assert mean_interval([1.0, 2.0], ["a", "a"]) == mean_interval([1.0, 2.0])


@pytest.mark.filterwarnings("error")
def test_half_a_win_of_one_has_an_interval_without_a_warning():
    low, high = share_interval([0.5], [1])
    assert 0 < low < 0.5 < high < 1


def test_mean_of_groups_by_hand():
    # Means 1, 2, 6 of three groups of two: overall 3. Left out in turn, a group moves it by (mean - 3) / 2 = -1, -1/2,
    # 3/2; v = 2/3 (1 + 1/4 + 9/4) = 7/3; t of 2 degrees is 4.302653.
    mean, low, high, _ = mean_interval([0, 2, 1, 3, 5, 7], ["a", "a", "b", "b", "c", "c"])
    half = 4.302653 * math.sqrt(7 / 3)
    assert (mean, low, high) == pytest.approx((3, 3 - half, 3 + half), abs=1e-5)


def test_mean_of_groups_of_very_different_sizes_has_fewer_degrees():
    # Sizes 8, 1, 1, 1, 1: 12² / 68 = 2.117647 groups, so t of 1.117647 degrees, which is 10.0 to one digit (scipy).
    values, groups = [3.0] * 8 + [1.0, 5.0, 2.0, 4.0], [*"aaaaaaaa", "b", "c", "d", "e"]
    mean, low, high, _ = mean_interval(values, groups)
    # v = 4/5 (sum of ((1 - 3)² + (5 - 3)² + (2 - 3)² + (4 - 3)²) / 11²)
    half = stats.t(144 / 68 - 1).ppf(0.975) * math.sqrt(0.8 * 10 / 121)
    assert (mean, low, high) == pytest.approx((3, 3 - half, 3 + half))


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


def grouped(sizes, shares, likeness):
    """Groups whose own shares of wins, ties, losses are Dirichlet distributed; two values have the correlation."""

    def draw(generator):
        each = np.tile(shares, (len(sizes), 1))
        if likeness:
            each = generator.dirichlet(np.asarray(shares) * (1 - likeness) / likeness, size=len(sizes))
        groups = np.repeat(np.arange(len(sizes)), sizes)
        drawn = generator.random(len(groups))
        below = drawn[:, None] < each.cumsum(axis=1)[groups, :2]
        return (below.sum(axis=1) / 2).tolist(), groups.tolist()

    return draw


UNEQUAL = [1, 1, 2, 3, 4, 6, 9, 12, 16, 22, 30, 40, 49]
TIES = [
    (trinomial(1000, 0.07, 0.9), 0.52),
    (trinomial(200, 0.3, 0.4), 0.5),
    (trinomial(50, 0.6, 0.2), 0.7),
    (trinomial(20, 0.3, 0.4), 0.5),
    (trinomial(10, 0.3, 0.3), 0.45),
]
GROUPS = [
    (sizes, rate, likeness)
    for rate in (0.5, 0.7, 0.9)
    for sizes, likeness in (
        ([15] * 13, 0.3),
        ([15] * 13, 0.05),
        (UNEQUAL, 0.3),
        (UNEQUAL, 0.05),
        ([7] * 30, 0.2),
        ([2] * 100, 0.5),
        ([4] * 50, 0.3),
        ([5] * 8, 0.3),
    )
]


@pytest.mark.thorough
@pytest.mark.parametrize(("draw", "truth"), TIES)
def test_intervals_with_ties_cover_what_they_say(draw, truth):
    assert covered(draw, truth, num=4000, seed=0) == pytest.approx(0.95, abs=0.015)


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "rate", "likeness"), GROUPS)
def test_intervals_of_groups_cover_what_they_say_or_more(sizes, rate, likeness):
    found = covered(grouped(sizes, [rate, 0.0, 1 - rate], likeness), rate, num=4000, seed=0)
    # Few groups, and groups that are hardly alike, tell little of the design effect; 0.985 is not far beyond.
    assert 0.94 <= found <= (0.993 if len(sizes) == 8 else 0.985)
    if len(sizes) > 13 and rate < 0.9:
        assert found == pytest.approx(0.95, abs=0.015)


@pytest.mark.thorough
@pytest.mark.parametrize(("sizes", "likeness"), [([15] * 13, 0.3), (UNEQUAL, 0.3), ([7] * 30, 0.2)])
@pytest.mark.parametrize(("win", "tie"), [(0.3, 0.4), (0.07, 0.9)])
def test_intervals_of_groups_with_ties_cover_what_they_say_or_more(sizes, likeness, win, tie):
    found = covered(grouped(sizes, [win, tie, 1 - win - tie], likeness), win + tie / 2, num=4000, seed=0)
    assert 0.935 <= found <= 0.985


@pytest.mark.parametrize("num", [10, 20, 50, 100])
def test_few_values_are_covered_often_enough_whatever_the_rate(num):
    # Counted, not drawn: the chance of each number of wins. Wilson's plain interval has 0.895 for 10 values at worst.
    ends = [rate_interval([1.0] * wins + [0.0] * (num - wins)) for wins in range(num + 1)]
    for rate in np.linspace(0.05, 0.95, 181):
        chances = stats.binom.pmf(range(num + 1), num, rate)
        found = math.fsum(chance for chance, (low, high) in zip(chances, ends, strict=True) if low <= rate <= high)
        assert 0.935 <= found <= 0.992


def test_intervals_of_ties_and_of_groups_cover_about_what_they_say():
    # 300 samples: a coverage of 0.95 is seen as 0.95 ± 0.025 (two standard errors).
    for draw, truth in (TIES[1], (grouped([4] * 50, [0.65, 0.0, 0.35], 0.3), 0.65)):
        assert covered(draw, truth, num=300, seed=1) == pytest.approx(0.95, abs=0.03)
