import json
import re
from datetime import datetime

import pytest

from rlhfkit.config.load import LoadedRecipe, resolved_json
from rlhfkit.config.recipe import Recipe
from rlhfkit.errors import CheckpointError
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.lock import locked
from rlhfkit.rundir.manifest import Manifest
from rlhfkit.rundir.resume import (
    prepare,
    recipe_of,
    recorded_date,
    refuse_other_directories,
    refuse_other_inputs,
    refuse_other_settings,
)

ROWS = {"path": "rows.jsonl"}
TABLE = {
    "name": "mine",
    "stages": ["sft", "reward_model", "judge", "ppo", "evaluate"],
    "model": {"path": "some/model"},
    "data": {
        "demonstrations": ROWS,
        "preferences": ROWS,
        "prompts": ROWS,
        "test_prompts": ROWS,
        "judge_preferences": ROWS,
    },
}


def recipe(**changes):
    return Recipe.model_validate(TABLE | changes)


def run_with(directory, *finished, begun=()):
    run = RunDir(directory)
    run.recipe.write_text("")
    run.config.write_text(resolved_json(recipe()))
    for stage in finished:
        run.finish_stage(stage, {})
    for stage in begun:
        (run.checkpoints / stage).mkdir(parents=True)
    return run


def data(**tables):
    return {**TABLE["data"], **tables}


OTHER = {"path": "other.jsonl"}


@pytest.mark.parametrize(
    ("finished", "changes", "told"),
    [
        (["sft", "reward_model"], {"ppo": {"min_eos_rate": 0.0}}, "ppo.min_eos_rate was 0.05, is now 0.0"),
        (["sft"], {"rollout": {"max_response_tokens": 9}}, "rollout.max_response_tokens was 64, is now 9"),
        (["sft", "ppo"], {"evaluation": {"num_prompts": 8}}, "evaluation.num_prompts was 256, is now 8"),
        (["sft", "ppo"], {"purpose": "other"}, "purpose was '', is now 'other'"),
        (["sft"], {"data": data(prompts=OTHER)}, "data.prompts.path was 'rows.jsonl', is now 'other.jsonl'"),
        ([], {"seed": 1}, "seed was 0, is now 1"),
    ],
)
def test_a_setting_that_no_stage_has_read_may_change(finished, changes, told, tmp_path):
    run, changed = run_with(tmp_path, *finished), recipe(**changes)
    assert refuse_other_settings(run, changed) == (told,)
    prepare(run, LoadedRecipe(changed, "", ()), fresh=False)
    assert recipe_of(run) == changed


@pytest.mark.parametrize(
    ("finished", "changes", "setting"),
    [
        (["sft"], {"sft": {"epochs": 2}}, "sft.epochs was 1, is now 2"),
        (["sft", "reward_model"], {"rollout": {"temperature": 0.5}}, "rollout.temperature was 1.0, is now 0.5"),
        (["sft"], {"seed": 1}, "seed was 0, is now 1"),
        (["sft"], {"model": {"path": "other/model"}}, "model.path was"),
        (["sft", "reward_model"], {"data": data(prompts=OTHER)}, "data.prompts.path was"),
        (["sft"], {"data": data(max_prompt_tokens=9)}, "data.max_prompt_tokens was 'auto', is now 9"),
        ([], {"name": "yours"}, "name was 'mine', is now 'yours'"),
        ([], {"stages": ["sft"]}, "stages was"),
    ],
)
def test_a_setting_that_a_stage_has_read_may_not(finished, changes, setting, tmp_path):
    run = run_with(tmp_path, *finished)
    before = run.config.read_text()
    with pytest.raises(CheckpointError, match=rf"holds a run of other settings \({setting}.*--fresh"):
        refuse_other_settings(run, recipe(**changes))
    assert run.config.read_text() == before


def test_a_stage_with_a_checkpoint_has_begun(tmp_path):
    run = run_with(tmp_path, "sft", begun=["ppo"])
    with pytest.raises(CheckpointError, match=r"ppo\.epochs was 4, is now 2"):
        refuse_other_settings(run, recipe(ppo={"epochs": 2}))


def test_the_same_settings_change_nothing(tmp_path):
    assert refuse_other_settings(run_with(tmp_path, "sft"), recipe()) == ()
    assert refuse_other_settings(RunDir(tmp_path / "new"), recipe()) == ()


@pytest.mark.parametrize("left", [".config.json.ab12_x9z", "config.json", "recipe.toml"])
def test_a_start_that_was_cut_short_leaves_no_directory_that_is_refused(tmp_path, left):
    run = RunDir(tmp_path)
    for name in ("lock", left):
        (tmp_path / name).write_text(resolved_json(recipe()) if name == "config.json" else "")
    refuse_other_directories(run)
    prepare(run, LoadedRecipe(recipe(), "", ()), fresh=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "lock", "recipe.toml"]


def test_a_config_without_a_lock_is_not_taken_for_a_start_that_was_cut_short(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is not a run directory"):
        refuse_other_directories(RunDir(tmp_path))


def test_what_kills_left_half_written_goes_and_nothing_else(tmp_path):
    run = run_with(tmp_path)
    for name in (".policy.x7zab_12", ".sft.outgoing", "policy/.seed-3.x7zab_12"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "half").touch()
    for name in (".metrics.jsonl.x7zab_12", ".mine.x7zab_12", ".gitignore", ".labels.db.x7zab_12"):
        (tmp_path / name).touch()
    prepare(run, LoadedRecipe(recipe(), "", ()), fresh=False)
    hidden = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob(".*"))
    assert hidden == [".gitignore", ".mine.x7zab_12"]


def test_one_process_at_a_time(tmp_path):
    run = RunDir(tmp_path)
    with locked(run), pytest.raises(CheckpointError, match="another process is working in"), locked(run):
        pass
    with locked(run):
        pass


def inputs_of(stage, sha256, kind="model"):
    return {stage: [{"use": "model.path", "path": "some/model", "sha256": sha256 * 64, "kind": kind}]}


@pytest.mark.parametrize(("kind", "is_refused"), [("model", True), ("code", False)])
def test_a_model_exchanged_in_the_middle_of_a_stage_is_refused_and_code_is_reported(kind, is_refused, tmp_path):
    run = run_with(tmp_path, "sft", begun=["ppo"])
    noted = {"ppo": {"inputs": inputs_of("ppo", "a", kind)["ppo"]}}
    run.manifest.write_text(json.dumps({"stages": noted}))
    assert refuse_other_inputs(run, inputs_of("ppo", "a", kind)) == ()
    words = r"model\.path: some/model has changed since the stage ppo began \(SHA-256 was aaaaaaaaaaaa…, is now bbbbbbb"
    if is_refused:
        with pytest.raises(CheckpointError, match=words):
            refuse_other_inputs(run, inputs_of("ppo", "b", kind))
    else:
        (told,) = refuse_other_inputs(run, inputs_of("ppo", "b", kind))
        assert re.match(words, told)


def test_before_a_stage_has_begun_its_model_may_be_another(tmp_path):
    run = run_with(tmp_path, "sft")
    run.manifest.write_text(json.dumps({"stages": {"ppo": {"inputs": inputs_of("ppo", "a")["ppo"]}}}))
    assert refuse_other_inputs(run, inputs_of("ppo", "b")) == ()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda file: file.write_bytes(bytes(file.stat().st_size)), "its SHA-256 was"),
        (lambda file: file.unlink(), "it is gone"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_later_stage_does_not_use_a_file_that_is_not_what_was_written(name, spoil, words, tmp_path):
    run = run_with(tmp_path, "ppo")
    policy = run.model("policy")
    policy.mkdir()
    for file in ("model.safetensors", "config.json", "tokenizer.json", "README.md"):
        (policy / file).write_text("{} ")
    manifest = Manifest(run, seed=0, device="cpu", num_threads=1)
    manifest.add_made("ppo", policy)
    (policy / "README.md").write_text("what a person adds is no fault")
    Manifest(run, seed=0, device="cpu", num_threads=1).refuse_damaged()
    spoil(policy / name)
    with pytest.raises(CheckpointError, match=rf"{name} is not what the stage ppo wrote \({words}"):
        Manifest(run, seed=0, device="cpu", num_threads=1).refuse_damaged()


def test_a_run_and_its_rounds_keep_the_date_on_which_the_whole_began(tmp_path):
    assert recorded_date(RunDir(tmp_path / "run")) is None
    (tmp_path / "run" / "round-2").mkdir(parents=True)
    (tmp_path / "run" / "manifest.json").write_text('{"date": "2021-03-04"}')
    assert recorded_date(RunDir(tmp_path / "run")) == datetime(2021, 3, 4)
    assert recorded_date(RunDir(tmp_path / "run" / "round-2")) == datetime(2021, 3, 4)
