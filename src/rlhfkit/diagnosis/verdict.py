"""The answer to "did it get better?", in words, from intervals alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rlhfkit.diagnosis.limits import (
    CHANCE,
    EOS_CAUTION_DROP,
    FEW_COMPARED,
    KL_CAUTION_TIMES_TARGET,
    LENGTH_CAUTION_FACTOR,
    PERPLEXITY_CAUTION_FACTOR,
    VARIETY_CAUTION_FACTOR,
)
from rlhfkit.rundir.contents import Facts, Row, curve, ends
from rlhfkit.rundir.lines import finite_or_none
from rlhfkit.rundir.results import ConstraintResults, Evaluation, Measure, RewardModelResults, TaskResults, WinRate
from rlhfkit.stats.intervals import is_clearly_lower, share_interval
from rlhfkit.wording import number, percent, score

__all__ = [
    "BASELINE_NAMES",
    "Verdict",
    "accuracy_interval",
    "cautions_of_reward_model",
    "is_at_chance",
    "judge_run",
    "name_at_start",
    "rival_of_reward_model",
]

BASELINE_NAMES = {
    "tfidf_logistic": "words alone (TF-IDF)",
    "shorter": "always the shorter one",
    "longer": "always the longer one",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether PPO made the responses better, why we think so, and what speaks against it."""

    tone: Literal["good", "unclear", "bad", "open"]
    headline: str
    reasons: str
    cautions: Sequence[str] = ()


def judge_run(facts: Facts) -> Verdict:
    """What the intervals allow to say, and nothing beyond.

    "Better" needs both win rates, each with its whole interval above one half: PPO was trained on the reward, so that
    the reward alone proves nothing. Where the right responses are known, what the field measures decides instead, with
    the interval of its difference above zero.
    """
    evaluation = facts.evaluation
    if evaluation is not None and evaluation.task is not None:
        return _judge_task(facts, evaluation, evaluation.task)
    if evaluation is None or evaluation.win_rate is None:
        return _judge_training(facts)
    reward, judge = evaluation.win_rate.reward, evaluation.win_rate.judge
    if evaluation.in_environment:
        return _judge_episodes(facts, evaluation, reward, judge)
    reasons = (
        f"On {evaluation.num_prompts} held-out prompts the {evaluation.reward_name}, which PPO was trained on, prefers "
        f"the response after PPO {_describe(reward)}.{_kept(facts)}"
    )
    if judge is None:
        reasons += " There was no independent judge."
    else:
        reasons += (
            f" The independent judge ({evaluation.judge_name}), which PPO never saw, prefers it {_describe(judge)}."
        )
    if any(win is not None and win.low <= CHANCE <= win.high for win in (reward, judge)):
        reasons += f" An interval that includes {percent(CHANCE)} may be chance; more prompts would narrow it."
    reasons += _kept_constraints(evaluation)
    tone, headline = _conclude(reward, judge)
    return Verdict(tone, headline, reasons, _cautions(facts, evaluation))


def _judge_episodes(facts: Facts, evaluation: Evaluation, reward: WinRate, judge: WinRate | None) -> Verdict:
    """The same for whole episodes; an environment that pays by itself is the truth, and needs no second opinion."""
    reasons = (
        f"On {evaluation.num_prompts} held-out episodes the policy after PPO earns a higher return "
        f"{_describe(reward)}; the same return counts half.{_kept(facts)}"
    )
    if judge is not None:
        reasons += (
            f" The independent judge ({evaluation.judge_name}), which PPO never saw, prefers it {_describe(judge)}."
        )
    reasons += _kept_constraints(evaluation)
    if not evaluation.reward_is_truth or judge is not None:
        tone, headline = _conclude(reward, judge)
    elif reward.low > CHANCE:
        tone, headline = "good", "PPO made the policy better."
    elif reward.high < CHANCE:
        tone, headline = "bad", "PPO made the policy worse."
    else:
        tone, headline = "unclear", "No clear change."
    return Verdict(tone, headline, reasons, _cautions(facts, evaluation))


def _conclude(reward: WinRate, judge: WinRate | None) -> tuple[Literal["good", "unclear", "bad"], str]:
    if reward.high < CHANCE:
        return "bad", "PPO made the responses worse, even by its own reward."
    if reward.low <= CHANCE:
        if judge is not None and judge.high < CHANCE:
            return "bad", "The reward did not clearly rise, and the judge prefers the old responses."
        return "unclear", "No clear change."
    if judge is None:
        return "unclear", "The reward rose; nobody independent has checked that this is better."
    if judge.high < CHANCE:
        return "bad", "The reward rose, but the judge prefers the old responses: a sign of reward hacking."
    if judge.low <= CHANCE:
        return "unclear", "The reward rose, but the judge sees no clear difference."
    return "good", "PPO made the responses better."


def _judge_task(facts: Facts, evaluation: Evaluation, task: TaskResults) -> Verdict:
    changes = "; ".join(map(_describe_measure, task.measures))
    reasons = f"On {task.num} held-out prompts, with the likeliest response to each: {changes}.{_kept(facts)}"
    first, judge = task.measures[0], evaluation.win_rate.judge if evaluation.win_rate else None
    if judge is not None:
        reasons += f" The judge ({evaluation.judge_name}) prefers the response after PPO {_describe(judge)}."
    reasons += _kept_constraints(evaluation)
    cautions = _cautions(facts, evaluation)
    low, high = first.difference.low, first.difference.high
    if high is not None and high < 0:
        return Verdict("bad", "PPO made the model worse at its task.", reasons, cautions)
    if low is None or low <= 0:
        return Verdict("unclear", f"No clear change of {first.name}.", reasons, cautions)
    if judge is not None and judge.high < CHANCE:
        return Verdict(
            "bad", f"{name_at_start(first.name)} rose, but the judge prefers the old responses.", reasons, cautions
        )
    return Verdict("good", "PPO made the model better at its task.", reasons, cautions)


def _describe_measure(measure: Measure) -> str:
    gain = measure.difference
    points, interval = measure.shown_difference(gain.mean), gain.words(measure.shown_difference)
    return (
        f"{measure.name} from {measure.shown(measure.sft.mean)} before PPO to {measure.shown(measure.policy.mean)} "
        f"after it, {points} points ({percent(0.95)} interval {interval})"
    )


def name_at_start(name: str) -> str:
    """`name` as the beginning of a sentence: "Accuracy", but "chrF"."""
    return name.capitalize() if name.islower() else name


def _kept(facts: Facts) -> str:
    """A sentence on the weights that PPO ended with, where it ran to its end and they need not be the last ones."""
    ppo = facts.finished.get("ppo", {})
    kept = None if ppo.get("stopped") else ppo.get("kept")
    return f" PPO has run to its end, and {kept}." if kept else ""


def _kept_constraints(evaluation: Evaluation) -> str:
    """A sentence for each constraint that holds, as far as its interval can tell; the others are cautions."""
    return "".join(
        f" {_describe_constraint(each, 'may hold' if each.beyond > 0 else 'holds')}"
        for each in evaluation.constraints
        if not each.is_broken
    )


def _describe_constraint(constraint: ConstraintResults, does: str) -> str:
    before, after = constraint.sft, constraint.policy
    return (
        f"The constraint {constraint.name} ({constraint.wanted} on average) {does}: {number(after.mean)} "
        f"({percent(0.95)} interval {after.words(number)}), {number(before.mean)} before PPO."
    )


def _describe(win: WinRate) -> str:
    return f"in {percent(win.rate)} of cases ({percent(0.95)} interval {percent(win.low)} to {percent(win.high)})"


def _judge_training(facts: Facts) -> Verdict:
    """What can be said before the evaluation."""
    _, scores = curve(facts.metrics.get("ppo", ()), "score/mean")
    if not scores:
        reasons = "PPO has not begun. Whether the responses get better is for the evaluation to say."
        return Verdict("open", "Too early to say.", reasons, list(cautions_of_reward_model(facts)))
    first, last = ends(scores)
    total = finite_or_none(facts.setting("ppo", "iterations"))
    reasons = (
        f"PPO has done {len(scores)}{f' of {number(total)}' if total else ''} iterations. The score of the responses "
        f"sampled in training went from {score(first)} to {score(last)} (means of the first and the last tenth). "
        "Whether that holds on unseen prompts, and in the eyes of an independent judge, is for the evaluation to "
        "say."
    )
    return Verdict("open", "Not evaluated yet.", reasons, list(cautions_of_reward_model(facts)))


def _cautions(facts: Facts, evaluation: Evaluation) -> list[str]:
    """An early end, side effects of PPO, and evidence that is weak."""
    stopped = facts.finished.get("ppo", {}).get("stopped")
    found = [f"PPO was stopped early: {stopped}."] if stopped else []
    before, after = evaluation.models.get("sft"), evaluation.models.get("policy")
    if before is not None and after is not None:
        # The best player says the same in every game.
        found += _side_effects(
            before.model_dump(),
            after.model_dump(),
            num=evaluation.num_prompts,
            wants_variety=not evaluation.reward_is_truth,
        )
    target = finite_or_none(facts.setting("ppo", "kl", "target"))
    if target and after is not None and after.ref_kl is not None and after.ref_kl > KL_CAUTION_TIMES_TARGET * target:
        found.append(f"The KL to the reference is {number(after.ref_kl)} nats, far above its target {number(target)}.")
    found += [_describe_constraint(each, "is broken") for each in evaluation.constraints if each.is_broken]
    if evaluation.num_prompts < FEW_COMPARED:
        what = "episodes" if evaluation.in_environment else "prompts"
        found.append(f"Only {evaluation.num_prompts} {what} were compared: small differences cannot show.")
    return [*found, *cautions_of_reward_model(facts)]


def _side_effects(before: Row, after: Row, *, num: int, wants_variety: bool) -> Iterator[str]:
    def both(key: str) -> tuple[float, float] | None:
        old, new = finite_or_none(before.get(key)), finite_or_none(after.get(key))
        return None if old is None or new is None or old <= 0 else (old, new)

    eos = both("eos_rate")
    if eos and eos[1] < eos[0] - EOS_CAUTION_DROP and is_clearly_lower(eos[1], eos[0], num):
        yield f"Fewer responses end by themselves: the EOS rate fell from {percent(eos[0])} to {percent(eos[1])}."
    if length := both("response_tokens"):
        change = f"from {number(length[0])} to {number(length[1])} tokens on average"
        if length[1] > LENGTH_CAUTION_FACTOR * length[0]:
            yield f"Responses grew {change}; see that the reward does not simply pay for length."
        elif length[1] < length[0] / LENGTH_CAUTION_FACTOR:
            yield f"Responses shrank {change}; see that the reward does not simply pay for brevity."
    if wants_variety and (variety := both("distinct_2")) and variety[1] < VARIETY_CAUTION_FACTOR * variety[0]:
        yield (
            f"Responses repeat each other more: distinct-2 fell from {number(variety[0])} to {number(variety[1])}. "
            "Look for a phrase that is everywhere."
        )
    if (fluency := both("perplexity")) and fluency[1] > PERPLEXITY_CAUTION_FACTOR * fluency[0]:
        yield (
            f"The language became less usual: perplexity rose from {number(fluency[0])} to {number(fluency[1])}. "
            "Read some samples to see whether it is still good language."
        )


def cautions_of_reward_model(facts: Facts) -> Iterator[str]:
    """What speaks against trusting the reward model."""
    results = facts.reward_model
    if results is None:
        return
    right = f"right on {percent(results.accuracy)} of {results.num_pairs} pairs"
    rival = rival_of_reward_model(results)
    if rival == ("a coin", CHANCE):
        yield f"The reward model is not clearly better than a coin: {right}."
    elif rival:
        yield (
            f"The reward model is not clearly better than a simple rule: {right}; {rival[0]} gets {percent(rival[1])}."
        )


def accuracy_interval(results: RewardModelResults) -> tuple[float, float]:
    """The 95 % interval of the accuracy, from the number of pairs where the report has none."""
    if results.accuracy_low is not None and results.accuracy_high is not None:
        return results.accuracy_low, results.accuracy_high
    num = max(1, results.num_pairs)
    low, high = share_interval([results.accuracy] * num, [1] * num)
    return low if results.accuracy_low is None else results.accuracy_low, high


def is_at_chance(results: RewardModelResults) -> bool:
    """Whether a coin may be as good, as far as the held-out pairs can tell."""
    return accuracy_interval(results)[0] <= CHANCE


def rival_of_reward_model(results: RewardModelResults) -> tuple[str, float] | None:
    """What the reward model is not clearly better than, and how often that is right; None where it is."""
    if is_at_chance(results):
        return "a coin", CHANCE
    low, _ = accuracy_interval(results)
    rule, best = max(results.baselines.items(), key=lambda item: item[1], default=("", 0.0))
    return (BASELINE_NAMES.get(rule, rule), best) if low <= best else None
