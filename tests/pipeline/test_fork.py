"""A fork holds links to what another run has made, reads only what that may share, and never changes it."""

import shutil

import pytest

from rlhfkit.config.load import load_recipe
from rlhfkit.errors import CheckpointError, ConfigError
from rlhfkit.pipeline import fork as forking
from rlhfkit.pipeline.fork import fork
from rlhfkit.pipeline.opening import note_changes
from rlhfkit.rundir.atomic import read_json, write_json
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.manifest import Manifest, hashes_of_files
from rlhfkit.rundir.resume import prepare
from tests.pipeline.whole_runs import Talk
from tests.small_recipe import small_recipe

STAGES = ("pretrain", "sft", "ppo")
DONE = STAGES[:2]
RECIPE = small_recipe(
    "tiny",
    STAGES,
    """
[data]
texts = { type = "grammar", num_rows = 8 }
demonstrations = { type = "grammar", num_rows = 8 }
prompts = { type = "grammar", num_rows = 8 }
[reward]
type = "length"
""",
)


@pytest.fixture
def recipe(tmp_path):
    """The recipe with other settings."""
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return lambda *overrides: load_recipe(path, overrides)


@pytest.fixture
def base(recipe, tmp_path):
    """A run that has finished `DONE` and begun PPO, with files that nobody reads here."""
    run = RunDir(tmp_path / "runs" / "base")
    run.path.mkdir(parents=True)
    prepare(run, recipe(), fresh=False)
    for name in ("base", "sft"):
        run.model(name).mkdir()
        (run.model(name) / "model.safetensors").write_bytes(name.encode())
    (run.checkpoints / "ppo" / "00000001").mkdir(parents=True)
    run.metrics.write_text("".join(f'{{"stage": "{stage}", "iteration": 0}}\n' for stage in STAGES))
    write_json(run.stages, {stage: {"seconds": 1.0} for stage in DONE})
    models = [{"name": name, "path": str(run.model(name)), "sha256": None} for name in ("base", "sft", "policy")]
    made = {
        stage: {"made": {name: hashes_of_files(run.model(name))}}
        for stage, name in zip(DONE, ("base", "sft"), strict=True)
    }
    data = [{"use": use, "path": use, "sha256": "0"} for use in ("texts", "demonstrations", "prompts")]
    facts = {"date": "2026-01-02", "dtype": {"taken": "float32"}, "data": data, "models": models}
    write_json(run.manifest, {"seed": 3, **facts, "stages": {**made, "ppo": {"seconds": 1.0}}})
    return run


def files(run):
    return {path.relative_to(run.path): path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def test_a_fork_has_the_finished_stages_and_nothing_of_the_others(base, recipe, tmp_path):
    before, loaded, to = files(base), recipe("seed=7", "ppo.epochs=9", 'name="other"'), RunDir(tmp_path / "a" / "fork")
    fork(base, to, loaded)
    assert files(base) == before
    assert read_json(to.config)["seed"] == 7 and read_json(to.config)["ppo"]["epochs"] == 9
    assert to.finished_stages() == base.finished_stages()
    assert to.model("sft").readlink().as_posix() == "../../runs/base/sft"
    assert not to.model("policy").is_symlink() and not to.checkpoints.exists()
    assert [line[11:14] for line in to.metrics.read_text().splitlines()] == ["pre", "sft"]
    manifest = read_json(to.manifest)
    assert (manifest["seed"], manifest["date"], set(manifest["stages"])) == (7, "2026-01-02", set(DONE))
    assert [model["path"] for model in manifest["models"]] == [str(to.model("base")), str(to.model("sft"))]
    assert [entry["use"] for entry in manifest["data"]] == ["texts", "demonstrations"]


def test_what_was_linked_is_checked_against_what_its_stage_wrote(base, recipe, tmp_path):
    to = RunDir(tmp_path / "runs" / "fork")
    fork(base, to, recipe())
    Manifest(to, seed=3, device="cpu", num_threads=1).refuse_damaged()
    (base.model("sft") / "model.safetensors").write_bytes(b"another")
    with pytest.raises(CheckpointError, match=r"fork/sft/model.safetensors is not what the stage sft wrote"):
        Manifest(to, seed=3, device="cpu", num_threads=1).refuse_damaged()


def test_both_can_be_moved_together_and_a_base_that_is_gone_is_named(base, recipe, tmp_path):
    to = RunDir(tmp_path / "runs" / "fork")
    fork(base, to, recipe())
    (tmp_path / "runs").rename(tmp_path / "moved")
    moved = RunDir(tmp_path / "moved" / "fork")
    note_changes(recipe(), moved, fresh=False, progress=Talk())
    assert (moved.model("sft") / "model.safetensors").read_bytes() == b"sft"
    shutil.rmtree(tmp_path / "moved" / "base")
    with pytest.raises(CheckpointError, match=r"leads to \.\./base/\w+, which is gone: .* put it back where it was"):
        note_changes(recipe(), moved, fresh=False, progress=Talk())
    note_changes(recipe(), moved, fresh=True, progress=Talk())


def test_starting_over_in_a_fork_leaves_the_base_as_it_is(base, recipe, tmp_path):
    write_json(base.stages, {stage: {"seconds": 1.0} for stage in STAGES})
    base.model("policy").mkdir()
    (base.model("policy") / "model.safetensors").write_bytes(b"policy")
    (base.checkpoints / "ppo" / "00000001" / "tensors").write_bytes(b"critic")
    before, to = files(base), RunDir(tmp_path / "runs" / "fork")
    fork(base, to, recipe())
    assert (to.checkpoints / "ppo" / "00000001" / "tensors").read_bytes() == b"critic"
    prepare(to, recipe("sft.epochs=5"), fresh=True)
    assert files(base) == before
    assert not to.model("sft").is_symlink() and not to.checkpoints.exists() and not to.finished_stages()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("sft.epochs=9", "sft.epochs was 1, is now 9, but a stage that .*base has finished has read it"),
        ("data.demonstrations.num_rows=9", "data.demonstrations.num_rows was 8, is now 9"),
        ("model.width=32", "model.width was 16, is now 32"),
        ('stages=["pretrain"]', r"does not begin with what .*base has finished, \['pretrain', 'sft'\]"),
    ],
)
def test_what_a_finished_stage_has_read_may_not_differ(base, recipe, tmp_path, change, words):
    with pytest.raises(ConfigError, match=words):
        fork(base, RunDir(tmp_path / "fork"), recipe(change))
    assert not (tmp_path / "fork").exists()


def test_what_follows_may_be_shorter(base, recipe, tmp_path):
    fork(base, RunDir(tmp_path / "fork"), recipe('stages=["pretrain", "sft"]'))
    assert set(RunDir(tmp_path / "fork").finished_stages()) == set(DONE)


def test_a_base_that_is_not_whole_is_refused(base, recipe, tmp_path):
    to = RunDir(tmp_path / "fork")
    with pytest.raises(CheckpointError, match="elsewhere is no run directory"):
        fork(RunDir(tmp_path / "elsewhere"), to, recipe())
    shutil.rmtree(base.model("sft"))
    with pytest.raises(CheckpointError, match=r"base/sft is gone, which the stage sft wrote; put it back"):
        fork(base, to, recipe())
    base.stages.unlink()
    with pytest.raises(CheckpointError, match="has finished no stage yet"):
        fork(base, to, recipe())
    assert not to.path.exists()


@pytest.mark.parametrize("step", ["prepare", "_link", "_copy_lines", "write_json"])
def test_a_fork_that_was_killed_is_mended_by_the_next(base, recipe, tmp_path, monkeypatch, step):
    whole, to = RunDir(tmp_path / "runs" / "whole"), RunDir(tmp_path / "runs" / "fork")
    fork(base, whole, recipe())
    act = getattr(forking, step)

    def killed(*given, **settings):
        act(*given, **settings)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(forking, step, killed)
        fork(base, to, recipe())
    assert not to.finished_stages()
    fork(base, to, recipe())
    expected = files(whole)
    for name, content in files(to).items():
        assert content.replace(b"/fork", b"/whole") == expected.pop(name)
    assert not expected


def test_a_fork_that_has_gone_on_stays_as_it_is(base, recipe, tmp_path):
    to = RunDir(tmp_path / "fork")
    fork(base, to, recipe())
    to.finish_stage("ppo", {"seconds": 2.0})
    before = files(to)
    fork(base, to, recipe())
    assert files(to) == before
    with pytest.raises(CheckpointError, match=r"holds a run of other settings \(ppo\.epochs"):
        fork(base, to, recipe("ppo.epochs=9"))


def test_what_is_no_fork_is_left_alone(base, recipe, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(CheckpointError, match="is not a run directory"):
        fork(base, RunDir(tmp_path / "mine"), recipe())
    own = RunDir(tmp_path / "own")
    prepare_own = recipe()
    own.path.mkdir()
    prepare(own, prepare_own, fresh=False)
    own.model("sft").mkdir()
    with pytest.raises(CheckpointError, match="own/sft is there already, and no link to"):
        fork(base, own, recipe())
