"""Agreement between people, as numbers: alpha, kappa, AC1, raw agreement, and the ceiling that it puts on accuracy.

A number that is not defined is None with a reason, never NaN. All intervals are 95 % intervals.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhfkit.errors import ShapeError
from rlhfkit.stats.intervals import Z, share_interval

__all__ = [
    "Level",
    "Statistic",
    "Ties",
    "ValueCounts",
    "Weights",
    "accuracy_without_noise",
    "annotator_accuracy",
    "binomial_p_value",
    "ceiling_of_majorities",
    "cohen_kappa",
    "confusion",
    "count_values",
    "fleiss_kappa",
    "gwet_ac1",
    "krippendorff_alpha",
    "majority_of_three",
    "raw_agreement",
    "share",
]

Floats = NDArray[np.float64]
Level = Literal["nominal", "ordinal", "interval", "ratio"]
Weights = Literal["linear", "quadratic"]
Ties = Literal["count", "drop", "half"]

NUM_RESAMPLES = 1000
RESAMPLES_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Statistic:
    """A number with its interval and what it was computed from."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    unit: str = "ratings"
    """What `n` counts."""
    reason: str = ""
    """Why there is no value, or no interval."""

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ValueCounts:
    """How often each item was given each value; that is all that agreement depends on."""

    values: Floats
    """The values (V,), rising; ones that nobody gave may be among them."""
    counts: Floats
    """How many people gave item i the value v, (items, V)."""

    def __post_init__(self) -> None:
        if self.values.ndim != 1 or self.counts.ndim != 2 or self.counts.shape[1] != len(self.values):
            raise ShapeError(
                f"values {self.values.shape} and counts {self.counts.shape}; expected (V,) and (items, V); "
                "give one column for each value"
            )

    def with_two_or_more(self) -> Floats:
        """The rows of `counts` of items that two or more people rated; others say nothing about agreement."""
        several: Floats = self.counts[self.counts.sum(axis=1) >= 2]
        return several


def count_values(ratings: ArrayLike, *, values: ArrayLike | None = None) -> ValueCounts:
    """Counts of the ratings (items, raters), where NaN is a missing one.

    `values` names the whole scale, where not all of it may occur.
    Raises: ShapeError where the ratings are not a table, or one of them is not on the scale.
    """
    table = np.asarray(ratings, dtype=np.float64)
    if table.ndim != 2:
        raise ShapeError(f"ratings of shape {table.shape}; expected (items, raters); put NaN where one is missing")
    items, raters = np.nonzero(~np.isnan(table))
    given = table[items, raters]
    scale = np.unique(given if values is None else np.asarray(values, dtype=np.float64))
    if not np.isin(given, scale).all():
        raise ShapeError(f"ratings {np.setdiff1d(given, scale).tolist()} are not on the scale {scale.tolist()}")
    counts = np.zeros((len(table), len(scale)))
    np.add.at(counts, (items, np.searchsorted(scale, given)), 1)
    return ValueCounts(scale, counts)


# ── shares ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def share(successes: ArrayLike, totals: ArrayLike, *, unit: str) -> Statistic:
    """sum(successes) / sum(totals) over items, with an interval that knows that answers to one item hang together."""
    won, total = np.asarray(successes, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    won, total = won[total > 0], total[total > 0]
    n = total.sum()
    if n == 0:
        return Statistic(None, unit=unit, reason=f"there are no {unit}")
    low, high = share_interval(won, total)
    return Statistic(float(won.sum() / n), low, high, round(n), unit)


def raw_agreement(ratings: ValueCounts, *, ties: Ties = "count") -> Statistic:
    """Share of the pairs of ratings of one item that are equal.

    A rating of 0 is a tie: it counts as a value like others, is dropped, or agrees by half with any that is not 0.
    Source: the half rule, Nakano et al. 2021, arXiv 2112.09332.
    """
    counts, neutral = ratings.counts, ratings.values == 0
    if ties == "drop":
        counts = counts[:, ~neutral]
    sizes = counts.sum(axis=1)
    equal = (counts * (counts - 1)).sum(axis=1) / 2
    if ties == "half":
        at_zero = counts[:, neutral].sum(axis=1)
        equal = equal + at_zero * (sizes - at_zero) / 2
    return share(equal, sizes * (sizes - 1) / 2, unit="pairs of ratings")


def binomial_p_value(successes: int, num: int) -> float | None:
    """Chance that a fair coin strays at least as far from num / 2, two-sided and exact; None where num is 0."""
    from scipy.stats import binomtest  # type: ignore[import-untyped]

    return float(binomtest(successes, num).pvalue) if num else None


# ── two people ───────────────────────────────────────────────────────────────────────────────────────────────────────


def confusion(first: ArrayLike, second: ArrayLike, *, values: ArrayLike | None = None) -> Floats:
    """How often the one person gave value i and the other value j, (V, V); NaN of either leaves an item out.

    Raises: ShapeError where the two have different lengths, or a rating is not on the scale.
    """
    one, other = (np.asarray(ratings, dtype=np.float64) for ratings in (first, second))
    if one.shape != other.shape or one.ndim != 1:
        raise ShapeError(f"ratings of shapes {one.shape} and {other.shape}; expected two of the same length")
    both = ~(np.isnan(one) | np.isnan(other))
    one, other = one[both], other[both]
    given = np.concatenate([one, other])
    scale = np.unique(given if values is None else np.asarray(values, dtype=np.float64))
    if not np.isin(given, scale).all():
        raise ShapeError(f"ratings {np.setdiff1d(given, scale).tolist()} are not on the scale {scale.tolist()}")
    table = np.zeros((len(scale), len(scale)))
    np.add.at(table, (np.searchsorted(scale, one), np.searchsorted(scale, other)), 1)
    return table


def cohen_kappa(table: ArrayLike, *, weights: Weights | None = None) -> Statistic:
    """Cohen's kappa of a confusion table (V, V), with its large-sample interval.

    kappa = (p_o - p_e) / (1 - p_e); weighted: a disagreement counts by |i - j| or (i - j)².
    Raises: ShapeError where the table is not square.
    Source: Fleiss, Cohen and Everitt 1969, doi 10.1037/h0028106.
    """
    counts = np.asarray(table, dtype=np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ShapeError(f"a table of shape {counts.shape}; expected as many rows as columns")
    n, unit = round(counts.sum()), "items that both rated"
    if n == 0:
        return Statistic(None, unit=unit, reason="no item was rated by both")
    joint = counts / counts.sum()
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)
    credit = _credit(len(counts), weights)
    expected = float(rows @ credit @ columns)
    if expected > 1 - 1e-12:
        return Statistic(None, n=n, unit=unit, reason="both gave one and the same value to all")
    kappa = (float((joint * credit).sum()) - expected) / (1 - expected)
    mean_credit = (credit @ columns)[:, None] + (rows @ credit)[None, :]
    spread = float((joint * (credit - mean_credit * (1 - kappa)) ** 2).sum()) - (kappa - expected * (1 - kappa)) ** 2
    deviation = math.sqrt(max(0.0, spread) / n) / (1 - expected)
    if deviation < 1e-12:
        return Statistic(kappa, n=n, unit=unit, reason="no interval: all ratings agree, or all differ")
    return Statistic(kappa, max(-1.0, kappa - Z * deviation), min(1.0, kappa + Z * deviation), n, unit)


def _credit(num_values: int, weights: Weights | None) -> Floats:
    """What (i, j) counts as agreement: 1 on the diagonal, 0 at the far corners."""
    if weights is None or num_values == 1:
        return np.eye(num_values)
    distance = np.abs(np.subtract.outer(np.arange(num_values), np.arange(num_values))) / (num_values - 1)
    return 1.0 - (distance if weights == "linear" else distance**2)


# ── many people ──────────────────────────────────────────────────────────────────────────────────────────────────────


def fleiss_kappa(ratings: ValueCounts) -> Statistic:
    """Fleiss' kappa, for items with equally many ratings; without an interval.

    Source: Fleiss 1971, doi 10.1037/h0031619.
    """
    counts, unit = ratings.counts, "items"
    if not len(counts):
        return Statistic(None, unit=unit, reason="there are no items")
    sizes = counts.sum(axis=1)
    num = float(sizes[0])
    if (sizes != num).any():
        reason = f"items have {sizes.min():.0f} to {sizes.max():.0f} ratings, and it needs equally many; use alpha"
        return Statistic(None, n=len(counts), unit=unit, reason=reason)
    if num < 2:
        return Statistic(None, n=len(counts), unit=unit, reason="no item has two ratings")
    observed = float((((counts**2).sum(axis=1) - num) / (num * (num - 1))).mean())
    expected = float(((counts.sum(axis=0) / counts.sum()) ** 2).sum())
    if expected > 1 - 1e-12:
        return Statistic(None, n=len(counts), unit=unit, reason="all ratings have one and the same value")
    return Statistic((observed - expected) / (1 - expected), n=len(counts), unit=unit, reason="no interval computed")


def krippendorff_alpha(
    ratings: ValueCounts,
    *,
    level: Level = "nominal",
    generator: np.random.Generator | None = None,
    num_resamples: int = NUM_RESAMPLES,
) -> Statistic:
    """Krippendorff's alpha, which stands missing ratings and any number of people; n is the ratings that can be paired.

    alpha = 1 - observed / expected disagreement. The interval, where a generator is given, is the percentile bootstrap
    over items.
    Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability".
    """
    counts = ratings.with_two_or_more()
    if not len(counts):
        return Statistic(None, reason="no item was rated by two people")
    n = round(counts.sum())
    if level == "ratio" and bool((ratings.values < 0).any()):
        return Statistic(None, n=n, reason="a ratio needs values that are not negative")
    patterns, times = np.unique(counts, axis=0, return_counts=True)
    observed, expected = _disagreement(patterns, times[None, :].astype(np.float64), ratings.values, level)
    if expected[0] <= 0:
        return Statistic(None, n=n, reason="all ratings have one and the same value")
    whole = Statistic(float(1 - observed[0] / expected[0]), n=n)
    if generator is None:
        return replace(whole, reason="no interval computed")
    if observed[0] == 0 or len(counts) == 1:
        reason = "one item only" if len(counts) == 1 else "all ratings agree, so no spread is seen"
        return replace(whole, reason=f"no interval: {reason}")
    samples = []
    for start in range(0, num_resamples, RESAMPLES_AT_ONCE):
        size = min(RESAMPLES_AT_ONCE, num_resamples - start)
        drawn = generator.multinomial(len(counts), times / len(counts), size=size).astype(np.float64)
        observed, expected = _disagreement(patterns, drawn, ratings.values, level)
        samples.append(1 - observed[expected > 0] / expected[expected > 0])
    low, high = np.quantile(np.concatenate(samples), [0.025, 0.975])
    return replace(whole, low=float(low), high=float(high))


def _disagreement(patterns: Floats, times: Floats, values: Floats, level: Level) -> tuple[Floats, Floats]:
    """(observed, expected) disagreement (B,), both times n, where `patterns` (P, V) occur `times` (B, P)."""
    sizes = patterns.sum(axis=1)
    totals = times @ patterns
    n = totals.sum(axis=1)
    if level in ("nominal", "ratio"):
        distance = _squared_distance(values, level)
        within = np.broadcast_to(((patterns @ distance) * patterns).sum(axis=1), times.shape)
        overall = ((totals @ distance) * totals).sum(axis=1)
    else:
        # The ordinal distance between two values is the difference of their mid-ranks, so it is an interval too.
        points = totals.cumsum(axis=1) - totals / 2 if level == "ordinal" else np.broadcast_to(values, totals.shape)
        points = points - (totals * points).sum(axis=1, keepdims=True) / n[:, None]
        sums, squares = points @ patterns.T, points**2 @ patterns.T
        within = np.maximum(0.0, 2 * (sizes * squares - sums**2))
        within[:, (patterns > 0).sum(axis=1) == 1] = 0.0
        overall = 2 * (n * (totals * points**2).sum(axis=1) - (totals * points).sum(axis=1) ** 2)
        overall[(totals > 0).sum(axis=1) == 1] = 0.0
    return (times * within / (sizes - 1)).sum(axis=1), overall / (n - 1)


def _squared_distance(values: Floats, level: Level) -> Floats:
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    difference, total = np.subtract.outer(values, values), np.add.outer(values, values)
    return np.divide(difference, total, out=np.zeros_like(difference), where=total != 0) ** 2


def gwet_ac1(ratings: ValueCounts) -> Statistic:
    """Gwet's AC1: agreement beyond chance, where chance does not grow with one value being frequent.

    p_e = sum(p (1 - p)) / (V - 1) over the V values of the scale; p is a value's mean share in an item's ratings.
    Without an interval; n is the items that two or more people rated.
    Source: Gwet 2008, doi 10.1348/000711006X126600.
    """
    several, unit = ratings.with_two_or_more(), "items with two or more ratings"
    if not len(several):
        return Statistic(None, unit=unit, reason="no item was rated by two people")
    num_values = len(ratings.values)
    if num_values < 2:
        return Statistic(None, n=len(several), unit=unit, reason="all ratings have one and the same value")
    sizes = several.sum(axis=1)
    observed = float(((several * (several - 1)).sum(axis=1) / (sizes * (sizes - 1))).mean())
    rated = ratings.counts[ratings.counts.sum(axis=1) > 0]
    shares = (rated / rated.sum(axis=1, keepdims=True)).mean(axis=0)
    expected = float((shares * (1 - shares)).sum()) / (num_values - 1)
    return Statistic((observed - expected) / (1 - expected), n=len(several), unit=unit, reason="no interval computed")


# ── the ceiling ──────────────────────────────────────────────────────────────────────────────────────────────────────


def annotator_accuracy(agreement: Statistic) -> Statistic:
    """How often one person is right, from how often two agree: q = (1 + sqrt(2 agreement - 1)) / 2.

    Two people agree where both are right or both wrong: agreement = q² + (1 - q)², if they err independently, equally
    often, and as often on any pair. Where some pairs are harder, q is too high, so it stays a ceiling for a model that
    is measured on single labels. Ties must be left out of the agreement.
    """
    if agreement.value is None:
        return agreement
    if agreement.value < 0.5:
        reason = f"people agree less often ({agreement.value:.1%}) than two coins"
        return Statistic(None, n=agreement.n, unit=agreement.unit, reason=reason)
    value, low, high = (
        None if end is None else (1 + math.sqrt(max(0.0, 2 * end - 1))) / 2
        for end in (agreement.value, agreement.low, agreement.high)
    )
    return replace(agreement, value=value, low=low, high=high)


def majority_of_three(accuracy: Statistic) -> Statistic:
    """How often the majority of three such people is right: q³ + 3 q² (1 - q)."""
    value, low, high = (
        None if q is None else q**3 + 3 * q**2 * (1 - q) for q in (accuracy.value, accuracy.low, accuracy.high)
    )
    return replace(accuracy, value=value, low=low, high=high)


def ceiling_of_majorities(accuracy: float, leads: Sequence[int]) -> float | None:
    """How often majorities that lead by so many votes are right, if each person is right with probability `accuracy`.

    A perfect model agrees with them as often. Of a majority that leads by d votes, by Bayes with both responses as
    likely at first: 1 / (1 + ((1 - q) / q)^d); over pairs the mean of it. Of single votes that is q; of three votes a
    pair it is q³ + 3 q² (1 - q) in the mean. None where nothing leads.
    """
    if not leads:
        return None
    odds = (1 - accuracy) / accuracy
    return math.fsum(1 / (1 + odds**lead) for lead in leads) / len(leads)


def accuracy_without_noise(measured: float, accuracy: float) -> float | None:
    """How often a model is truly right that agrees with a share `measured` of labels of that accuracy; None at 0.5.

    measured = t q + (1 - t) (1 - q), solved for t and kept between 0 and 1.
    """
    if accuracy <= 0.5:
        return None
    return min(1.0, max(0.0, (measured - (1 - accuracy)) / (2 * accuracy - 1)))
