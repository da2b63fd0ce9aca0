"""`rlhfkit compare`: PPO, DPO, RAFT and best-of-n side by side, in a run of its own or in one that is there."""

import pytest

from rlhfkit.config.load import load_recipe
from rlhfkit.errors import CheckpointError, ConfigError
from rlhfkit.machine.progress import Progress
from rlhfkit.pipeline.run import run
from rlhfkit.rundir.comparable import comparable, directory_for
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.results import Comparison, read_results
from rlhfkit.rundir.resume import prepare
from rlhfkit.stats.best_of_n import best_of_n_kl_bound
from tests.pipeline.whole_runs import Talk
from tests.small_recipe import small_recipe

RECIPE = small_recipe(
    "compared",
    ["pretrain", "ppo"],
    """
[data]
max_prompt_tokens = 40
texts = { type = "grammar", num_rows = 24 }
preferences = { type = "grammar", num_rows = 24, seed_offset = 4 }
prompts = { type = "grammar", num_rows = 8, seed_offset = 2 }
test_prompts = { type = "grammar", num_rows = 6, seed_offset = 3 }
[pretrain]
minibatch_sequences = 16
max_tokens = 64
[dpo]
minibatch_pairs = 8
[raft]
epochs = 1
num_responses = 2
minibatch_prompts = 4
[reward]
type = "function"
function = "tests.training.tiny:count_vowels"
[evaluation]
judge = { type = "grammar" }
num_prompts_on_the_way = 4
[compare]
best_of = 4
[ppo]
iterations = 2
rollout_episodes = 8
minibatch_episodes = 4
epochs = 1
min_eos_rate = 0.0
optim = { learning_rate = 1e-3 }
""",
)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "compared.toml"
    path.write_text(RECIPE)
    return str(path)


@pytest.mark.thorough
def test_a_finished_run_is_compared_in_its_place(recipe, tmp_path):
    directory = RunDir(tmp_path / "run")
    run(load_recipe(recipe), directory.path, progress=Progress(quiet=True))
    policy = (directory.model("policy") / "model.safetensors").read_bytes()
    loaded, talk = comparable(str(directory.path), ["compare.kl=1e-4"]), Talk()
    assert directory_for(str(directory.path), loaded, None) == directory.path
    run(loaded, directory.path, progress=talk)
    assert (directory.model("policy") / "model.safetensors").read_bytes() == policy
    assert "ppo: finished before" in talk.notes and any("nats, by the true rule: PPO" in note for note in talk.notes)
    found = read_results(directory.comparison, Comparison)
    by_name = {method.name: method for method in found.methods}
    assert list(by_name) == ["ppo", "dpo", "raft", "best_of_n"] and found.num_prompts == 4 and found.kl == 1e-4
    start = by_name["ppo"].points[0]
    assert start.ref_kl == 0.0 and start == by_name["dpo"].points[0] == by_name["raft"].points[0]
    assert [point.at for point in by_name["ppo"].points] == [0, 2]  # not evaluated on the way
    assert [point.at for point in by_name["dpo"].points] == [0, 1, 2, 3]
    assert by_name["dpo"].points[-1].ref_kl != 0.0 and not by_name["dpo"].needs_reward
    best = by_name["best_of_n"].points
    assert [point.at for point in best] == [1, 2, 4]
    assert [point.ref_kl for point in best] == [best_of_n_kl_bound(n) for n in (1, 2, 4)]
    assert best[0].score.mean <= best[1].score.mean <= best[2].score.mean > best[0].score.mean
    page = directory.report.read_text()
    assert "Is PPO worth it?" in page and "best of 4" in page
    with pytest.raises(CheckpointError, match="stages was"):  # what was appended is not taken back unseen
        run(load_recipe(recipe), directory.path, progress=Progress(quiet=True))


def test_stages_are_added_where_they_can_work(recipe, tmp_path):
    assert comparable(recipe).recipe.stages == ("pretrain", "ppo", "dpo", "raft", "compare")
    (tmp_path / "alone.toml").write_text("".join(line for line in RECIPE.splitlines(True) if "preferences" not in line))
    assert comparable(str(tmp_path / "alone.toml")).recipe.stages == ("pretrain", "ppo", "raft", "compare")
    assert directory_for(recipe, comparable(recipe), tmp_path) == tmp_path
    run_there = RunDir(tmp_path / "run")
    run_there.path.mkdir()
    prepare(run_there, load_recipe(recipe), fresh=False)
    with pytest.raises(ConfigError, match="which goes on in its place; leave it out"):
        directory_for(str(run_there.path), comparable(str(run_there.path)), tmp_path)
    with pytest.raises(ConfigError, match="cartpole trains no language model by PPO"):
        comparable("cartpole")
    with pytest.raises(ConfigError, match=r"rounds = 3 leave no one model for \['dpo', 'raft', 'compare'\]"):
        comparable("demo_rounds")
    with pytest.raises(ConfigError, match=r"compare.kl = -1"):
        comparable(recipe, ["compare.kl=-1"])
