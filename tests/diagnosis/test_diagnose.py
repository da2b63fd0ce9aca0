"""`rlhfkit diagnose`: what it says of runs in every state, and of what the evaluation found."""

import fcntl
import json
import shutil

import pytest

from rlhfkit.cli import app as cli
from rlhfkit.config.control import ControlRecipe
from rlhfkit.config.recipe import Recipe
from rlhfkit.diagnosis.diagnose import diagnose
from rlhfkit.diagnosis.text import lines_of
from rlhfkit.errors import CheckpointError
from rlhfkit.report.page import render_report
from rlhfkit.rundir.atomic import write_json
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.lock import locked
from tests.diagnosis.test_rules import CONTROL, HEALTHY, HEALTHY_CONTROL, line, rows_of

STAGES = ["sft", "reward_model", "judge", "ppo", "evaluate"]


def recipe(**changes):
    table = {
        "name": "written",
        "stages": STAGES,
        "model": {"path": "some/model"},
        "data": {
            name: {"path": "rows.jsonl"}
            for name in ("demonstrations", "prompts", "test_prompts", "preferences", "judge_preferences")
        },
        "ppo": {
            "iterations": 40,
            "rollout_episodes": 64,
            "minibatch_episodes": 64,
            "optim": {"learning_rate": 1e-5},
            "kl": {"coef": 0.02},
        },
        **changes,
    }
    return Recipe.model_validate(table).model_dump(mode="json")


def write(path, curves=HEALTHY, *, stages=STAGES, config=None, stage="ppo", **labels):
    """A run whose PPO has these curves; it is complete up to the last of `stages`."""
    run = RunDir(path)
    path.mkdir(parents=True, exist_ok=True)
    run.recipe.touch()
    write_json(run.config, config or recipe())
    write_json(run.stages, {name: {} for name in stages})
    with run.metrics.open("a") as file:
        for row in rows_of(curves):
            file.write(json.dumps({"stage": stage, **labels, **row}) + "\n")
    return run


def win_rate(rate, margin=0.05):
    return {"rate": rate, "low": rate - margin, "high": rate + margin, "ties": 0.0}


def write_evaluation(run, *, reward, judge):
    estimate = {"mean": 0.5, "low": 0.4, "high": 0.6}
    models = {name: {"score": estimate, "judge": estimate} for name in ("sft", "policy")}
    rates = {"reward": win_rate(reward), "judge": None if judge is None else win_rate(judge)}
    record = {"num_prompts": 256, "models": models, "win_rate": rates, "judge_name": "bag of words"}
    write_json(run.evaluation, record)


def text(run, width=80):
    return "\n".join(line.text for line in lines_of(diagnose(run), width=width))


def rules(run):
    return [problem.finding.rule for problem in diagnose(run).problems]


# ── states ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_finished_run(tmp_path):
    run = write(tmp_path)
    assert diagnose(run).state == "finished"
    assert "finished; all 5 stages are done." in text(run, width=200)
    assert "Nothing is wrong, as far as the rules can see." in text(run)


def test_a_dead_run_says_what_it_did_last_and_where_it_goes_on(tmp_path):
    run = write(tmp_path, {name: values[:12] for name, values in HEALTHY.items()}, stages=STAGES[:3])
    (run.checkpoints / "ppo" / "00000010").mkdir(parents=True)
    found = diagnose(run)
    assert found.state == "dead"
    assert found.progress.startswith("stage ppo, last iteration 11 of 40, ")
    assert found.progress.endswith(
        "no process holds its lock, so it was stopped or killed; the command that began it goes on from its checkpoint "
        "10"
    )
    assert "Nothing is wrong so far" in text(run)


def test_a_dead_run_without_a_checkpoint_begins_its_stage_anew(tmp_path):
    run = write(tmp_path, {"score/mean": []}, stages=STAGES[:1])
    found = diagnose(run)
    assert found.progress.startswith("stage reward_model, which has written no metrics yet")
    assert found.progress.endswith("begins this stage anew")


def test_a_run_that_stopped_itself_says_why(tmp_path):
    run = write(tmp_path, {"score/mean": []}, stages=STAGES[:3])
    write_json(run.manifest, {"stages": {"ppo": {"error": "0% of the responses end; lower ppo.min_eos_rate"}}})
    assert diagnose(run).progress.endswith("; it stopped itself: 0% of the responses end; lower ppo.min_eos_rate")


def test_a_running_run_is_known_by_its_lock_which_stays_as_it_is(tmp_path):
    run = write(tmp_path, stages=STAGES[:3])
    with locked(run):
        assert diagnose(run).state == "running"
        assert "a process works on it" in diagnose(run).progress
    assert diagnose(run).state == "dead"
    with run.lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nothing holds it


def test_a_run_that_was_stopped_early_says_why(tmp_path):
    run = write(tmp_path)
    write_json(run.stages, {**{name: {} for name in STAGES}, "ppo": {"stopped": "KL to the reference was too high"}})
    assert diagnose(run).progress.endswith("PPO was stopped early: KL to the reference was too high")
    run.finish_stage("ppo", {"stopped": None, "kept": "the weights are those after iteration 4"})
    assert diagnose(run).progress.endswith("done; the weights are those after iteration 4")


def test_nothing_is_written(tmp_path):
    run = write(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*")}
    diagnose(run)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_a_directory_without_metrics_is_no_fault(tmp_path):
    run = write(tmp_path, {"score/mean": []}, stages=())
    run.metrics.unlink()
    assert (rules(run), diagnose(run).right) == ([], ())


def test_a_line_that_is_half_written_or_odd_is_passed_over(tmp_path):
    run = write(tmp_path)
    with run.metrics.open("a") as file:
        file.write('"text"\n{"stage": "ppo", "iteration": null, "score/mean": 1}\n{"stage": "ppo", "iter')
    assert rules(run) == []


def test_a_damaged_file_is_reported(tmp_path):
    run = write(tmp_path)
    run.stages.write_text("{")
    with pytest.raises(CheckpointError, match=r"stages\.json is damaged"):
        diagnose(run)


# ── what the evaluation and the stages found ─────────────────────────────────────────────────────────────────────────


def test_reward_hacking_is_a_reward_that_rose_while_the_judge_prefers_the_old_responses(tmp_path):
    run = write(tmp_path)
    write_evaluation(run, reward=0.9, judge=0.3)
    (problem,) = diagnose(run).problems
    assert (problem.finding.rule, problem.stage) == ("reward_hacking", "ppo")
    assert [evidence.numbers["rate"] for evidence in problem.finding.evidence] == [0.9, 0.3]
    assert problem.finding.remedies[0].words() == "ppo.kl.coef from 0.02 to 0.05"
    assert not any("score of sampled responses rose" in line for line in diagnose(run).right)


@pytest.mark.parametrize(("reward", "judge"), [(0.9, 0.7), (0.9, 0.48), (0.9, None)])
def test_what_an_interval_leaves_open_is_no_reward_hacking(tmp_path, reward, judge):
    run = write(tmp_path)
    write_evaluation(run, reward=reward, judge=judge)
    assert rules(run) == []
    assert diagnose(run).verdict is not None


@pytest.mark.parametrize(("reward", "judge"), [(0.52, 0.3), (0.3, 0.7), (0.3, None)])
def test_what_is_clearly_worse_is_a_problem_whatever_the_curves_say(tmp_path, reward, judge):
    run = write(tmp_path)
    write_evaluation(run, reward=reward, judge=judge)
    (problem,) = diagnose(run).problems
    assert problem.finding.rule == "made_worse"
    assert problem.finding.title == diagnose(run).verdict.headline.rstrip(".")
    assert not any("rose" in line for line in diagnose(run).right)


@pytest.mark.parametrize(
    ("accuracy", "low", "num_pairs", "expected"),
    [
        (0.52, 0.45, 200, ["reward_model_at_chance"]),
        (0.66, 0.6, 200, []),
        (0.52, 0.3, 12, ["reward_model_at_chance"]),  # so few cannot tell it from a coin
        (0.52, None, 44, ["reward_model_at_chance"]),  # Wilson's interval of 44 pairs is 0.38 to 0.66
    ],
)
def test_a_reward_model_at_chance(tmp_path, accuracy, low, num_pairs, expected):
    run = write(tmp_path)
    write_json(run.reward_model_report, {"accuracy": accuracy, "accuracy_low": low, "num_pairs": num_pairs})
    assert rules(run) == expected


def test_demonstrations_that_lose_their_eos(tmp_path):
    run = write(tmp_path)
    write_json(
        run.stages,
        {**{name: {} for name in STAGES}, "sft": {"num_demonstrations": 100, "num_cut": 90, "num_without_end": 80}},
    )
    (problem,) = diagnose(run).problems
    assert problem.finding.rule == "demonstrations_cut"
    assert problem.finding.remedies[0].words() == (
        "sft.max_tokens from 2048 to 4096: more than the longest demonstration"
    )
    write_json(
        run.stages,
        {**{name: {} for name in STAGES}, "sft": {"num_demonstrations": 100, "num_cut": 80, "num_without_end": 20}},
    )
    assert rules(run) == []


# ── rounds, seeds ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_in_rounds_says_in_which_round(tmp_path):
    stages = ["sft", "preferences", "reward_model", "ppo"]
    data = {name: {"path": "rows.jsonl"} for name in ("demonstrations", "prompts")}
    config = recipe(rounds=3, stages=stages, data=data)
    run = write(tmp_path, {"score/mean": []}, stages=stages[:1], config=config)
    of_round = stages[1:]
    write(run.round(1).path, stages=of_round, config=recipe(stages=of_round, data=data))
    bad = {**HEALTHY, "response_tokens/mean": line(20.0, 50.0)}
    write(run.round(2).path, bad, stages=of_round[:2], config=recipe(stages=of_round, data=data))
    found = diagnose(run)
    assert [(problem.finding.rule, problem.round) for problem in found.problems] == [("length_runaway", 2)]
    assert found.state == "dead"
    assert found.progress.startswith("round 2, stage ppo, last iteration 39")
    assert "round 2, PPO, iterations" in text(run)


def test_seeds_with_the_same_trouble_are_told_together(tmp_path):
    config = ControlRecipe.model_validate({"name": "control", "env": {"id": "CartPole-v1"}, "num_seeds": 3})
    settings = {**config.model_dump(mode="json"), "ppo": CONTROL}
    bad = {**HEALTHY_CONTROL, "episode_return/mean": line(18.0, 19.0)}
    for seed, curves in enumerate((bad, HEALTHY_CONTROL, bad)):
        run = write(tmp_path, curves, stages=["control"], config=settings, stage="control", seed=seed)
    (problem,) = diagnose(run).problems
    assert (problem.finding.rule, problem.seeds) == ("reward_flat", (0, 2))
    assert "control, seeds 0, 2, iterations 19 to 39" in text(run)


# ── what was done while it trained ───────────────────────────────────────────────────────────────────────────────────


def test_what_the_rules_did_is_reported(tmp_path):
    run = write(tmp_path)
    lines = run.metrics.read_text().splitlines()
    row = json.loads(lines[20])
    row |= {"watch/kl_exploding": 1.0, "watch/rolled_back_to": 14.0, "watch/kl_coef": 0.2}
    run.metrics.write_text("\n".join([*lines[:20], json.dumps(row), *lines[21:]]) + "\n")
    assert diagnose(run).done == (
        "iteration 20: kl_exploding: the weights went back to those of iteration 14; the KL coefficient became 0.2",
    )


# ── as text, as JSON, in the report ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def broken(tmp_path):
    run = write(tmp_path / "a run", {**HEALTHY, "ppo/approx_kl": [3.0] * 40, "ppo/clip_fraction": [0.9] * 40})
    write_evaluation(run, reward=0.9, judge=0.3)
    return run


def command(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["rlhfkit", *words])
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    return code, *capsys.readouterr()


def test_a_problem_has_its_place_evidence_cause_setting_and_source(broken):
    page = text(broken)
    assert "1. Reward hacking" in page
    assert "2. Updates are far too large\n   where    PPO, iterations 0 to 39 (rule approx_kl_high)" in page
    assert "   seen     ppo/approx_kl is 3, expected at most 1 (iteration 39)" in page
    assert "   set      ppo.optim.learning_rate from 1e-05 to 1e-06" in page
    assert "   source   Schulman et al. 2017" in page
    assert "3. Most of what PPO wants is clipped" in page
    assert "probably follows from approx_kl_high, above" in page


@pytest.mark.parametrize("width", [60, 80, 100])
def test_no_line_is_wider_than_the_terminal(broken, width):
    lines = text(broken, width).splitlines()
    assert max(len(line) for line in lines if not line.startswith(str(broken.path.parent))) <= width


def test_the_command_prints_it_and_exits_with_0_whatever_is_wrong(broken, monkeypatch, capsys):
    code, out, err = command(monkeypatch, capsys, "diagnose", str(broken.path))
    assert (code, err) == (0, "")
    assert "Updates are far too large" in out
    assert "\x1b" not in out  # no colour where it is not a terminal


def test_json_is_one_object_and_nothing_else(broken, monkeypatch, capsys):
    code, out, _ = command(monkeypatch, capsys, "diagnose", str(broken.path), "--json")
    found = json.loads(out)
    assert (code, out.count("\n")) == (0, 1)
    assert found["state"] == "finished"
    assert [problem["rule"] for problem in found["problems"]] == [
        "reward_hacking",
        "approx_kl_high",
        "clip_fraction_high",
    ]
    problem = found["problems"][1]
    assert problem["evidence"][0] == {
        "metric": "ppo/approx_kl",
        "iterations": [39, 39],
        "words": "is 3, expected at most 1",
        "numbers": {"recent": 3.0, "limit": 1.0},
    }
    assert problem["remedies"][0] == {
        "setting": "ppo.optim.learning_rate",
        "to": "1e-06",
        "now": "1e-05",
        "also": [],
        "note": "",
    }


def test_what_is_no_run_is_one_line_and_exit_1(tmp_path, monkeypatch, capsys):
    code, out, err = command(monkeypatch, capsys, "diagnose", str(tmp_path))
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {tmp_path} is not a run directory")


@pytest.mark.thorough
def test_the_report_shows_what_is_wrong_with_texts_escaped(broken, tmp_path):
    page = render_report(broken)
    assert "3 things are wrong</h2>" in page
    assert "Updates are far too large" in page
    assert "<code>ppo/approx_kl</code> is 3, expected at most 1" in page
    healthy = write(tmp_path / "healthy")
    assert "wrong</h2>" not in render_report(healthy)
    evaluation = json.loads(broken.evaluation.read_text())
    broken.evaluation.write_text(json.dumps({**evaluation, "judge_name": "<script>alert(1)</script>"}))
    assert "<script>" not in render_report(broken)


@pytest.mark.thorough
def test_a_copy_of_a_run_gives_the_same_report(broken, tmp_path):
    shutil.copytree(broken.path, tmp_path / "copy")
    assert render_report(RunDir(tmp_path / "copy")) == render_report(broken)
