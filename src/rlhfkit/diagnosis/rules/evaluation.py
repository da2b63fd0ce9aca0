"""What evaluation on the way shows: the judge's score falls, or the policy is past the distance at which it is best."""

import math
from functools import lru_cache

from rlhfkit.diagnosis.curves import Curves
from rlhfkit.diagnosis.finding import Evidence, Remedy, Rule, Settings
from rlhfkit.diagnosis.limits import FALLEN_ERRORS, FALLEN_EVALUATIONS
from rlhfkit.diagnosis.trends import kl_remedies, shown
from rlhfkit.stats.over_optimization import OverOptimization, fit_over_optimization

__all__ = ["JUDGE_FALLING", "OVER_OPTIMIZED"]

JUDGE, ERROR, KL = "evaluation/judge", "evaluation/judge_error", "evaluation/ref_kl"
GAO = "Gao, Schulman, Hilton 2023, arXiv 2210.10760"

_fitted = lru_cache(maxsize=8)(fit_over_optimization)  # asked after each iteration, of which few are evaluated


def _fit(curves: Curves) -> OverOptimization | None:
    kl, judge = curves[KL], curves[JUDGE]
    return _fitted(tuple(kl.values), tuple(judge.values)) if kl.iterations == judge.iterations and kl else None


def _over_optimized(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    kl, fit = curves[KL], _fit(curves)
    last = kl.values[-FALLEN_EVALUATIONS:]
    if fit is None or min(last) <= fit.high**2:
        return ()
    words = (
        f"is {shown(last[-1])}, and the judge's score is best at {shown(fit.best_kl)} "
        f"(95 % interval {shown(fit.low**2)} to {shown(fit.high**2)})"
    )
    numbers = {"recent": last[-1], "best": fit.best_kl, "low": fit.low**2, "high": fit.high**2}
    return (Evidence(KL, kl.last_iterations(FALLEN_EVALUATIONS), words, numbers), _since_best(curves))


def _since_best(curves: Curves) -> Evidence:
    """The judge's score at its best, and now."""
    judge = curves[JUDGE]
    best = max(judge.values)
    at = judge.iterations[judge.values.index(best)]
    words = f"was {shown(best)} in iteration {at}, is {shown(judge.values[-1])}"
    return Evidence(JUDGE, (at, judge.iterations[-1]), words, {"best": best, "recent": judge.values[-1]})


def _judge_falling(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    judge, errors = curves[JUDGE].values, curves[ERROR].values
    if len(judge) <= FALLEN_EVALUATIONS or len(errors) != len(judge):
        return ()
    earlier = judge[:-FALLEN_EVALUATIONS]
    best = max(earlier)
    error = errors[earlier.index(best)]
    late = zip(judge[-FALLEN_EVALUATIONS:], errors[-FALLEN_EVALUATIONS:], strict=True)
    has_fallen = all(best - value > FALLEN_ERRORS * math.hypot(error, own) for value, own in late)
    return (_since_best(curves),) if has_fallen else ()


def _nearer(curves: Curves, ppo: Settings) -> tuple[Remedy, ...]:
    fit, limit = _fit(curves), ppo.get("max_ref_kl")
    stop: tuple[Remedy, ...] = ()
    if fit is not None:
        now = None if limit is None else shown(limit)
        note = "PPO then ends there, with the best weights within it"
        stop = (Remedy("ppo.max_ref_kl", shown(fit.best_kl), now, note=note),)
    return *stop, *kl_remedies(curves, ppo)


ADVICE = (
    "train the reward model on more pairs, or on pairs of what the policy says now (rounds)",
    "have several reward models agree, or let PPO end where the judge's score was best",
)
# Neither follows from another rule: who lets one of them act means what is measured, whatever its cause.
OVER_OPTIMIZED = Rule(
    "over_optimized",
    "The policy is past the distance at which it is best",
    "The reward stands for what is wanted only near the reference. Further away the policy finds what it overrates: "
    "the reward goes on to rise, and what an independent judge says falls.",
    f"{GAO}, whose curve R(d) = d (α − β ln d), d = √KL, is fitted here",
    f"`evaluation/ref_kl` above the whole interval of the best distance in {FALLEN_EVALUATIONS} evaluations in a row",
    _over_optimized,
    _nearer,
    advice=ADVICE,
)
JUDGE_FALLING = Rule(
    "judge_falling",
    "The judge's score falls",
    "On held-out prompts an independent judge finds the policy worse than it was.",
    f"{GAO}, figure 1",
    f"`evaluation/judge` more than {FALLEN_ERRORS:g} standard errors below its best in {FALLEN_EVALUATIONS} "
    "evaluations in a row",
    _judge_falling,
    _nearer,
    advice=ADVICE,
)
