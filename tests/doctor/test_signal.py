"""What the rules would name in the first iterations is named before it, by the same limits."""

from types import SimpleNamespace

import pytest

from rlhfkit.config.load import load_recipe
from rlhfkit.doctor.first_rollout import Recorder, Trial, examine_ending
from rlhfkit.doctor.reward import examine_scores
from rlhfkit.doctor.signal import examine_prompts, examine_weight
from rlhfkit.records import Prompt
from rlhfkit.rewards.source import ScoredText


def recipe(*overrides):
    return load_recipe("demo", list(overrides)).recipe


def test_one_prompt_a_thousand_times_is_named_before_the_run():
    (finding,) = examine_prompts(recipe(), [Prompt("the same")] * 1000)
    assert (finding.name, finding.verdict) == ("data.variety", "warning")
    assert "1 different prompt in 1000 rows" in finding.seen
    assert list(examine_prompts(recipe(), [Prompt(f"prompt {at}") for at in range(4)])) == []


@pytest.mark.parametrize(("temperature", "num"), [(0.05, 1), (0.3, 0), (0.7, 0), (2.0, 0), (2.5, 1)])
def test_a_temperature_far_from_1_is_named_before_the_run(temperature, num):
    prompts = [Prompt(f"prompt {at}") for at in range(9)]
    assert len(list(examine_prompts(recipe(f"rollout.temperature={temperature}"), prompts))) == num


@pytest.mark.parametrize(
    ("coef", "size", "verdict"),
    # 50 nats cost 2.5, which is below 1 % of the deviation from 250 on.
    [(0.05, 1.0, "ok"), (0.05, 170.0, "ok"), (0.05, 180.0, "warning"), (0.05, 1e4, "warning")],
)
def test_a_kl_penalty_without_weight_is_named_before_the_run(coef, size, verdict):
    # The deviation of two scores is their distance / sqrt(2): 170 · 2 / sqrt(2) = 240, 180 · 2 / sqrt(2) = 255.
    (finding,) = examine_weight(recipe(f"ppo.kl.coef={coef}"), [-size, size])
    assert finding.verdict == verdict


def test_no_leash_at_all_is_what_the_recipe_says():
    assert list(examine_weight(recipe("ppo.kl.coef=0"), [-1e4, 1e4])) == []


def test_scores_that_the_rules_call_the_same_are_a_fault_before_the_run():
    episodes = [ScoredText(Prompt("p"), "p", text) for text in ("one", "two", "three", "four")]
    first, *_ = examine_scores(episodes, [2.0, 2.0, 2.0, 2.0 + 5e-7], of_model=True)
    assert (first.name, first.verdict) == ("reward.scores", "fault")


@pytest.mark.parametrize(("rate", "verdict"), [(0.25, "warning"), (0.5, "ok"), (0.75, "ok")])
def test_fewer_ends_than_ppo_demands_are_named_before_the_run(rate, verdict):
    said = recipe("ppo.min_eos_rate=0.5")
    trial = Trial(None, None, SimpleNamespace(metrics={"eos_rate": rate}), Recorder(None), said.rollout)
    (finding,) = examine_ending(trial, said, comes_after_sft=False)
    assert finding.verdict == verdict
