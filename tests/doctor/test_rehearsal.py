"""What a little of every stage tells of the whole, and what is said where it does not come to an end."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhfkit.config.load import load_recipe
from rlhfkit.config.ppo import PpoConfig, RolloutConfig
from rlhfkit.doctor import rehearsal
from rlhfkit.doctor.forecast import examine_forecast
from rlhfkit.doctor.rehearsal import Loop, Shortened, Stopwatch, Timed, rehearse
from rlhfkit.errors import ConfigError
from rlhfkit.machine.progress import Progress
from rlhfkit.pipeline import run as pipeline
from rlhfkit.records import Preference, Prompt
from rlhfkit.rollout.generation import Response
from rlhfkit.rundir.directory import RunDir
from tests.killing import RECIPES
from tests.small_recipe import small_recipe

RECIPE = small_recipe(
    "everything",
    ["pretrain", "sft", "preferences", "reward_model", "ppo", "evaluate"],
    """
[data]
max_prompt_tokens = 40
texts = { type = "grammar", num_rows = 200 }
demonstrations = { type = "grammar", num_rows = 100, seed_offset = 1 }
prompts = { type = "grammar", num_rows = 60, seed_offset = 2 }
test_prompts = { type = "grammar", num_rows = 20, seed_offset = 3 }
[pretrain]
epochs = 3
minibatch_sequences = 16
max_tokens = 64
[sft]
minibatch_sequences = 8
max_tokens = 64
[preferences]
num_pairs = 120
num_test_pairs = 30
[reward_model]
minibatch_pairs = 8
normalization_responses = 80
[ppo]
iterations = 30
rollout_episodes = 16
minibatch_episodes = 8
epochs = 2
[evaluation]
judge = { type = "grammar" }
""",
    seed=0,
    rounds=2,
)
DEADLY = """
import os, signal

def deadly(prompts, responses):
    if os.getpid() != {parent}:
        os.kill(os.getpid(), signal.SIGKILL)
    return [0.0] * len(responses)
"""


def loaded(tmp_path, text=RECIPE, *overrides):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return load_recipe(path, overrides)


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


# ── loops ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_update_warms_up_and_counts_once():
    loop = Loop("ppo", "iteration", 100.0, [(1, 109.0), (2, 111.0), (3, 113.0)], ended=114.0)
    assert loop.pace == 2.0
    assert loop.seconds_for(3) == 14.0
    assert loop.seconds_for(43) == 14.0 + 40 * 2.0
    assert loop.seconds_for(2.5) == 13.0


def test_responses_come_many_at_a_time():
    loop = Loop("evaluate", "response", 0.0, [(10, 1.0), (64, 4.0)], ended=6.4)
    assert loop.pace == pytest.approx(0.1)
    assert loop.seconds_for(640) == pytest.approx(64.0)


def test_a_loop_of_one_update_is_all_there_is_to_go_by():
    assert Loop("sft", "update", 0.0, [(1, 3.0)], ended=3.0).seconds_for(10) == 30.0


def test_a_stage_is_what_surrounds_its_loops_and_the_loops_in_full():
    cut = Loop("ppo", "iteration", 0.0, [(1, 2.0), (2, 3.0)], ended=3.0)
    whole = Loop("measure", "pair", 3.0, [(7, 4.0)], ended=4.0)
    found = rehearsal._forecast("ppo", 10.0, [cut, whole], {"ppo": 12}, peak=5)
    assert found.seconds == (10.0 - 4.0) + 1.0 + (3.0 + 10 * 1.0)
    assert (found.work, found.peak_bytes) == ("12 iterations of 1 s", 5)


def test_evaluations_on_the_way_are_added_for_as_many_as_there_are():
    loop = Loop("ppo", "iteration", 0.0, [(1, 2.0), (2, 3.0)], ended=3.0)
    found = rehearsal._forecast("ppo", 10.0, [loop], {"ppo": 12}, peak=None, looks=(4, 2.5))
    assert found.seconds == (10.0 - 3.0) + (3.0 + 10 * 1.0) + 4 * 2.5
    assert found.work == "12 iterations of 1 s, 4 evaluations of 2.5 s on the way"


def test_what_observers_take_is_no_part_of_the_loop(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(rehearsal.time, "monotonic", lambda: clock[0])

    class Slow:
        def before_update(self, trainer, experience):
            clock[0] += 5.0 if trainer.iteration == 0 else 3.0
            return {"seen": 1.0}

        def after_update(self, trainer, experience):
            clock[0] += 0.5
            return {}

    stopwatch = Stopwatch()
    timed = Timed(Slow(), stopwatch, 4.0)
    with stopwatch.stage("ppo", total=2, unit="iteration") as stage:
        for iteration in range(2):
            clock[0] += 1.0  # the iteration itself
            assert timed.before_update(SimpleNamespace(iteration=iteration), None) == {"seen": 1.0}
            timed.after_update(SimpleNamespace(iteration=iteration), None)
            stage.advance(1)
    assert stopwatch.loops[0].seconds == 2.0
    assert stopwatch.loops[0].pace == 1.0
    assert timed.pace == 4.0 * 3.5  # as the last evaluation, of a quarter of the rows


def test_what_is_measured_on_fewer_rows_is_told_of_all(tmp_path):
    settings = ("evaluation.every_iterations=10", "evaluation.num_prompts_on_the_way=160")
    planned = loaded(tmp_path, RECIPE, *settings, 'evaluation.probes=["stereotypes", "occupations"]').recipe
    cut = rehearsal._cut(planned)
    assert (cut.evaluation.every_iterations, cut.evaluation.num_prompts_on_the_way) == (rehearsal.ITERATIONS, 64)
    assert rehearsal._evaluated_times(planned) == 2.5
    assert rehearsal._probed_times(planned) == (48 + 80) / 8  # four rows of each
    rehearsed = rehearsal.Rehearsal(planned, ())
    rehearsed.timed = [
        Timed(None, rehearsed.stopwatch, 2.0, {0: 9.0, 2: 1.0}),
        Timed(None, rehearsed.stopwatch, 1.0, {2: 0.5}),
    ]
    assert rehearsed.looks == (4, 2.5)  # iterations 0, 10, 20 and the last of 30
    assert rehearsal._cut(loaded(tmp_path).recipe).evaluation.every_iterations == 0


def test_the_stopwatch_says_nothing_and_sees_every_unit(capsys):
    stopwatch = Stopwatch()
    with stopwatch.stage("sft", total=5, unit="update", completed=2) as stage:
        stage.advance(1)
        stage.advance(2)
    (loop,) = stopwatch.loops
    assert [done for done, _ in loop.marks] == [1, 3]
    assert loop.seconds >= 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("rollout", "minibatch", "group", "few"),
    [(64, 16, 1, 64), (512, 64, 1, 64), (512, 128, 1, 128), (240, 24, 1, 48), (360, 24, 9, 72), (16, 8, 1, 16)],
)
def test_few_episodes_are_whole_minibatches_and_whole_groups(rollout, minibatch, group, few):
    ppo = PpoConfig.model_construct(rollout_episodes=rollout, minibatch_episodes=minibatch, group_size=group)
    assert rehearsal._few_episodes(ppo) == few


@pytest.mark.parametrize(("finished", "whole"), [((), 30), (("preferences",), 16)])
def test_pairs_that_measure_are_those_of_the_run_where_it_has_made_them(tmp_path, finished, whole):
    rehearsed = rehearsal.Rehearsal(loaded(tmp_path).recipe, finished)
    pairs = [Preference(Prompt(f"{number}"), "yes", "no") for number in range(16)]
    assert rehearsed.test_pairs(pairs) == pairs
    assert rehearsed.whole["measure"] == whole


def test_responses_are_cut_to_lengths_drawn_from_the_demonstrations(monkeypatch):
    whole = [Response([5, 6, 7, 1], [-1.0, -2.0, -3.0, -4.0], "eos") for _ in range(4)]
    monkeypatch.setattr(rehearsal, "generate", lambda model, prompts, config, **more: whole)
    sample = Shortened(RolloutConfig(), lengths=[1, 3, 9]).loaded(None)
    found = sample(None, [[8]] * 4, RolloutConfig(max_response_tokens=2), seeds=[3, 4, 5, 6])
    assert [response.ids for response in found] == [[5], [5, 6, 7], [5, 6, 7, 1], [5]]
    assert [response.logprobs for response in found][1] == [-1.0, -2.0, -3.0]
    assert [response.finished for response in found] == [False, False, True, False]


# ── recipes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.thorough
def test_every_stage_is_forecast_in_full_though_little_is_done(tmp_path):
    recipe, room = loaded(tmp_path, RECIPE, "evaluation.every_iterations=10"), tmp_path / "room"
    room.mkdir()
    found = {forecast.stage: forecast for forecast in rehearse(recipe, RunDir(tmp_path / "run"), room)}
    assert list(found) == list(recipe.recipe.stages)
    assert all(forecast.seconds > 0 for forecast in found.values())
    work = {stage: forecast.work.partition(" of ")[0] for stage, forecast in found.items()}
    # 190 of 200 texts in 12 updates an epoch; 10 held out, a fifth of an update's rows each of 12 times: 36 + 2.5
    assert work["pretrain"] == "38 updates"
    assert work["preferences"] == "300 responses"
    assert work["ppo"] == "30 iterations"
    assert ", 4 evaluations of " in found["ppo"].work
    assert work["evaluate"] == "40 responses"
    assert {stage for stage, forecast in found.items() if forecast.peak_bytes} == {
        "pretrain",
        "sft",
        "reward_model",
        "ppo",
    }
    metrics = (room / "metrics.jsonl").read_text()
    assert metrics.count('"stage": "ppo"') == rehearsal.ITERATIONS
    assert metrics.count('"stage": "pretrain"') == rehearsal.UPDATES


@pytest.mark.thorough
def test_nothing_stays_and_the_run_is_not_touched(tmp_path):
    run = RunDir(tmp_path / "runs" / "mine")
    recipe = loaded(tmp_path)
    before = files(tmp_path)
    *stages, whole = examine_forecast(recipe, run)
    assert files(tmp_path) == before
    assert [finding.verdict for finding in (*stages, whole)] == ["ok"] * 7
    assert [finding.name for finding in stages] == [f"forecast.{stage}" for stage in recipe.recipe.stages]
    once = {"forecast.pretrain", "forecast.sft"}
    seconds = sum(finding.numbers["seconds"] * (1 if finding.name in once else 2) for finding in stages)
    assert whole.numbers["seconds"] == pytest.approx(seconds)
    assert "in 2 rounds" in whole.seen


@pytest.mark.thorough
def test_what_a_run_has_finished_is_taken_from_it(tmp_path):
    run = tmp_path / "run"
    text = RECIPE.replace("rounds = 2\n", "")
    first = text.replace(', "preferences", "reward_model", "ppo", "evaluate"]', "]")
    pipeline.run(loaded(tmp_path, first), run, progress=Progress(quiet=True))
    before = {path: path.stat().st_mtime_ns for path in (run, *run.rglob("*"))}
    found = [finding.name for finding in examine_forecast(loaded(tmp_path, text), RunDir(run))]
    assert found[0] == "forecast.preferences"
    assert {path: path.stat().st_mtime_ns for path in (run, *run.rglob("*"))} == before


def test_nothing_is_tried_of_a_run_that_is_finished(tmp_path):
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    recipe = loaded(tmp_path)
    for stage in recipe.recipe.stages:
        run.finish_stage(stage, {})
    (finding,) = examine_forecast(recipe, run)
    assert (finding.verdict, finding.seen) == ("skipped", "nothing is left to do")


@pytest.mark.slow
def test_how_long_people_take_is_not_told(tmp_path):
    recipe = loaded(tmp_path, RECIPE, 'preferences.annotators = { type = "people" }')
    *stages, last = examine_forecast(recipe, RunDir(tmp_path / "run"))
    assert [finding.name for finding in stages] == ["forecast.pretrain", "forecast.sft"]
    assert (last.name, last.verdict) == ("forecast.preferences", "skipped")
    assert last.seen.startswith("it waits for people")


@pytest.mark.thorough
def test_a_control_task_is_forecast_for_all_its_seeds(tmp_path):
    text = RECIPES["control"].replace("env_steps = 512", "env_steps = 12800")
    stage, whole = examine_forecast(loaded(tmp_path, text), RunDir(tmp_path / "run"))
    assert stage.seen.partition(": ")[2].startswith("200 iterations of ")  # 100 for each of two seeds
    assert whole.numbers == stage.numbers


def test_too_little_memory_is_a_fault_with_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal, "available_bytes", lambda device: 1000)
    room = tmp_path / "room"
    room.mkdir()
    with pytest.raises(ConfigError, match=r"pretrain needs .* GiB .* 0.0 GiB are free; set pretrain.microbatch_tokens"):
        list(rehearse(loaded(tmp_path), RunDir(tmp_path / "run"), room))


@pytest.mark.thorough
def test_a_try_that_is_killed_is_a_fault_of_its_stage(tmp_path, monkeypatch):
    (tmp_path / "deadly_reward.py").write_text(DEADLY.format(parent=os.getpid()))
    monkeypatch.syspath_prepend(tmp_path)
    text = RECIPES["ppo"].replace("tests.training.tiny:count_vowels", "deadly_reward:deadly")
    *_, last = examine_forecast(loaded(tmp_path, text), RunDir(tmp_path / "run"))
    assert (last.name, last.verdict) == ("forecast.pretrain", "fault")  # rewards are tried before the first stage
    assert f"exit code -{signal.SIGKILL:d}" in last.seen
    assert "microbatch_tokens" in last.remedy


def test_a_try_that_takes_too_long_is_given_up(tmp_path):
    before = files(tmp_path)
    (last,) = examine_forecast(loaded(tmp_path), RunDir(tmp_path / "run"), most_seconds=0.1)
    assert (last.name, last.verdict) == ("forecast.pretrain", "skipped")
    assert last.seen.startswith("tried for 0 s without an end")
    assert files(tmp_path) == before | {"recipe.toml"}


@pytest.mark.thorough
def test_what_goes_wrong_with_a_model_that_has_learnt_nothing_is_no_fault(tmp_path):
    recipe = loaded(tmp_path)
    prompts = recipe.recipe.data.prompts.model_copy(update={"num_rows": 1})
    data = recipe.recipe.data.model_copy(update={"prompts": prompts})
    recipe = replace(recipe, recipe=recipe.recipe.model_copy(update={"data": data}))
    *_, last = examine_forecast(recipe, RunDir(tmp_path / "run"))
    assert (last.name, last.verdict) == ("forecast.preferences", "skipped")
    assert last.seen.startswith("the try broke off: ")
    assert "give some dozens" in last.seen
