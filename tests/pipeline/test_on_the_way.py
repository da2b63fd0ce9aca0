"""A whole run that is evaluated on the way has the weights of one that is not, killed or whole."""

import json
from pathlib import Path

import pytest

from rlhfkit.config.load import load_recipe
from rlhfkit.errors import CheckpointError, RlhfkitError
from rlhfkit.machine.progress import Progress
from rlhfkit.pipeline import run as pipeline
from rlhfkit.rundir.directory import RunDir
from tests.pipeline.whole_runs import Killed, metrics
from tests.small_recipe import small_recipe

RECIPE = small_recipe(
    "watched",
    ["pretrain", "ppo"],
    """
[data]
max_prompt_tokens = 40
texts = { type = "grammar", num_rows = 24 }
prompts = { type = "grammar", num_rows = 12, seed_offset = 2 }
test_prompts = { type = "grammar", num_rows = 6, seed_offset = 3 }
[pretrain]
minibatch_sequences = 16
max_tokens = 64
[reward]
type = "function"
function = "tests.training.tiny:count_vowels"
[evaluation]
judge = { type = "grammar" }
num_prompts_on_the_way = 5
[ppo]
iterations = 4
rollout_episodes = 8
minibatch_episodes = 4
epochs = 1
min_eos_rate = 0.0
checkpoint_minutes = 1e-9
optim = { learning_rate = 1e-3 }
""",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = tmp_path_factory.mktemp("recipe") / "watched.toml"
    recipe.write_text(RECIPE)

    def run_in(directory, *overrides, progress=None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "report_or_warn", lambda run_dir, warn: None)
            pipeline.run(
                load_recipe(recipe, overrides), directory, fresh=False, progress=progress or Progress(quiet=True)
            )
        return RunDir(directory)

    return run_in


@pytest.fixture(scope="module")
def plain(run, tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs") / "plain")


@pytest.fixture(scope="module")
def watched(run, tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs") / "watched", "evaluation.every_iterations=2")


def weights(run_dir: RunDir) -> bytes:
    return (Path(run_dir.model("policy")) / "model.safetensors").read_bytes()


def without(rows, beginning):
    return [{name: value for name, value in row.items() if not name.startswith(beginning)} for row in rows]


@pytest.mark.thorough
def test_evaluation_on_the_way_changes_no_bit(plain, watched):
    assert weights(watched) == weights(plain)
    assert without(metrics(watched), "evaluation/") == metrics(plain)
    assert watched.samples.read_bytes() == plain.samples.read_bytes()
    assert not plain.observations.exists()
    of_ppo = [row for row in metrics(watched) if row["stage"] == "ppo"]
    assert ["evaluation/judge" in row for row in of_ppo] == [True, False, True, True]
    assert of_ppo[0]["evaluation/ref_kl"] == pytest.approx(0, abs=1e-4) != of_ppo[2]["evaluation/ref_kl"]


@pytest.mark.thorough
def test_a_killed_run_has_measured_what_a_whole_one_has(run, watched, tmp_path):
    with pytest.raises(KeyboardInterrupt):  # before the checkpoint of the third iteration
        run(tmp_path / "run", "evaluation.every_iterations=2", progress=Killed("ppo", 1, completed=3))
    killed = RunDir(tmp_path / "run")
    before = [json.loads(line) for line in killed.observations.read_text().splitlines()]
    assert [row["iteration"] for row in before if row["kind"] == "evaluation"] == [0, 2]
    with pytest.raises(CheckpointError, match="other settings"):  # its curve would be of two kinds
        run(tmp_path / "run", "evaluation.every_iterations=2", "evaluation.num_prompts_on_the_way=3")
    run(tmp_path / "run", "evaluation.every_iterations=2")
    assert weights(killed) == weights(watched)
    assert metrics(killed) == metrics(watched)
    assert killed.observations.read_bytes() == watched.observations.read_bytes()
    run(tmp_path / "run", "evaluation.every_iterations=2", "evaluation.num_prompts_on_the_way=3")  # PPO is over


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ('evaluation.probes=["stereotype"]', "evaluation.probes: 'stereotype' is neither a file of rows nor a probe"),
        ('data.test_prompts={path="missing.jsonl"}', "data.test_prompts: .*missing.jsonl"),
        ('evaluation.judge={type="reward_model", path="missing"}', "evaluation.judge.path = .*missing"),
    ],
    ids=["probes", "prompts", "judge"],
)
def test_what_an_evaluation_on_the_way_lacks_is_said_before_the_first_stage(run, tmp_path, setting, words):
    with pytest.raises(RlhfkitError, match=words):
        run(tmp_path / "run", "evaluation.every_iterations=2", setting)
    assert not (tmp_path / "run").exists()
