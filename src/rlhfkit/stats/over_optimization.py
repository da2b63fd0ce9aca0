"""How far a policy may go from its reference before the true score falls, although the reward goes on to rise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["OverOptimization", "fit_over_optimization"]

Floats = NDArray[np.float64]

FEWEST_POINTS = 6
"""Points at a distance of 1 and more below which two parameters and how well they fit say next to nothing."""
LEAST_R_SQUARED = 0.5
MOST_WIDE = 2.5
"""Upper end of the interval, in the lower one, above which it says too little."""
MOST_BEYOND = 1.25
"""How far beyond the furthest point the best distance may be, in that: further out nothing was seen."""
DRAWS = 2000


@dataclass(frozen=True, slots=True)
class OverOptimization:
    """A fit of R(d) = d (alpha - beta ln d), the gain of the true score at a distance d from the reference."""

    alpha: float
    beta: float
    start: float
    """The true score at d = 0, which gains are counted from."""
    best_distance: float
    """d* = exp(alpha / beta - 1), where R is highest; in the root of nats."""
    low: float
    """Lower end of its 95 % interval."""
    high: float
    """Upper end."""
    r_squared: float
    """Share of the gains' variance that the curve explains."""
    num_points: int

    @property
    def best_kl(self) -> float:
        """d*² in nats."""
        return self.best_distance**2

    def gold(self, distance: float) -> float:
        """The true score that the curve expects at a distance."""
        log = math.log(distance) if distance > 0 else 0.0
        return self.start + distance * (self.alpha - self.beta * log)


def fit_over_optimization(kl: Sequence[float], gold: ArrayLike, *, seed: int = 0) -> OverOptimization | None:
    """Where the true score is highest, of points (KL, gold) in the order of a training; None where they do not say it.

    R(d) = d (alpha - beta ln d), d = sqrt(KL), by least squares over the points with d >= 1; gains are counted from
    the first point, which must be the reference itself. `kl` (N,) in nats summed per sequence; `gold` (N,) means, or
    (N, P) of P prompts, the same ones at each point. The interval is of percentiles over 2,000 resamples of the
    points, and of the prompts where they are given.

    None where fewer than 6 points are that far away, where the curve has no maximum or has it far beyond the last
    point, where it explains less than half of the gains' variance, or where the interval's upper end is more than 2.5
    times its lower one.
    Source: Gao, Schulman, Hilton 2023, arXiv 2210.10760, equation 1.
    """
    by_prompt = np.asarray(gold, dtype=np.float64).reshape(len(kl), -1)
    distances = np.sqrt(np.maximum(np.asarray(kl, dtype=np.float64), 0.0))
    far = np.flatnonzero(distances >= 1.0)
    if len(far) < FEWEST_POINTS or distances[0] >= 1.0:
        return None
    distances = distances[far]
    means = by_prompt.mean(1)
    gains = means[far] - means[0]
    alpha, beta = (float(value) for value in _least_squares(distances[None], gains[None])[:, 0])
    spread = float(((gains - gains.mean()) ** 2).sum())
    if not beta > 0 or spread == 0:  # NaN where all points are at one distance
        return None
    best = math.exp(min(alpha / beta - 1, 50.0))
    errors = gains - distances * (alpha - beta * np.log(distances))
    r_squared = 1 - float((errors**2).sum()) / spread
    if best > MOST_BEYOND * float(distances.max()) or r_squared < LEAST_R_SQUARED:
        return None
    found = _resampled(distances, by_prompt[far] - by_prompt[:1], np.random.default_rng(seed))
    low, high = np.quantile(found, [0.025, 0.975], method="nearest")  # which does not compute with infinities
    if high > MOST_WIDE * low:
        return None
    return OverOptimization(alpha, beta, float(means[0]), best, float(low), float(high), r_squared, len(far))


def _least_squares(distances: Floats, gains: Floats) -> Floats:
    """(2, S) alpha and beta of each of S samples of points (S, N), by the normal equations of both columns.

    Where all points of a sample are at one distance they are NaN.
    """
    first, second = distances, -distances * np.log(distances)
    a, b, c = (first * first).sum(1), (first * second).sum(1), (second * second).sum(1)
    p, q = (first * gains).sum(1), (second * gains).sum(1)
    determinant = a * c - b * b
    is_solvable = determinant > 1e-9 * a * c
    with np.errstate(divide="ignore", invalid="ignore"):
        solved = np.stack([(c * p - b * q) / determinant, (a * q - b * p) / determinant])
    return np.where(is_solvable, solved, np.nan)


def _resampled(distances: Floats, gains: Floats, generator: np.random.Generator) -> Floats:
    """(DRAWS,) best distances of resamples of points and prompts; infinity where one has no maximum."""
    num, num_prompts = gains.shape
    points = generator.integers(num, size=(DRAWS, num))
    # Counts of each prompt in a resample, as weights of the mean over prompts.
    weights = generator.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=DRAWS) / num_prompts
    means = (gains @ weights.T).T  # (DRAWS, N)
    alpha, beta = _least_squares(distances[points], np.take_along_axis(means, points, axis=1))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        best = np.exp(np.minimum(alpha / beta - 1, 50.0))
    return np.where(beta > 0, best, np.inf)
