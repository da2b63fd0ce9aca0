"""Verdict and diagnosis never contradict each other, whatever the results of a run: a grid of them, one by one."""

import itertools
import json

import pytest

from rlhfkit.diagnosis.claims import rise_of_returns, rise_of_scores
from rlhfkit.diagnosis.diagnose import diagnose
from rlhfkit.rundir.atomic import write_json
from tests.diagnosis.test_diagnose import STAGES, recipe, text, write
from tests.diagnosis.test_rules import HEALTHY, line

CURVES = {
    "healthy": HEALTHY,
    "a score that rises within its noise": {**HEALTHY, "score/mean": line(0.0, 0.15), "score/std": [1.0] * 40},
    "a flat score": {**HEALTHY, "score/mean": [0.1, -0.1] * 20},
    "a falling score": {**HEALTHY, "score/mean": line(0.0, -2.0)},
    "clipping 59 %": {**HEALTHY, "ppo/clip_fraction": line(0.59, 0.3)},
    "EOS that is lost": {**HEALTHY, "eos_rate": line(0.47, 0.09)},
}
WIN_RATES = (None, (0.3, 0.4), (0.45, 0.55), (0.6, 0.7))
REWARD_MODELS = (
    None,
    {"accuracy": 0.52, "num_pairs": 44},
    {"accuracy": 0.7, "accuracy_low": 0.65, "accuracy_high": 0.75, "num_pairs": 300},
)
EOS = ((0.9, 0.9), (0.47, 0.09), (0.9, 0.75))


def win(interval):
    return {"rate": sum(interval) / 2, "low": interval[0], "high": interval[1]}


def write_results(run, reward, judge, eos, reward_model):
    score = {"score": {"mean": 0.0, "low": -0.1, "high": 0.1}}
    models = {name: {**score, "eos_rate": rate} for name, rate in zip(("sft", "policy"), eos, strict=True)}
    if reward is not None:
        rates = {"reward": win(reward), "judge": None if judge is None else win(judge)}
        write_json(run.evaluation, {"num_prompts": 256, "models": models, "win_rate": rates})
    if reward_model is not None:
        write_json(run.reward_model_report, reward_model)


@pytest.mark.thorough
@pytest.mark.parametrize("name", CURVES)
def test_no_results_make_verdict_and_diagnosis_contradict_each_other(tmp_path, name):
    grid = itertools.product(WIN_RATES, WIN_RATES, EOS, REWARD_MODELS)
    for at, (reward, judge, eos, reward_model) in enumerate(grid):
        if reward is None and (judge is not None or eos != EOS[0]):
            continue
        run = write(tmp_path / str(at), CURVES[name])
        write_results(run, reward, judge, eos, reward_model)
        found = diagnose(run)
        rules = {problem.finding.rule for problem in found.problems}
        tone = None if found.verdict is None else found.verdict.tone
        cautions = [] if found.verdict is None else list(found.verdict.cautions)
        right = "\n".join(found.right)
        case = (reward, judge, eos, reward_model, rules, tone, found.conclusion())
        if tone == "bad":
            assert rules & {"made_worse", "reward_hacking"}, case
        if tone == "good":
            assert not rules & {"made_worse", "reward_hacking", "reward_flat"}, case
            assert "The reward does not rise" not in text(run), case
            assert not rules or any("The rules find" in caution for caution in cautions), case
        if "Nothing is wrong" in found.conclusion():
            assert not rules and not cautions and not found.unusual and tone in (None, "good"), case
        assert bool(found.conclusion()) == (not rules), case
        if reward is not None and reward[0] <= 0.5:
            assert "score of sampled responses rose" not in right, case
        if reward_model is not None:
            is_at_chance = reward_model["num_pairs"] == 44
            assert ("reward_model_at_chance" in rules) == is_at_chance, case
            assert ("The reward model is right" in right) == (not is_at_chance), case
        if reward is not None and eos == (0.47, 0.09):
            assert "eos_lost" in rules and "end by themselves" not in right, case
        if name == "clipping 59 %":
            assert "of a good size" not in right and "Nothing is wrong" not in found.conclusion(), case
        if name == "EOS that is lost":
            assert "eos_lost" in rules, case
        if name == "a score that rises within its noise":
            assert "rose" not in right, case


def test_a_score_that_rose_needs_its_interval():
    rows = [{"iteration": at, "score/mean": at / 10, "score/std": 1.0} for at in range(20)]
    first, last, low, high = rise_of_scores(rows, num_prompts=32)
    assert (first, last) == (0.05, 1.85)
    # Two iterations of 32 prompts at either end: variance 2 · 1 / 64.
    assert (low, high) == pytest.approx((1.8 - 1.959964 * 0.03125**0.5, 1.8 + 1.959964 * 0.03125**0.5))
    assert rise_of_scores([{**row, "score/std": None} for row in rows], num_prompts=32) is None


def test_a_return_that_rose_needs_its_interval():
    first, last, low, _ = rise_of_returns([1.0, 2.0, 3.0, 9.0, 9.0, 21.0])
    assert (first, last) == (2.0, 13.0)
    # Variances 1 and 48, of three iterations each.
    assert low == pytest.approx(11.0 - 1.959964 * (49 / 3) ** 0.5)
    assert rise_of_returns([1.0, 2.0, 3.0, 9.0, 9.0]) is None


def test_of_a_run_that_stopped_before_its_first_update_nothing_is_said_to_be_well(tmp_path):
    run = write(tmp_path, {"score/mean": []}, stages=STAGES[:3])
    assert diagnose(run).conclusion() == "Too early to say: the stage ppo has made no update yet."
    write_json(run.manifest, {"stages": {"ppo": {"error": "only 0% of the responses end; set ppo.min_eos_rate = 0"}}})
    (problem,) = diagnose(run).problems
    assert problem.finding.rule == "stopped_itself"
    assert problem.finding.title == "It stopped itself before its first update"
    assert problem.finding.advice == ("set ppo.min_eos_rate = 0",)
    assert "Nothing is wrong" not in text(run)
    assert json.loads(json.dumps(diagnose(run).as_dict()))["problems"][0]["rule"] == "stopped_itself"


def test_a_run_that_its_kl_stopped_is_named_so(tmp_path):
    config = recipe()
    config["ppo"]["max_ref_kl"] = 4.0
    stopped = "KL to the reference was above ppo.max_ref_kl = 4 nats per sequence; raise ppo.kl.coef"
    run = write(tmp_path, config=config)
    write_json(run.stages, {**{name: {} for name in STAGES}, "ppo": {"stopped": stopped}})
    assert [problem.finding.rule for problem in diagnose(run).problems] == ["kl_over_limit"]
    run = write(tmp_path / "another")
    write_json(run.stages, {**{name: {} for name in STAGES}, "ppo": {"stopped": stopped}})
    (problem,) = diagnose(run).problems
    assert (problem.finding.rule, problem.finding.advice) == ("stopped_early", ("raise ppo.kl.coef",))


def test_a_few_iterations_are_too_few(tmp_path):
    run = write(tmp_path, {name: values[:3] for name, values in HEALTHY.items()}, stages=STAGES[:3])
    assert diagnose(run).conclusion() == "Too early to say: 3 iterations are too few for most rules."
