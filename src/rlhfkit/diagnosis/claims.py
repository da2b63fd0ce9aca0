"""What went right in a run: claims in numbers, each only where its interval and the shared limits allow it."""

import math
from collections.abc import Iterator, Sequence
from statistics import median, variance

from rlhfkit.diagnosis.curves import WINDOW
from rlhfkit.diagnosis.limits import (
    CHANCE,
    EOS_CAUTION_DROP,
    KL_CAUTION_TIMES_TARGET,
    MOST_END,
    USUAL_APPROX_KL,
    USUAL_CLIP_FRACTION,
)
from rlhfkit.diagnosis.trends import clip_silences_tokens
from rlhfkit.diagnosis.verdict import Verdict, accuracy_interval, rival_of_reward_model
from rlhfkit.rundir.contents import Facts, Row, curve, ends
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.lines import finite_or_none
from rlhfkit.rundir.results import ControlEvaluation, read_results
from rlhfkit.stats.intervals import Z
from rlhfkit.wording import number, percent

__all__ = ["right_of", "rise_of_returns", "rise_of_scores", "unusual_in"]

FEWEST_ENDS = 3
"""Iterations at either end from which a deviation is estimated."""


def right_of(facts: Facts, run: RunDir, *, wrong: set[str], verdict: Verdict | None) -> Iterator[str]:
    """What is well, in numbers, where no problem and no verdict says otherwise."""
    results = facts.reward_model
    if results is not None and rival_of_reward_model(results) is None:
        best = max(results.baselines.values(), default=CHANCE)
        low, high = accuracy_interval(results)
        yield (
            f"The reward model is right on {percent(results.accuracy)} of {results.num_pairs} held-out pairs "
            f"({percent(0.95)} interval {percent(low)} to {percent(high)}), simple rules on at most {percent(best)}."
        )
    rows = facts.metrics.get("ppo", ())
    if rows:
        yield from _in_ppo(facts, rows, wrong, verdict)
    if facts.metrics.get("control"):
        yield from _in_control(facts, run, wrong)


def rise_of_scores(rows: Sequence[Row], *, num_prompts: float) -> tuple[float, float, float, float] | None:
    """(mean of the first tenth, of the last, low and high end of the difference's interval) of a training's scores.

    Responses to one prompt are no independent samples, so that a mean stands on `num_prompts` an iteration:
    error² = mean variance of the scores / (prompts · iterations), of either end. None where it is unknown.
    """
    means, deviations = curve(rows, "score/mean")[1], curve(rows, "score/std")[1]
    if len(means) < 2 or len(deviations) != len(means):
        return None
    tenth = max(1, len(means) // 10)
    variance = sum(sum(value**2 for value in part) / tenth for part in (deviations[:tenth], deviations[-tenth:]))
    first, last = ends(means)
    error = Z * math.sqrt(variance / (max(1.0, num_prompts) * tenth))
    return first, last, last - first - error, last - first + error


def rise_of_returns(values: Sequence[float]) -> tuple[float, float, float, float] | None:
    """The same of an environment's returns, whose deviation comes from the iterations at either end."""
    tenth = max(FEWEST_ENDS, len(values) // 10)
    if len(values) < 2 * tenth:
        return None
    first, last = values[:tenth], values[-tenth:]
    means = [sum(part) / tenth for part in (first, last)]
    variances = [variance(part) for part in (first, last)]
    error = Z * math.sqrt(sum(variances) / tenth)
    return means[0], means[1], means[1] - means[0] - error, means[1] - means[0] + error


def _prompts_of_iteration(facts: Facts, rows: Sequence[Row]) -> float:
    episodes = finite_or_none(facts.setting("ppo", "rollout_episodes")) or 1.0
    drawn = episodes / (finite_or_none(facts.setting("ppo", "group_size")) or 1.0)
    distinct = finite_or_none(rows[-1].get("rollout/num_distinct_prompts"))
    return drawn if distinct is None else min(drawn, distinct)


def _may_claim_rise(facts: Facts, verdict: Verdict | None) -> bool:
    """Whether the evaluation, where there is one, saw it on held-out prompts too."""
    wins = facts.evaluation.win_rate if facts.evaluation else None
    if wins is not None and wins.reward.low <= CHANCE:
        return False
    return verdict is None or verdict.tone != "bad"


def _in_ppo(facts: Facts, rows: Sequence[Row], wrong: set[str], verdict: Verdict | None) -> Iterator[str]:
    def both(key: str, *rules: str) -> tuple[float, float] | None:
        _, values = curve(rows, key)
        return None if len(values) < 2 or wrong & set(rules) else ends(values)

    rise = rise_of_scores(rows, num_prompts=_prompts_of_iteration(facts, rows))
    claims_rise = not wrong & {"reward_flat", "reward_falling", "reward_hacking", "made_worse", "reward_saturated"}
    if claims_rise and rise is not None and rise[2] > 0 and _may_claim_rise(facts, verdict):
        yield (
            f"The score of sampled responses rose from {number(rise[0])} to {number(rise[1])} ({percent(0.95)} "
            f"interval of the difference {number(rise[2])} to {number(rise[3])})."
        )
    target = finite_or_none(facts.setting("ppo", "kl", "target"))
    kl = both("ref_kl/sequence", "kl_exploding", "kl_negative", "kl_over_limit", "kl_weightless", "nothing_moves")
    if kl and (target is None or kl[1] <= KL_CAUTION_TIMES_TARGET * target):
        aim = "" if target is None else f" (target {number(target)})"
        yield f"The KL to the reference is {number(kl[1])} nats per sequence{aim}."
    explained = both("ppo/explained_variance", "critic_useless", "value_loss_growing")
    if explained and explained[1] > 0:  # it is 0 where there is no critic
        yield f"The critic foresees {percent(explained[1])} of the differences between returns."
    if both("ppo/clip_fraction", "clip_fraction_high", "approx_kl_high", "nothing_moves", "zero_advantages"):
        highest = max(curve(rows, "ppo/clip_fraction")[1])
        if 0 < highest <= USUAL_CLIP_FRACTION[1]:
            yield f"Updates are of a good size: PPO clipped at most {percent(highest)} of the tokens in an iteration."
    if (eos := both("eos_rate", "eos_lost")) and eos[1] > MOST_END and eos[1] >= eos[0] - EOS_CAUTION_DROP:
        yield f"{percent(eos[1])} of the responses end by themselves."
    if entropy := both("ppo/entropy", "entropy_collapse", "entropy_rising"):
        yield f"The entropy is {number(entropy[1])} nats per token, {number(entropy[0])} at the start."


def unusual_in(facts: Facts, wrong: set[str]) -> Iterator[str]:
    """What is outside of the usual range, and not so far that a rule would call it wrong."""
    rows = facts.metrics.get("ppo", ())
    low, high = USUAL_CLIP_FRACTION
    for key, limit, usual, rules in (
        ("ppo/clip_fraction", high, f"{low:g} to {high:g}", {"clip_fraction_high", "approx_kl_high"}),
        ("ppo/approx_kl", USUAL_APPROX_KL, f"at most {USUAL_APPROX_KL:g}", {"clip_fraction_high", "approx_kl_high"}),
    ):
        if key == "ppo/clip_fraction" and not clip_silences_tokens(facts.config.get("ppo") or {}):
            continue
        values = curve(rows, key)[1][-WINDOW:]
        if values and not wrong & rules and median(values) > limit:
            yield f"{key} is {number(median(values))} of late; {usual} is usual."


def _in_control(facts: Facts, run: RunDir, wrong: set[str]) -> Iterator[str]:
    by_seed: dict[float, list[Row]] = {}
    for row in facts.metrics["control"]:
        by_seed.setdefault(finite_or_none(row.get("seed")) or 0.0, []).append(row)
    rises = {seed: rise_of_returns(curve(rows, "episode_return/mean")[1]) for seed, rows in by_seed.items()}
    clear = {seed: rise for seed, rise in rises.items() if rise is not None and rise[2] > 0}
    if clear and not wrong & {"reward_flat", "reward_falling"}:
        words = "; ".join(
            f"seed {number(seed)} from {number(first)} to {number(last)}" for seed, (first, last, _, _) in clear.items()
        )
        yield f"The return rose while it trained: {words}."
    evaluation = read_results(run.evaluation, ControlEvaluation)
    if evaluation is not None and evaluation.seeds:
        words = ", ".join(number(result.episode_return.mean) for result in evaluation.seeds)
        yield f"Mean return of each seed in episodes that training never saw: {words}."
