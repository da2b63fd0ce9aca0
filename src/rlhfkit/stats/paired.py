"""Before and after on the same items: tests, bootstraps and what could have been seen at all."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri  # type: ignore[import-untyped]

from rlhfkit.errors import ShapeError
from rlhfkit.stats.agreement import binomial_p_value
from rlhfkit.stats.intervals import bootstrap_interval

__all__ = [
    "DETECTABLE_SDS",
    "McNemar",
    "bootstrap_means",
    "detectable_difference",
    "detectable_share",
    "hierarchical_means",
    "mcnemar",
    "paired_interval",
    "sign_flip_p_value",
]

Floats = NDArray[np.float64]
Groups = Sequence[Hashable] | None

NUM_DRAWS = 10_000
DRAWN_AT_ONCE = 2_000_000
"""Numbers that exist at a time while resamples are drawn."""
DETECTABLE_SDS = 2.8
"""Standard errors that a difference must have to be found by a test at 5 % in four of five tries: 1.96 + 0.84."""
FEWEST_DISCORDANT = 6
"""Fewer pairs that differ can never be significant by the exact test: 2 / 2^5 > 5 % > 2 / 2^6."""


@dataclass(frozen=True, slots=True)
class McNemar:
    """What pairs of yes and no say of a change."""

    gained: int
    """Items that are true after and were not before."""
    lost: int
    """The other way round."""
    num: int
    p_value: float
    """1 where no pair differs."""

    @property
    def effect(self) -> float:
        """Change of the share."""
        return (self.gained - self.lost) / self.num


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> McNemar:
    """The exact test of paired shares: p = 2 P(Bin(b + c, 1/2) <= min(b, c)), of the b + c pairs that differ.

    Raises: ShapeError where there are not equally many of both, or none.
    Source: McNemar 1947, doi 10.1007/BF02295996.
    """
    if len(before) != len(after) or not len(before):
        raise ShapeError(f"{len(before)} items before and {len(after)} after; expected as many of both, at least one")
    gained = sum(new and not old for old, new in zip(before, after, strict=True))
    lost = sum(old and not new for old, new in zip(before, after, strict=True))
    p_value = binomial_p_value(gained, gained + lost)
    return McNemar(gained, lost, len(before), 1.0 if p_value is None else p_value)


# ── bootstraps ───────────────────────────────────────────────────────────────────────────────────────────────────────


def bootstrap_means(
    values: ArrayLike, groups: Groups = None, *, generator: np.random.Generator, num_draws: int = NUM_DRAWS
) -> Floats:
    """Means (num_draws,) of resamples; whole groups are drawn, as a prompt with all its samples."""
    sums, sizes = _by_group(values, groups)
    num = len(sums)
    means = []
    for start in range(0, num_draws, step := max(1, DRAWN_AT_ONCE // num)):
        size = min(step, num_draws - start)
        drawn = generator.multinomial(num, np.full(num, 1 / num), size=size).astype(np.float64)
        means.append((drawn @ sums) / (drawn @ sizes))
    return np.concatenate(means)


def hierarchical_means(
    by_seed: Sequence[ArrayLike],
    groups: Sequence[Groups] | None = None,
    *,
    generator: np.random.Generator,
    num_draws: int = NUM_DRAWS,
) -> Floats:
    """Means (num_draws,) where training seeds are drawn first, and then the groups of each drawn seed.

    Each seed weighs the same. With few seeds the means lie far apart, as they should.
    """
    num = len(by_seed)
    parts = [_by_group(values, None if groups is None else groups[at]) for at, values in enumerate(by_seed)]
    means = np.empty(num_draws)
    for draw in range(num_draws):
        total = 0.0
        for seed in generator.integers(num, size=num):
            sums, sizes = parts[seed]
            rows = generator.integers(len(sums), size=len(sums))
            total += sums[rows].sum() / sizes[rows].sum()
        means[draw] = total / num
    return means


def paired_interval(
    differences: ArrayLike,
    groups: Groups = None,
    *,
    seed: int,
    method: Literal["percentile", "bca"] = "percentile",
    num_draws: int = NUM_DRAWS,
) -> tuple[float | None, float | None]:
    """(low, high) of the mean difference of pairs, by bootstrap; none where a single group, or no spread, allows none.

    "percentile" is widened for few groups as `bootstrap_interval` says; "bca" is corrected for bias and skew instead.
    Source: bca: Efron 1987, doi 10.1080/01621459.1987.10478410.
    """
    sums, sizes = _by_group(differences, groups)
    means = bootstrap_means(differences, groups, generator=np.random.default_rng(seed), num_draws=num_draws)
    if len(sums) < 2 or np.ptp(means) < 1e-12 * max(1.0, float(np.abs(means).max())):
        return None, None
    if method == "percentile":
        return bootstrap_interval(means.tolist(), len(sums))
    mean = sums.sum() / sizes.sum()
    below = ((means < mean).sum() + 0.5 * (means == mean).sum()) / len(means)
    without = (sums.sum() - sums) / (sizes.sum() - sizes)
    spread = without.mean() - without
    skew = float((spread**3).sum() / (6 * (spread**2).sum() ** 1.5))
    bias = float(ndtri(below))
    tails = [float(ndtr(bias + (bias + z) / (1 - skew * (bias + z)))) for z in ndtri([0.025, 0.975])]
    low, high = np.quantile(means, tails)
    return float(low), float(high)


# ── tests and what they can see ──────────────────────────────────────────────────────────────────────────────────────


def sign_flip_p_value(differences: ArrayLike, groups: Groups = None, *, seed: int, num_draws: int = NUM_DRAWS) -> float:
    """Chance that the mean difference is as far from 0 if each group's sign were tossed: a paired permutation test.

    p = (1 + tosses at least as far) / (1 + tosses); all sign patterns are counted instead where they are fewer.
    """
    sums, _ = _by_group(differences, groups)
    sums = sums[sums != 0]
    num = len(sums)
    if not num:
        return 1.0
    least = abs(sums.sum()) * (1 - 1e-12)
    if 2**num <= num_draws:
        patterns = (np.arange(2**num)[:, None] >> np.arange(num)) & 1
        return float((np.abs((2.0 * patterns - 1) @ sums) >= least).mean())
    generator, further = np.random.default_rng(seed), 0
    for start in range(0, num_draws, step := max(1, DRAWN_AT_ONCE // num)):
        signs = 2.0 * generator.integers(2, size=(min(step, num_draws - start), num)) - 1
        further += int((np.abs(signs @ sums) >= least).sum())
    return (1 + further) / (1 + num_draws)


def detectable_share(gained: int, lost: int, num: int) -> float | None:
    """Smallest change of a paired share that would have been found in four of five tries: 2.8 sqrt(b + c) / n.

    At least 6 / n, since fewer pairs that differ are never significant; None where no share can change so much.
    """
    found = max(DETECTABLE_SDS * math.sqrt(gained + lost), FEWEST_DISCORDANT) / num
    return found if found <= 1 else None


def detectable_difference(differences: ArrayLike, groups: Groups = None) -> float | None:
    """The same of a mean difference: 2.8 standard errors over groups; None where one group allows none."""
    sums, sizes = _by_group(differences, groups)
    num = len(sums)
    if num < 2:
        return None
    mean = sums.sum() / sizes.sum()
    variance = num / (num - 1) * (((sums - mean * sizes) / sizes.sum()) ** 2).sum()
    return DETECTABLE_SDS * math.sqrt(float(variance))


def _by_group(values: ArrayLike, groups: Groups) -> tuple[Floats, Floats]:
    """(sum, number) of the values of each group; each value is a group of its own where there are none."""
    given = np.asarray(values, dtype=np.float64)
    if given.ndim != 1 or not len(given) or (groups is not None and len(groups) != len(given)):
        num_groups = "no" if groups is None else len(groups)
        raise ShapeError(f"values of shape {given.shape} with {num_groups} groups; expected (N,), and one group each")
    if groups is None:
        return given, np.ones(len(given))
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    return np.bincount(index, weights=given).astype(np.float64), np.bincount(index).astype(np.float64)
