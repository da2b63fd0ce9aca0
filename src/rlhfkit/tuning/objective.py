"""What a trial is worth: its best held-out score within a KL budget, as long as the guards hold. Pure functions."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlhfkit.config.tune import TuneConfig
from rlhfkit.rundir.study import Point

__all__ = ["broken", "guards", "points_of", "points_of_control", "score_within", "start_and_best"]

Row = Mapping[str, Any]

RECENT_SHARE = 0.1
"""A control task's score after an iteration is the mean return over this share of all iterations, the newest ones."""


def points_of(rows: Iterable[Row], metric: str) -> list[Point]:
    """The evaluations on the way in the rows of a run's log; `metric` is "judge" or "score"."""
    return [
        Point(
            iteration=row["iteration"],
            score=row[f"evaluation/{metric}"],
            score_error=row.get(f"evaluation/{metric}_error"),
            kl=row["evaluation/ref_kl"],
        )
        for row in rows
        if f"evaluation/{metric}" in row
    ]


def points_of_control(rows: Sequence[Row], iterations: int) -> list[Point]:
    """The mean return of the newest episodes after each iteration of a control task, once there are enough.

    Iterations in which no episode ended are passed over.
    """
    num = max(1, math.ceil(RECENT_SHARE * iterations))
    seen = [(row["iteration"], row["episode_return/mean"]) for row in rows if "episode_return/mean" in row]
    points = []
    for at in range(num - 1, len(seen)):
        returns = [value for _, value in seen[at + 1 - num : at + 1]]
        points.append(Point(iteration=seen[at][0] + 1, score=math.fsum(returns) / num))
    return points


def score_within(points: Iterable[Point], kl: float | None, *, until: int | None = None) -> Point | None:
    """The point of the highest score among those that are no further than `kl` from the reference: S(B).

    S(B) = max of score_t over the evaluations t with KL_t <= B, up to iteration `until`. It never falls while a run
    goes on, and what lies beyond the budget counts nothing, so a run that trades KL for reward cannot crowd out others.
    Without a budget (a control task) it is the last point: the return after a number of steps.
    Source: Gao et al. 2022, arXiv 2210.10760, for why a score means nothing without its distance.
    """
    seen = [point for point in points if until is None or point.iteration <= until]
    if kl is None:
        return seen[-1] if seen else None
    within = [point for point in seen if point.kl is not None and point.kl <= kl and math.isfinite(point.score)]
    return max(within, key=lambda point: point.score, default=None)


def start_and_best(rows: Iterable[Row], best: Point | None) -> tuple[Row, Row] | None:
    """The rows of the first evaluation and of the best; None where there are none."""
    evaluated = {row["iteration"]: row for row in rows if "evaluation/ref_kl" in row}
    if best is None or best.iteration not in evaluated:
        return None
    return evaluated[min(evaluated)], evaluated[best.iteration]


def guards(start: Row, best: Row, limits: TuneConfig) -> dict[str, float]:
    """Guard → value / limit - 1: above 0 it is broken, and all are of one scale.

    They compare the responses at the best point with those of the weights that PPO began with: a score that was bought
    with broken text is no score.
    """
    length = _ratio(best, start, "response_tokens")
    found = {
        "length": max(length, 1 / length if length else math.inf) / limits.max_length_ratio - 1,
        "distinct": (1 - _ratio(best, start, "distinct_2")) / limits.max_distinct_loss - 1,
        "eos": (start["evaluation/eos_rate"] - best["evaluation/eos_rate"]) / limits.max_eos_loss - 1,
    }
    if "evaluation/ref_perplexity" in best:
        found["perplexity"] = _ratio(best, start, "ref_perplexity") / limits.max_perplexity_ratio - 1
    return {name: min(value, 1e6) for name, value in found.items()}


def broken(violations: Mapping[str, float]) -> float:
    """The sum of what is broken; 0 where every guard holds."""
    return math.fsum(max(0.0, value) for value in violations.values())


def _ratio(best: Row, start: Row, name: str) -> float:
    """How many times what it was; 1 where both are 0."""
    after, before = best[f"evaluation/{name}"], start[f"evaluation/{name}"]
    return after / before if before else (1.0 if not after else math.inf)
