"""95 % intervals of means and shares."""

import math
from collections.abc import Sequence

__all__ = ["is_clearly_lower", "mean_interval", "wilson_interval"]

Z = 1.959964
"""Quantile of the normal distribution that leaves 2.5 % above."""


def mean_interval(values: Sequence[float]) -> tuple[float, float, float, float]:
    """(mean, low, high, deviation of the single values); the interval is mean ± 1.96 deviation / sqrt(number)."""
    num = len(values)
    mean = math.fsum(values) / num
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / max(1, num - 1))
    half = Z * std / math.sqrt(num)
    return mean, mean - half, mean + half, std


def wilson_interval(rate: float, num: int) -> tuple[float, float]:
    """(low, high) of a share `rate` out of `num`.

    Source: Wilson 1927, doi 10.1080/01621459.1927.10502953.
    """
    centre = (rate + Z * Z / (2 * num)) / (1 + Z * Z / num)
    half = Z / (1 + Z * Z / num) * math.sqrt(rate * (1 - rate) / num + Z * Z / (4 * num * num))
    return max(0.0, centre - half), min(1.0, centre + half)


def is_clearly_lower(rate: float, other: float, num: int) -> bool:
    """Whether a share out of `num` is below another out of as many by more than chance: the whole 95 % interval."""
    error = math.sqrt((rate * (1 - rate) + other * (1 - other)) / max(1, num))
    return other - rate > Z * error
