"""95 % intervals against published values."""

import math

import pytest

from rlhfkit.intervals import mean_interval, wilson_interval


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
    # Mean 3, deviation sqrt((4 + 1 + 0 + 1 + 4) / 4), half width 1.959964 * deviation / sqrt(5).
    mean, low, high, std = mean_interval([1, 2, 3, 4, 5])
    assert mean == 3
    assert std == pytest.approx(math.sqrt(2.5))
    assert (low, high) == pytest.approx((3 - 1.385904, 3 + 1.385904), abs=1e-6)


def test_mean_interval_of_one_value_is_that_value():
    assert mean_interval([4.0]) == (4.0, 4.0, 4.0, 0.0)


def test_mean_interval_does_not_lose_small_numbers_beside_large_ones():
    mean, *_ = mean_interval([1e16, 1.0, -1e16, 1.0])
    assert mean == 0.5
