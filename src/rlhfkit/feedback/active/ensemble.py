"""A small ensemble of linear reward models, and what it is unsure of."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr, expit  # type: ignore[import-untyped]

from rlhfkit.feedback.active.labelled import Floats

__all__ = [
    "NUM_HEADS",
    "PRIOR_SCALE",
    "Ensemble",
    "bald",
    "d_optimal_gain",
    "fit_ensemble",
    "greedy_d_optimal",
    "variance",
]

NUM_HEADS = 5


PRIOR_SCALE = 2.0
"""Deviation of the log-odds of a typical pair before anything is labelled."""


NEWTON_STEPS = 50


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Bradley-Terry heads that were fitted to different draws of the same labels."""

    weights: Floats
    """(heads, d)."""

    def probabilities(self, differences: ArrayLike) -> Floats:
        """Probability (heads, N) that a is better."""
        probabilities: Floats = expit(self.weights @ np.asarray(differences, dtype=np.float64).T)
        return probabilities


def variance(probabilities: ArrayLike) -> Floats:
    """Variance (N,) over the heads of their probabilities (heads, N).

    Source: Christiano et al. 2017, arXiv 1706.03741.
    """
    result: Floats = np.asarray(probabilities, dtype=np.float64).var(axis=0)
    return result


def bald(probabilities: ArrayLike) -> Floats:
    """What a label would tell about the heads, in nats (N,): H(mean p) - mean H(p), H the entropy of a coin.

    Source: Houlsby et al. 2011, arXiv 1112.5745.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    result: Floats = np.maximum(0.0, _entropy(p.mean(axis=0)) - _entropy(p).mean(axis=0))
    return result


def d_optimal_gain(differences: ArrayLike, probabilities: ArrayLike, inverse: ArrayLike) -> Floats:
    """Growth of log det V (N,) by each pair: log(1 + p (1 - p) dᵀ V⁻¹ d), for d (N, d), p (N,) and V⁻¹ (d, d).

    Source: Shen et al. 2025, arXiv 2502.04354.
    """
    d, p = np.asarray(differences, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    result: Floats = np.log1p(p * (1 - p) * ((d @ np.asarray(inverse, dtype=np.float64)) * d).sum(axis=1))
    return result


def greedy_d_optimal(
    differences: ArrayLike,
    probabilities: ArrayLike,
    inverse: ArrayLike,
    *,
    num: int,
    prompts: Sequence[Hashable],
    used: Counter[Hashable] | None = None,
) -> list[int]:
    """Indices of up to `num` pairs, each with the largest `d_optimal_gain` once the ones before are counted in.

    Only pairs of the prompts that were used least are looked at, so no prompt comes twice before all came once.
    """
    d, p = np.asarray(differences, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    inverse = np.array(inverse, dtype=np.float64)
    used = Counter() if used is None else Counter(used)
    times = np.array([used[prompt] for prompt in prompts], dtype=np.float64)
    spread, curvature = ((d @ inverse) * d).sum(axis=1), p * (1 - p)
    chosen: list[int] = []
    for _ in range(min(num, len(d))):
        best = int(np.where(times == times.min(), curvature * spread, -1.0).argmax())
        chosen.append(best)
        # Sherman and Morrison: V grows by the pair's own term, and its inverse by one of rank 1.
        direction = inverse @ d[best]
        shrink = curvature[best] / (1 + curvature[best] * spread[best])
        inverse -= shrink * np.outer(direction, direction)
        spread = np.maximum(0.0, spread - shrink * (d @ direction) ** 2)
        times[[number for number, prompt in enumerate(prompts) if prompt == prompts[best]]] += 1
        times[best] = math.inf
    return chosen


def fit_ensemble(
    differences: ArrayLike,
    labels: ArrayLike,
    *,
    generator: np.random.Generator,
    num_heads: int = NUM_HEADS,
    prior_scale: float = PRIOR_SCALE,
) -> Ensemble:
    """Heads that minimise cross-entropy + |w - w0|² / (2 prior_scale²), each on labels of its own and with its own w0.

    A head's labels are drawn with replacement and its w0 from the prior: without both the heads would all be the same.
    Source: Osband et al. 2018, arXiv 1806.03335; Gleave and Irving 2022, arXiv 2203.07472, for what goes wrong.
    """
    x, y = np.asarray(differences, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    weights = []
    for _ in range(num_heads):
        times = np.bincount(generator.integers(len(y), size=len(y)), minlength=len(y)) if len(y) else np.zeros(0)
        start = np.asarray(generator.normal(scale=prior_scale, size=x.shape[1]))
        weights.append(_fit_head(x, y, times.astype(np.float64), start, precision=prior_scale**-2))
    return Ensemble(np.array(weights))


def _fit_head(x: Floats, y: Floats, times: Floats, start: Floats, *, precision: float) -> Floats:
    """Minimum of sum(times * cross-entropy) + precision / 2 * |w - start|², by Newton's method with step halving."""

    def loss(w: Floats) -> float:
        logits = x @ w
        return float((times * (np.logaddexp(0, logits) - y * logits)).sum() + precision / 2 * ((w - start) ** 2).sum())

    w = np.zeros_like(start)
    now = loss(w)
    for _ in range(NEWTON_STEPS):
        p = expit(x @ w)
        gradient = x.T @ (times * (p - y)) + precision * (w - start)
        hessian = (x.T * (times * p * (1 - p))) @ x + precision * np.eye(len(w))
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while (then := loss(w - size * step)) > now and size > 1e-6:
            size /= 2
        if now - then < 1e-9 * (1 + abs(now)):
            break
        w, now = w - size * step, then
    return w


def _entropy(p: Floats) -> Floats:
    """Entropy in nats of coins with probability p."""
    result: Floats = entr(p) + entr(1 - p)
    return result
