"""`rlhfkit explain` on whole runs, and on those that it cannot explain."""

import json

import pytest

from rlhfkit import explain
from rlhfkit.config.load import load_recipe
from rlhfkit.errors import CheckpointError, ConfigError
from rlhfkit.machine.progress import Progress
from rlhfkit.pipeline import run as pipeline
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.explanations import Explanation
from tests.pipeline.test_on_the_way import RECIPE

QUIET = Progress(quiet=True)


def begun(directory, recipe):
    directory.mkdir()
    (directory / "recipe.toml").write_text("")
    (directory / "config.json").write_text(json.dumps(load_recipe(recipe).recipe.model_dump(mode="json")))
    return directory


@pytest.mark.parametrize(
    ("recipe", "error", "what"),
    [
        ("demo", CheckpointError, "has no policy yet"),
        ("cartpole", ConfigError, "the control task CartPole-v1, whose policy writes no text"),
        ("guess", ConfigError, "acts in an environment"),
    ],
)
def test_what_cannot_be_explained_is_said(tmp_path, recipe, error, what):
    with pytest.raises(error, match=what):
        explain(begun(tmp_path / "run", recipe), progress=QUIET)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = tmp_path_factory.mktemp("recipe") / "watched.toml"
    recipe.write_text(RECIPE)
    directory = tmp_path_factory.mktemp("run") / "run"
    pipeline.run(load_recipe(recipe, ["evaluation.every_iterations=2"]), directory, fresh=False, progress=QUIET)
    return RunDir(directory)


@pytest.mark.thorough
def test_a_run_is_explained_the_same_each_time_and_its_files_say_so(run, command_line):
    code, said, _ = command_line("explain", run.path, "--num-prompts", "2")
    assert code == 0
    assert said.count("prompt    ") == 2
    assert str(run.explanation_page) in said
    found = Explanation.model_validate_json(run.explanation.read_text())
    assert [one.prompt for one in explain(run.path, num_prompts=2, progress=QUIET).prompts] == [
        one.prompt for one in found.prompts
    ]
    assert Explanation.model_validate_json(run.explanation.read_text()) == found
    for one in found.prompts:
        assert one.tokens.value is not None  # the critic of the last checkpoint
        assert sum(one.tokens.kl) == pytest.approx(one.ref_kl, abs=1e-4)
        assert "this is a function" in one.reasons.notes[0]
    assert "<h1>run</h1>" in run.explanation_page.read_text()


@pytest.mark.thorough
def test_a_run_without_checkpoints_has_no_values_and_says_so(run, tmp_path):
    import shutil

    copy = shutil.copytree(run.path, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "lock"))
    found = explain(copy, ["the"], progress=QUIET)
    assert found.prompts[0].tokens.value is None
    assert "no checkpoint of PPO any more" in found.notes[0]


@pytest.mark.thorough
def test_the_panel_of_a_run_stands_in_its_report(run):
    lines = [json.loads(line) for line in run.observations.read_text().splitlines()]
    panels = [line for line in lines if line["kind"] == "explanation"]
    assert [line["iteration"] for line in panels] == [0, 2, 3]
    assert all(len(line["responses"]) == 4 for line in panels)  # two of the panel, two of the rollout
    assert 'id="panel"' in run.report.read_text()
