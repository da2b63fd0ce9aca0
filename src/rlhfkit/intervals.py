"""95 % intervals of means and shares, of few values, with ties, and of values that hang together in groups."""

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit  # type: ignore[import-untyped]

__all__ = [
    "bootstrap_interval",
    "difference_interval",
    "is_clearly_lower",
    "mean_interval",
    "rate_interval",
    "wilson_interval",
]

Floats = NDArray[np.float64]
Groups = Sequence[Hashable] | None
"""Which values belong together, as those of one prompt do; None where all are independent."""

Z = 1.959964
"""Quantile of the normal distribution that leaves 2.5 % above."""
STEPS = 60
"""Halvings of a bracket until it is as narrow as a float."""


def mean_interval(values: Sequence[float], groups: Groups = None) -> tuple[float, float | None, float | None, float]:
    """(mean, low, high, deviation of the single values); no interval where there is one group (or value) only.

    mean ± t sqrt(v), with Student's t of G - 1 degrees for G groups, and v the jackknife's variance of a ratio:
    (G - 1) / G sum over groups of ((sum of the group - mean x its size) / (number - its size))². With groups of one
    value each that is the usual interval of a mean.
    Source: Cochran 1977, Sampling Techniques, section 6.17.
    """
    num = len(values)
    mean = math.fsum(values) / num
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / max(1, num - 1))
    sums, sizes = _by_group(values, groups)
    if len(sums) == 1:
        return mean, None, None, std
    half = _student(len(sums)) * math.sqrt(_variance_of_mean(sums, sizes, mean))
    return mean, mean - half, mean + half, std


def wilson_interval(rate: float, num: float, z: float = Z) -> tuple[float, float]:
    """(low, high) of a share `rate` out of `num`.

    Source: Wilson 1927, doi 10.1080/01621459.1927.10502953.
    """
    centre = (rate + z * z / (2 * num)) / (1 + z * z / num)
    half = z / (1 + z * z / num) * math.sqrt(rate * (1 - rate) / num + z * z / (4 * num * num))
    return max(0.0, centre - half), min(1.0, centre + half)


def is_clearly_lower(rate: float, other: float, num: int) -> bool:
    """Whether a share out of `num` is below another out of as many by more than chance: the whole 95 % interval."""
    error = math.sqrt((rate * (1 - rate) + other * (1 - other)) / max(1, num))
    return other - rate > Z * error


def rate_interval(values: Sequence[float], groups: Groups = None) -> tuple[float, float]:
    """(low, high) of the mean of values that are 1 (won, right), 0 (lost, wrong) or one half (a tie).

    As `difference_interval` of the wins and losses, of which the rate is (1 + difference) / 2. Without ties and groups
    that is Wilson's interval.
    """
    low, high = difference_interval([2 * value - 1 for value in values], groups)
    return (1 + low) / 2, (1 + high) / 2


def difference_interval(values: Sequence[float], groups: Groups = None) -> tuple[float, float]:
    """(low, high) of the mean of values that are 1, 0 or -1: of the difference of two shares on the same rows.

    The differences d that a score test at 5 % does not refuse: |(w - l) - n d| <= 1.96 sqrt(n (2 q + d (1 - d))), with
    w values of 1, l of -1, n in all, and q the likeliest share of -1 if the difference is d. It has its level with few
    rows, with ties, and where all values are the same. For values that hang together w, l and n are divided by the
    design effect, the variance of the mean over groups in that over single values, and 1.96 becomes Student's t.
    Source: Tango 1998, Statistics in Medicine 17; design effect: Rao & Scott 1992, Biometrics 48.
    """
    given = np.asarray(values, dtype=np.float64)
    sums, sizes = _by_group(values, groups)
    if len(sums) == len(given):
        effect, z = 1.0, Z
    elif len(sums) == 1:
        return -1.0, 1.0  # it says nothing of other groups
    else:
        effect, z = _design_effect(given, sums, sizes), _student(len(sums))
    wins, losses = float((given > 0).sum()) / effect, float((given < 0).sum()) / effect
    num, mean = len(given) / effect, float(given.mean())
    low = _crossing(lambda d: _score(wins, losses, num, d) > z, -1.0, mean)
    high = _crossing(lambda d: _score(wins, losses, num, d) >= -z, mean, 1.0)
    return low, high


def bootstrap_interval(resampled: Sequence[float], num_groups: int) -> tuple[float | None, float | None]:
    """(low, high) of a statistic from its values in resamples of `num_groups` groups; none where they are all the same.

    Percentiles, as far out as Student's t of `num_groups` - 1 degrees is beyond the normal distribution, since plain
    ones are too narrow for few groups.
    Source: Hesterberg 2015, arXiv 1411.5279 (expanded percentile interval).
    """
    if num_groups < 2 or max(resampled) == min(resampled):
        return None, None
    tail = float(ndtr(-math.sqrt(num_groups / (num_groups - 1)) * _student(num_groups)))
    low, high = np.quantile(np.asarray(resampled), [tail, 1 - tail])
    return float(low), float(high)


def _score(wins: float, losses: float, num: float, difference: float) -> float:
    """How many deviations wins - losses is above what `difference` lets expect."""
    linear = -wins - losses + (2 * num - wins + losses) * difference
    root = math.sqrt(max(0.0, linear**2 + 8 * num * losses * difference * (1 - difference)))
    lost = min(max((root - linear) / (4 * num), max(0.0, -difference)), (1 - difference) / 2)
    variance = num * (2 * lost + difference * (1 - difference))
    above = wins - losses - num * difference
    if variance <= 0:
        return math.copysign(math.inf, above) if abs(above) > 1e-9 * num else 0.0
    return above / math.sqrt(variance)


def _crossing(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Where between the two `holds`, which is true towards `low`, ends."""
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return (low + high) / 2


def _by_group(values: Sequence[float], groups: Groups) -> tuple[Floats, Floats]:
    """(sum, number) of the values of each group."""
    given = np.asarray(values, dtype=np.float64)
    if groups is None:
        return given, np.ones(len(given))
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    return np.bincount(index, weights=given).astype(np.float64), np.bincount(index).astype(np.float64)


def _variance_of_mean(sums: Floats, sizes: Floats, mean: float) -> float:
    num = len(sums)
    return (num - 1) / num * math.fsum(((sums - mean * sizes) / (sizes.sum() - sizes)) ** 2)


def _design_effect(values: Floats, sums: Floats, sizes: Floats) -> float:
    """Variance of the mean over groups / that over single values, at least 1.

    Where no value differs nothing is known of it, and each group counts once, to be on the safe side.
    """
    most = float((sizes**2).sum() / sizes.sum())
    single = float(values.var(ddof=1)) / len(values)
    return most if single == 0 else max(1.0, _variance_of_mean(sums, sizes, float(values.mean())) / single)


def _student(num: int) -> float:
    """Quantile of Student's t with `num` - 1 degrees that leaves 2.5 % above."""
    return float(stdtrit(num - 1, 0.975))
