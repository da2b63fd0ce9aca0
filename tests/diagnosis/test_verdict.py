from dataclasses import replace
from typing import Any

import pytest

from rlhfkit.diagnosis.verdict import judge_run
from rlhfkit.rundir.contents import Facts
from rlhfkit.rundir.results import Evaluation, RewardModelResults

SCORE = {"mean": 0.0, "low": -0.1, "high": 0.1}


def facts(
    reward: tuple[float, float] | None = (0.7, 0.8),
    judge: tuple[float, float] | None = (0.6, 0.7),
    *,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
    num_prompts: int = 256,
    reward_model: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    finished: dict[str, Any] | None = None,
) -> Facts:
    """A run whose win rates have these intervals."""

    def win(interval: tuple[float, float] | None) -> dict[str, float] | None:
        return interval and {"rate": sum(interval) / 2, "low": interval[0], "high": interval[1]}

    evaluation = reward and Evaluation.model_validate(
        {
            "num_prompts": num_prompts,
            "models": {"sft": {"score": SCORE, **(before or {})}, "policy": {"score": SCORE, **(after or {})}},
            "win_rate": {"reward": win(reward), "judge": win(judge)},
        }
    )
    return Facts(
        name="run",
        config=config or {},
        manifest={},
        finished=finished or {},
        metrics=metrics or {},
        samples=(),
        evaluation=evaluation or None,
        reward_model=RewardModelResults.model_validate(reward_model) if reward_model else None,
        damaged_lines=0,
    )


@pytest.mark.parametrize(
    ("reward", "judge", "tone", "words"),
    [
        ((0.7, 0.8), (0.6, 0.7), "good", "made the responses better"),
        ((0.7, 0.8), (0.5, 0.7), "unclear", "judge sees no clear difference"),
        ((0.7, 0.8), (0.45, 0.55), "unclear", "judge sees no clear difference"),
        ((0.7, 0.8), (0.2, 0.4), "bad", "reward hacking"),
        ((0.7, 0.8), None, "unclear", "nobody independent"),
        ((0.45, 0.55), (0.6, 0.7), "unclear", "No clear change"),
        ((0.45, 0.55), None, "unclear", "No clear change"),
        ((0.45, 0.55), (0.2, 0.4), "bad", "judge prefers the old"),
        ((0.2, 0.4), (0.6, 0.7), "bad", "worse, even by its own reward"),
    ],
)
def test_verdict_says_what_the_intervals_allow(reward, judge, tone, words):
    verdict = judge_run(facts(reward, judge))
    assert verdict.tone == tone
    assert words in verdict.headline
    touches_chance = any(interval is not None and interval[0] <= 0.5 <= interval[1] for interval in (reward, judge))
    assert ("may be chance" in verdict.reasons) == touches_chance


def test_healthy_runs_have_no_cautions():
    healthy = {"eos_rate": 0.9, "response_tokens": 20.0, "distinct_2": 0.5, "perplexity": 20.0, "ref_kl": 5.0}
    quality = {"accuracy": 0.7, "accuracy_low": 0.66, "accuracy_high": 0.74, "num_pairs": 300}
    run = facts(
        before=healthy,
        after=healthy,
        reward_model={**quality, "baselines": {"shorter": 0.6}},
        config={"ppo": {"kl": {"type": "adaptive", "target": 6.0}}},
    )
    assert judge_run(run).cautions == []


@pytest.mark.parametrize(
    ("key", "before", "after", "words"),
    [
        ("eos_rate", 0.95, 0.7, "EOS rate fell from 95\u202f% to 70\u202f%"),
        ("response_tokens", 20.0, 40.0, "grew from 20 to 40 tokens"),
        ("response_tokens", 40.0, 20.0, "shrank from 40 to 20 tokens"),
        ("distinct_2", 0.6, 0.3, "distinct-2 fell from 0.6 to 0.3"),
        ("perplexity", 20.0, 50.0, "perplexity rose from 20 to 50"),
    ],
)
def test_side_effects_are_named_with_their_numbers(key, before, after, words):
    cautions = judge_run(facts(before={key: before}, after={key: after})).cautions
    assert len(cautions) == 1
    assert words in cautions[0]


def test_values_that_are_missing_or_infinite_give_no_caution():
    values = {"eos_rate": 0.0, "response_tokens": 0.0, "distinct_2": None, "perplexity": float("inf")}
    assert judge_run(facts(before=values, after={"perplexity": 3.0})).cautions == []


def test_kl_far_above_its_target_is_a_caution():
    config = {"ppo": {"kl": {"type": "adaptive", "target": 6.0}}}
    assert "target 6" in judge_run(facts(after={"ref_kl": 20.0}, config=config)).cautions[0]


def test_an_early_end_of_ppo_is_a_caution():
    run = facts(finished={"ppo": {"iterations": 7, "stopped": "the KL went through the roof"}})
    assert judge_run(run).cautions == ["PPO was stopped early: the KL went through the roof."]
    assert judge_run(facts(finished={"ppo": {"stopped": None}})).cautions == []


def test_the_best_weights_at_the_end_of_ppo_are_named_and_no_caution():
    ppo = {"iterations": 7, "stopped": None, "kept": "the weights are those after iteration 4, the best by score/mean"}
    verdict = judge_run(facts(finished={"ppo": ppo}))
    assert (
        verdict.reasons.count(" PPO has run to its end, and the weights are those after iteration 4, the best by ") == 1
    )
    assert verdict.cautions == []
    assert "to its end" not in judge_run(facts(finished={"ppo": {**ppo, "stopped": "a limit"}})).reasons


def test_few_prompts_are_a_caution():
    assert "Only 40 prompts" in judge_run(facts(num_prompts=40)).cautions[0]


@pytest.mark.parametrize(
    ("low", "baselines", "words"),
    [(0.48, {}, "than a coin"), (0.6, {"shorter": 0.62, "longer": 0.38}, "always the shorter one gets 62\u202f%")],
)
def test_a_weak_reward_model_is_a_caution(low, baselines, words):
    results = {"accuracy": 0.64, "accuracy_low": low, "num_pairs": 200, "baselines": baselines}
    for run in (facts(reward_model=results), facts(reward=None, reward_model=results)):
        assert words in judge_run(run).cautions[0]


HELD_TO_20 = "The constraint words (at most 20 on average)"


@pytest.mark.parametrize(
    ("interval", "kept", "broken"),
    [
        ((19.0, 20.0), [f"{HELD_TO_20} holds: 19.5 (95\u202f% interval 19 to 20), 27 before PPO."], []),
        ((19.0, 21.4), [f"{HELD_TO_20} may hold: 20.2 (95\u202f% interval 19 to 21.4), 27 before PPO."], []),
        ((22.0, 23.0), [], [f"{HELD_TO_20} is broken: 22.5 (95\u202f% interval 22 to 23), 27 before PPO."]),
    ],
)
def test_a_constraint_that_holds_is_a_reason_and_a_broken_one_a_caution(interval, kept, broken):
    after = {"mean": sum(interval) / 2, "low": interval[0], "high": interval[1]}
    held = {"name": "words", "limit": 20, "is_upper": True, "sft": {"mean": 27.0}, "policy": after}
    for run in (facts(), episodes((0.7, 0.8))):
        seen = Evaluation.model_validate({**run.evaluation.model_dump(), "constraints": [held]})
        verdict = judge_run(replace(run, evaluation=seen))
        assert [verdict.reasons.count(sentence) for sentence in kept] == [1] * len(kept)
        assert ("The constraint" in verdict.reasons) == bool(kept)
        assert verdict.cautions == broken
        assert verdict.tone == "good"


def test_before_the_evaluation_nothing_is_claimed():
    rows = [{"iteration": at, "score/mean": at / 10} for at in range(20)]
    verdict = judge_run(facts(reward=None, metrics={"ppo": rows}, config={"ppo": {"iterations": 50}}))
    assert verdict.tone == "open"
    assert "20 of 50 iterations" in verdict.reasons
    assert "from 0.05 to 1.85" in verdict.reasons
    assert judge_run(facts(reward=None)).headline == "Too early to say."


# ── episodes in an environment ───────────────────────────────────────────────────────────────────────────────────────


def episodes(reward: tuple[float, float], judge: tuple[float, float] | None = None, *, is_truth: bool = True) -> Facts:
    found = facts(reward, judge)
    seen = found.evaluation.model_copy(update={"in_environment": True, "reward_is_truth": is_truth})
    return replace(found, evaluation=seen)


@pytest.mark.parametrize(
    ("reward", "judge", "is_truth", "tone", "words"),
    [
        ((0.7, 0.8), None, True, "good", "PPO made the policy better"),
        ((0.45, 0.55), None, True, "unclear", "No clear change"),
        ((0.2, 0.4), None, True, "bad", "PPO made the policy worse"),
        ((0.7, 0.8), None, False, "unclear", "nobody independent"),
        ((0.7, 0.8), (0.2, 0.4), True, "bad", "reward hacking"),
        ((0.7, 0.8), (0.6, 0.7), False, "good", "made the responses better"),
    ],
)
def test_an_environment_that_pays_by_itself_needs_no_judge(reward, judge, is_truth, tone, words):
    verdict = judge_run(episodes(reward, judge, is_truth=is_truth))
    assert verdict.tone == tone
    assert words in verdict.headline
    assert "256 held-out episodes" in verdict.reasons
    assert ("judge" in verdict.reasons) == (judge is not None)


@pytest.mark.parametrize("is_truth", [True, False])
def test_repeating_oneself_is_no_fault_where_the_environment_pays(is_truth):
    found = facts((0.7, 0.8), None, before={"distinct_2": 0.6}, after={"distinct_2": 0.1})
    seen = found.evaluation.model_copy(update={"in_environment": True, "reward_is_truth": is_truth})
    cautions = judge_run(replace(found, evaluation=seen)).cautions
    assert any("repeat each other" in caution for caution in cautions) == (not is_truth)


def test_few_episodes_are_a_caution():
    found = episodes((0.7, 0.8))
    few = replace(found, evaluation=found.evaluation.model_copy(update={"num_prompts": 20}))
    assert "Only 20 episodes were compared: small differences cannot show." in judge_run(few).cautions


def measured(low: float, high: float) -> dict[str, Any]:
    """Accuracy whose difference has this interval."""
    estimate = {"mean": 0.6, "low": 0.57, "high": 0.63}
    difference = {"mean": (low + high) / 2, "low": low, "high": high}
    measure = {"name": "accuracy", "is_share": True, "sft": estimate, "policy": estimate, "difference": difference}
    return {"num": 1000, "measures": [measure]}


@pytest.mark.parametrize(
    ("interval", "judge", "tone", "words"),
    [
        ((0.02, 0.06), None, "good", "better at its task"),
        ((0.02, 0.06), (0.6, 0.7), "good", "better at its task"),
        ((0.02, 0.06), (0.2, 0.4), "bad", "Accuracy rose, but the judge prefers the old responses"),
        ((0.0, 0.06), None, "unclear", "No clear change of accuracy"),
        ((-0.02, 0.06), (0.6, 0.7), "unclear", "No clear change of accuracy"),
        ((-0.06, -0.02), None, "bad", "worse at its task"),
    ],
)
def test_where_right_responses_are_known_the_fields_measure_decides(interval, judge, tone, words):
    run = facts(judge=judge)
    run = replace(
        run, evaluation=Evaluation.model_validate({**run.evaluation.model_dump(), "task": measured(*interval)})
    )
    verdict = judge_run(run)
    assert verdict.tone == tone
    assert words in verdict.headline
    assert "On 1000 held-out prompts, with the likeliest response to each: accuracy from 60.0\u202f% before PPO to" in (
        verdict.reasons
    )
    assert ("judge (judge) prefers" in verdict.reasons) == (judge is not None)


def test_the_interval_of_a_measure_is_reported_in_points():
    run = facts(judge=None)
    task = Evaluation.model_validate({**run.evaluation.model_dump(), "task": measured(-0.012, 0.03)})
    assert "+0.9 points (95\u202f% interval −1.2 to +3.0)" in judge_run(replace(run, evaluation=task)).reasons
