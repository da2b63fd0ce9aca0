"""What is wrong by what the stages and the evaluation measured, beside the rules over curves.

The verdict's cautions and these findings ask the same questions with the same limits.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from rlhfkit.config.stages import section_of
from rlhfkit.diagnosis import Curves, Evidence, Finding, Remedy
from rlhfkit.diagnosis.limits import CHANCE, FEW_PAIRS, MANY_CUT
from rlhfkit.diagnosis.rules import length
from rlhfkit.diagnosis.trends import kl_remedies, shown
from rlhfkit.diagnosis.verdict import accuracy_interval, is_at_chance, judge_run
from rlhfkit.rundir.contents import Facts
from rlhfkit.rundir.lines import finite_or_none
from rlhfkit.rundir.results import ModelResults, RewardModelResults
from rlhfkit.stats.intervals import is_clearly_lower
from rlhfkit.wording import number, percent

__all__ = ["findings_of", "settings_of"]


def findings_of(stage: str, facts: Facts) -> Iterator[Finding]:
    """Findings of a stage's results."""
    if stage == "sft":
        yield from _demonstrations_cut(facts)
    elif stage == "reward_model":
        yield from _reward_model_at_chance(facts)
    elif stage == "ppo":
        yield from _reward_hacking(facts)
        yield from _made_worse(facts)
        yield from _side_effects(facts)


def settings_of(stage: str, facts: Facts) -> dict[str, Any]:
    """The section that a stage's rules read, and the whole recipe beside it."""
    name = section_of(stage)
    section = facts.setting(name)
    settings = dict(section) if isinstance(section, Mapping) else {}
    if name != "ppo":
        settings["name"] = name
    return {**settings, "recipe": facts.config}


def _demonstrations_cut(facts: Facts) -> Iterator[Finding]:
    record = facts.finished.get("sft", {})
    num, cut = finite_or_none(record.get("num_demonstrations")), finite_or_none(record.get("num_without_end"))
    if not num or not cut or cut < MANY_CUT * num:
        return
    limit = finite_or_none(facts.setting("sft", "max_tokens"))
    longer = () if limit is None else (_raised("sft.max_tokens", limit, note="more than the longest demonstration"),)
    yield Finding(
        "demonstrations_cut",
        "Most demonstrations lose their end",
        (
            Evidence(
                "num_without_end", None, f"is {number(cut)} of {number(num)} demonstrations", {"cut": cut, "of": num}
            ),
        ),
        "A demonstration that is cut at its end loses EOS, so the model never learns where to stop.",
        longer,
        "huggingface/trl#3750; Huang et al. 2023, The N Implementation Details of RLHF with PPO",
    )


def _raised(setting: str, now: float, *, factor: float = 2, note: str = "") -> Remedy:
    to, before = (str(int(value)) if now.is_integer() else shown(value) for value in (factor * now, now))
    return Remedy(setting, to, before, note=note)


def _reward_model_at_chance(facts: Facts) -> Iterator[Finding]:
    """Of a simple rule that is as good the verdict says a word: where the task is simple, it may be all there is."""
    results = facts.reward_model
    if results is None or not is_at_chance(results):
        return
    low, high = accuracy_interval(results)
    words = (
        f"is {percent(results.accuracy)} of {results.num_pairs} held-out pairs ({percent(0.95)} interval "
        f"{percent(low)} to {percent(high)}); a coin has {percent(CHANCE)}"
    )
    numbers = {"accuracy": results.accuracy, "low": low, "high": high, "num_pairs": float(results.num_pairs)}
    yield Finding(
        "reward_model_at_chance",
        "The reward model is not clearly better than a coin",
        (Evidence("accuracy", None, words, numbers),),
        "PPO maximises what the reward model says, so that it can only learn what the reward model knows.",
        tuple(_better_reward_model(facts, results)),
        "Gao et al. 2023, arXiv 2210.10760; Huang et al. 2024, arXiv 2403.17031, with 63 to 69 %",
        advice=("give more pairs, of which people agree which is better", *_more_pairs(results)),
    )


def _more_pairs(results: RewardModelResults) -> tuple[str, ...]:
    few = results.num_pairs < FEW_PAIRS
    return (f"hold more than {results.num_pairs} pairs back: so few cannot tell it from a coin",) if few else ()


def _better_reward_model(facts: Facts, results: RewardModelResults) -> Iterator[Remedy]:
    makes_pairs = "preferences" in (facts.setting("stages") or ())
    if results.num_pairs < FEW_PAIRS and makes_pairs:
        held = finite_or_none(facts.setting("preferences", "num_test_pairs"))
        if held is not None and held < FEW_PAIRS:
            yield Remedy("preferences.num_test_pairs", str(FEW_PAIRS), number(held))
    if (pairs := finite_or_none(facts.setting("preferences", "num_pairs"))) and "preferences" in (
        facts.setting("stages") or ()
    ):
        yield Remedy("preferences.num_pairs", str(int(2 * pairs)), str(int(pairs)))
    if rate := finite_or_none(facts.setting("reward_model", "optim", "learning_rate")):
        yield _raised("reward_model.optim.learning_rate", rate, factor=3)
    if epochs := finite_or_none(facts.setting("reward_model", "epochs")):
        yield Remedy(
            "reward_model.epochs", str(int(epochs) + 1), str(int(epochs)), note="more, while validation/loss falls"
        )


def _reward_hacking(facts: Facts) -> Iterator[Finding]:
    evaluation = facts.evaluation
    wins = evaluation.win_rate if evaluation else None
    if evaluation is None or wins is None or wins.judge is None:
        return
    if not (wins.reward.low > CHANCE and wins.judge.high < CHANCE):
        return
    yield Finding(
        "reward_hacking",
        "Reward hacking: the reward rose, and the judge prefers the old responses",
        (
            Evidence(
                "win_rate.reward",
                None,
                f"is {percent(wins.reward.rate)} by the {evaluation.reward_name}, which PPO was trained on",
                wins.reward.model_dump(),
            ),
            Evidence(
                "win_rate.judge",
                None,
                f"is {percent(wins.judge.rate)} by the judge ({evaluation.judge_name}), which PPO never saw",
                wins.judge.model_dump(),
            ),
        ),
        "The policy has found what the reward pays for beside what it was meant to. Read samples: it is often one "
        "phrase, a length or a format.",
        (*_nearer(facts), *_shorter(facts)),
        "Gao et al. 2023, arXiv 2210.10760; Skalse et al. 2022, arXiv 2209.13085",
        advice=("let people compare the new responses too, as a recipe with rounds does",),
    )


def _nearer(facts: Facts) -> tuple[Remedy, ...]:
    return kl_remedies(Curves(facts.metrics.get("ppo", ())), settings_of("ppo", facts))


def _shorter(facts: Facts) -> tuple[Remedy, ...]:
    num = finite_or_none(facts.setting("ppo", "iterations"))
    if num is None or num < 2:
        return ()
    return (Remedy("ppo.iterations", str(int(num // 2)), str(int(num)), note="as many as until the judge was best"),)


def _made_worse(facts: Facts) -> Iterator[Finding]:
    """Whatever else makes the verdict a bad one, so that none is without its finding."""
    if facts.evaluation is None or any(_reward_hacking(facts)):
        return
    verdict = judge_run(facts)
    if verdict.tone != "bad":
        return
    yield Finding(
        "made_worse",
        verdict.headline.rstrip("."),
        (Evidence("evaluation", None, f"says: {verdict.reasons}", {}),),
        "What was trained is worse than what it started from, with the whole interval below: use the model before PPO.",
        (*_nearer(facts), *_shorter(facts)),
        "Huang et al. 2024, arXiv 2403.17031, where 2 of 4 seeds with 1 billion weights end below their start",
    )


def _side_effects(facts: Facts) -> Iterator[Finding]:
    """What the rules over curves ask of training, of the responses to held-out prompts."""
    models = facts.evaluation.models if facts.evaluation else {}
    before, after = models.get("sft"), models.get("policy")
    if before is None or after is None or facts.evaluation is None:
        return
    curves, settings = Curves(facts.metrics.get("ppo", ())), settings_of("ppo", facts)
    for rule, key, is_so in (
        (length.EOS_LOST, "eos_rate", length.has_lost_eos),
        (length.RUNAWAY, "response_tokens", length.has_grown),
        (length.COLLAPSE, "response_tokens", length.has_shrunk),
    ):
        old, new = _both(before, after, key)
        if old is None or new is None or not is_so(old, new):
            continue
        if key == "eos_rate" and not is_clearly_lower(new, old, facts.evaluation.num_prompts):
            continue
        words = f"is {number(new)} on held-out prompts, before PPO {number(old)}"
        evidence = Evidence(f"evaluation {key}", None, words, {"start": old, "recent": new})
        yield Finding(rule.name, rule.title, (evidence,), rule.cause, rule.remedies(curves, settings), rule.source)


def _both(before: ModelResults, after: ModelResults, key: str) -> tuple[float | None, float | None]:
    return finite_or_none(getattr(before, key)), finite_or_none(getattr(after, key))
