"""Every shipped recipe parses, and those of language tasks run on tiny models."""

import re
import shlex

import pytest

from rlhfkit.config.load import list_recipes, load_recipe, recipe_text
from rlhfkit.data import load_prompts
from rlhfkit.machine.progress import Progress
from rlhfkit.pipeline import evaluate as evaluation
from rlhfkit.pipeline import run as pipeline
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.results import Evaluation, read_results
from tests.pipeline.whole_runs import metrics


@pytest.fixture(autouse=True)
def no_charts(monkeypatch):
    """Drawing takes longer than training such models."""
    for module in (pipeline, evaluation):
        monkeypatch.setattr(module, "report_or_warn", lambda run_dir, warn: run_dir.report.touch())


@pytest.mark.parametrize("name", [summary.name for summary in list_recipes()])
def test_every_shipped_recipe_parses_with_the_command_in_its_header(name):
    command = re.search(rf"^# +rlhfkit run {name} (.*)$", recipe_text(name), flags=re.MULTILINE)
    recipe = load_recipe(name, shlex.split(command[1]) if command else []).recipe
    assert recipe.name == name
    assert recipe.purpose


@pytest.mark.thorough
def test_the_demo_runs_two_iterations_at_reduced_size(tmp_path):
    loaded = load_recipe(
        "demo",
        [
            "data.texts.num_rows=64",
            "data.demonstrations.num_rows=32",
            "data.prompts.num_rows=24",
            "data.test_prompts.num_rows=8",
            "pretrain.epochs=1",
            "preferences.num_pairs=16",
            "preferences.num_test_pairs=4",
            "reward_model.normalization_responses=8",
            "ppo.iterations=2",
            "ppo.rollout_episodes=8",
            "ppo.minibatch_episodes=8",
            "ppo.min_eos_rate=0",
            "model.num_layers=1",
            "model.width=16",
            "model.num_heads=2",
        ],
    )
    pipeline.run(loaded, tmp_path / "demo", progress=Progress(quiet=True))
    run_dir = RunDir(tmp_path / "demo")
    assert tuple(run_dir.finished_stages()) == loaded.recipe.stages
    assert [row["iteration"] for row in metrics(run_dir) if row["stage"] == "ppo"] == [0, 1]
    assert run_dir.recipe.read_text() == loaded.text
    test_prompts = load_prompts(loaded.recipe.data.test_prompts, seed=loaded.recipe.seed).records
    assert {sample.prompt for sample in read_results(run_dir.evaluation, Evaluation).samples} <= {
        prompt.content for prompt in test_prompts
    }


def run_shipped(name, directory, model, *overrides):
    """Two iterations of a shipped recipe with the tiny model in a directory."""
    small = ("ppo.iterations=2", "ppo.rollout_episodes=16", "ppo.minibatch_episodes=8", "ppo.min_eos_rate=0")
    given = (f"model.path={model}", f"data.directory={directory}", "model.device=cpu", *small, *overrides)
    pipeline.run(load_recipe(name, given), directory / "run", progress=Progress(quiet=True))
    run_dir = RunDir(directory / "run")
    assert [row["iteration"] for row in metrics(run_dir) if row["stage"] == "ppo"] == [0, 1]
    return read_results(run_dir.evaluation, Evaluation)


@pytest.mark.thorough
def test_classification_runs_two_iterations_on_a_tiny_model(tmp_path, directory_of):
    for name, word in (("pos", "fine"), ("neg", "poor")):
        (tmp_path / f"rt-polarity.{name}").write_text("".join(f"a {word} film , no {row}\n" for row in range(100)))
    evaluation = run_shipped(
        "classification",
        tmp_path,
        directory_of("llama"),
        "data.max_prompt_tokens=48",
        "rollout.max_response_tokens=12",  # it reads bytes, and " positive" has nine
        "sft.epochs=40",
        "sft.optim.learning_rate=1e-2",
    )
    accuracy, macro_f1 = evaluation.task.measures
    assert (accuracy.name, macro_f1.name, evaluation.task.num) == ("accuracy", "macro-F1", 20)
    confusion = evaluation.task.confusion
    assert confusion.labels == ("negative", "positive")
    for side, table in (("sft", confusion.sft), ("policy", confusion.policy)):
        assert [sum(row) for row in table] == [10, 10]
        assert getattr(accuracy, side).mean == (table[0][0] + table[1][1]) / 20
    assert evaluation.win_rate.judge is None
    assert evaluation.models["policy"].judge is None


@pytest.mark.thorough
def test_translation_runs_two_iterations_on_a_tiny_model(tmp_path, directory_of):
    lines = [f"Go {row // 2}.\tVa {row} !\tCC-BY {row}\n" for row in range(60)]
    (tmp_path / "eng-fra.txt").write_text("".join(lines))
    evaluation = run_shipped("translation", tmp_path, directory_of("llama"), "data.max_prompt_tokens=36")
    assert [measure.name for measure in evaluation.task.measures] == ["chrF", "BLEU"]
    assert evaluation.num_prompts == 2 * evaluation.task.num  # each sentence has two translations
    assert 2 <= evaluation.task.num <= 12  # about a fifth of 30
    assert evaluation.task.confusion is None
    assert evaluation.samples[0].prompt.startswith("English: Go ")
