"""Searches over ordinary runs of a tiny recipe."""

import hashlib
import os
import random
import subprocess
import sys
import time
import tomllib

import optuna
import psutil
import pytest

import rlhfkit.tuning.search as search
from rlhfkit import load_recipe, tune
from rlhfkit.errors import CheckpointError, TrainingError
from rlhfkit.machine.interrupts import Paused
from rlhfkit.machine.progress import Progress
from rlhfkit.pipeline.run import run as run_recipe
from rlhfkit.pipeline.workload import Workload
from rlhfkit.rundir.study import StudyDir, StudyResults
from rlhfkit.tuning.cost import Rates
from rlhfkit.tuning.runner import Outcome
from rlhfkit.tuning.runs import Runs
from rlhfkit.tuning.summary import comparison_of as original
from tests.small_recipe import small_recipe
from tests.tuning import stub

TEXT = small_recipe(
    "vowels",
    ["pretrain", "ppo", "evaluate"],
    """
[pretrain]
minibatch_sequences = 16
max_tokens = 64
[data]
max_prompt_tokens = 40
texts = { type = "grammar", num_rows = 24 }
prompts = { type = "grammar", num_rows = 12, seed_offset = 2 }
test_prompts = { type = "grammar", num_rows = 24, seed_offset = 3 }
[reward]
type = "function"
function = "tests.training.tiny:count_vowels"
[ppo]
iterations = 6
rollout_episodes = 8
minibatch_episodes = 4
epochs = 2
min_eos_rate = 0.0
optim = { learning_rate = 1e-3 }
[evaluation]
judge = { type = "grammar" }
num_prompts = 8
num_prompts_on_the_way = 8
[tune]
kl = 5.0
trials = 4
finalists = 1
reduction = 2
min_rung_iterations = 2
num_random = 2
confirmation_seeds = 1
test_seeds = 2
max_length_ratio = 100.0
max_distinct_loss = 0.99
max_perplexity_ratio = 1000.0
max_eos_loss = 1.0
""",
)
QUIET = Progress(quiet=True)


class InThisProcess(Runs):
    """The same runs, without the seconds that each process takes to start."""

    def _run(self, run, changed, *, until, log, claim):
        loaded = load_recipe(self._recipe, [*self._overrides, *changed])
        workload = Workload() if until is None else Workload.pausing(until)
        try:
            run_recipe(loaded, run.path, progress=QUIET, workload=workload)
        except Paused:
            pass
        except Exception as error:
            return Outcome("failed", 1.0, str(error))
        return Outcome("done", 1.0)


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "Runs", InThisProcess)
    monkeypatch.setattr(search, "_measured", lambda *_: Rates(base=1.0, whole=6.0, evaluation=1.0, start=0.0))
    path = tmp_path / "vowels.toml"
    path.write_text(TEXT)
    return path


def searched(recipe, name="study", overrides=(), **known):
    return tune(recipe, overrides, directory=recipe.parent / name, progress=QUIET, **known)


@pytest.mark.thorough
def test_a_search_of_ordinary_runs(recipe):
    results = searched(recipe)
    study = StudyDir(recipe.parent / "study")
    assert results.state == "done" and len(results.trials) == 4 and results.rungs == (3, 6)
    assert results.metric == "judge" and results.trials[0].state == "complete"
    assert study.page.exists() and results.spent_seconds > 0
    for trial in results.trials:
        run = study.run(f"trial-{trial.number:03d}")
        assert run.path == study.path / trial.run
        assert "pretrain" in run.finished_stages() and run.model("base").is_symlink()
        assert trial.points[0].iteration == 0
        assert trial.best.kl <= 5.0
    if results.comparison is not None:
        assert len(results.comparison.seeds) == 2 and results.comparison.num_prompts == 8
    again = searched(recipe)
    assert again == results  # nothing was left to do
    assert {trial.number for trial in optuna_trials(study)} == {0, 1, 2, 3}


def optuna_trials(study):
    """What Optuna's own functions read."""
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(study.journal)))
    return optuna.load_study(study_name="study", storage=storage).trials


@pytest.mark.slow
def test_a_paused_trial_ends_with_the_bits_of_a_run_that_never_paused(recipe):
    results = searched(recipe)
    study = StudyDir(recipe.parent / "study")
    paused = next(trial for trial in results.trials if trial.state == "complete" and trial.number > 0)
    run = study.run(f"trial-{paused.number:03d}")
    whole = recipe.parent / "whole"
    loaded = load_recipe(recipe)
    table = tomllib.loads(run.recipe.read_text())
    assert table["name"] == loaded.recipe.name
    from rlhfkit.tuning.design import Job, design_of, job_overrides

    job = Job(paused.number, paused.seed, "search", paused.params)
    changed = [each for each in job_overrides(design_of(loaded.recipe), job) if not each.startswith("seed=")]
    again = load_recipe(recipe, [*changed, f"seed={paused.seed}"])
    from rlhfkit.pipeline.fork import fork
    from rlhfkit.rundir.directory import RunDir

    fork(study.base, RunDir(whole), again)
    run_recipe(again, whole, progress=QUIET)
    assert weights(RunDir(whole)) == weights(run)


def weights(run):
    return hashlib.sha256((run.model("policy") / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
def test_a_gain_becomes_a_recipe(recipe, monkeypatch):
    """Whatever wins is told to be better; the file is a whole recipe with its settings."""
    monkeypatch.setattr("rlhfkit.tuning.study.best_trials", lambda *_: [1])
    from rlhfkit.rundir.study import Comparison

    true = Comparison.model_copy
    monkeypatch.setattr(
        "rlhfkit.tuning.summary.comparison_of",
        lambda study, finalists: (
            None if (found := original(study, finalists)) is None else true(found, update={"is_gain": True})
        ),
    )
    results = searched(recipe)
    study = StudyDir(recipe.parent / "study")
    best = load_recipe(study.best).recipe
    winner = results.trials[1]
    assert best.ppo.optim.learning_rate == winner.params["ppo.optim.learning_rate"]
    assert best.ppo.end_with == "best" and best.ppo.watch.best_max_ref_kl == 5.0
    assert best.stages == load_recipe(recipe).recipe.stages
    head = study.best.read_text().splitlines()[:5]
    assert all(line.startswith("# ") for line in head) and "trial 1" in head[0]


@pytest.mark.slow
def test_without_a_judge_the_reward_is_asked_about_other_prompts(recipe):
    recipe.write_text(TEXT.replace('judge = { type = "grammar" }\n', "").replace(', "evaluate"', ""))
    results = searched(recipe)
    assert results.metric == "score" and results.state == "done"
    if results.comparison is not None:
        assert all(seed.winner_kl <= 5.0 for seed in results.comparison.seeds)


@pytest.mark.slow
def test_another_recipe_in_the_same_directory_is_refused(recipe):
    searched(recipe)
    with pytest.raises(CheckpointError, match="holds a search of the settings"):
        searched(recipe, overrides=["ppo.epochs=1"])
    recipe.write_text(TEXT.replace("count_vowels", "count_vowels").replace("seed = 3", "seed = 4"))
    with pytest.raises(CheckpointError, match="holds a search of another recipe"):
        searched(recipe)


def test_a_directory_of_something_else_is_refused(recipe):
    (recipe.parent / "study").mkdir()
    (recipe.parent / "study" / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="is not the directory of a study; choose another --study-dir"):
        searched(recipe)


@pytest.mark.thorough
def test_what_all_share_and_cannot_be_made_ends_the_search(recipe):
    recipe.write_text(TEXT.replace("[pretrain]", "[pretrain]\nmax_tokens = 1").replace("max_tokens = 64\n", "", 1))
    with pytest.raises(TrainingError, match="what all trials share cannot be made"):
        searched(recipe)


@pytest.mark.parametrize(
    ("codes", "outcome"),
    [
        ([-9, -9, -9, 0], ("done", "")),
        ([-9, -9, -9, -11], ("failed", "it was killed 4 times, by SIGSEGV at last; see ")),
        ([-9, 130], ("interrupted", "")),
        ([-9, 1], ("failed", "it ended with exit code 1; see ")),
    ],
)
def test_a_run_that_something_kills_is_begun_again_a_few_times(tmp_path, monkeypatch, codes, outcome):
    left = list(codes)
    monkeypatch.setattr(Runs, "_code_of", lambda self, words, output, claim: left.pop(0))
    monkeypatch.setattr("rlhfkit.tuning.runs._said", lambda path, begin: "")
    runs = Runs(StudyDir(tmp_path), stub.design(), recipe="demo", overrides=[], threads=1)
    found = runs.prepare(claim=None)
    assert (found.state, found.cause[: len(outcome[1])]) == outcome and left == []


NUM_KILLS = 20


def alike(study):
    """All that kills may not change."""
    found = StudyResults.model_validate_json(study.results.read_text())
    trials = [(trial.number, trial.params, trial.seed, trial.state, trial.best, trial.points) for trial in found.trials]
    seeds = [[(seed.seed, seed.best) for seed in finalist.seeds] for finalist in found.finalists]
    compared = found.comparison and [(seed.seed, seed.winner, seed.default) for seed in found.comparison.seeds]
    return trials, seeds, compared, found.words


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_whatever_is_killed_the_search_tries_and_finds_the_same(tmp_path):
    """kill -9 of the search, whose runs outlive it and are taken over, or of a run, which its search begins again."""
    path = tmp_path / "vowels.toml"
    path.write_text(TEXT)

    def start(name):
        words = [sys.executable, "-m", "rlhfkit", "tune", str(path), "--study-dir", str(tmp_path / name)]
        return psutil.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)

    begin = time.monotonic()
    assert start("undisturbed").wait() == 0
    whole, expected = time.monotonic() - begin, alike(StudyDir(tmp_path / "undisturbed"))
    seed = random.randrange(2**32)
    chance, killed, number = random.Random(seed), {"search": 0, "run": 0}, 0
    while sum(killed.values()) < NUM_KILLS or number == 0:
        search = start(f"killed-{number}")
        what, after = chance.choice(list(killed)), chance.uniform(0.05, 0.4) * whole
        print(f"seed {seed}: {what} of study {number} is killed after {after:.1f} s of {whole:.1f} s")
        try:
            assert search.wait(after) == 0
        except psutil.TimeoutExpired:
            runs = [child for child in search.children() if "run" in child.cmdline()]
            for process in [search] if what == "search" else runs[:1]:
                process.kill()
                killed[what] += 1
            if what == "run":
                assert search.wait() == 0
            search.wait()
        if search.returncode == 0:
            assert alike(StudyDir(tmp_path / f"killed-{number}")) == expected
            number += 1
    print(f"{killed} killed, of {number} studies")
    assert min(killed.values()) >= 3
