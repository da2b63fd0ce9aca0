"""A run directory names its files in one place and never shows half of one."""

import pytest

from rlhfkit.errors import CheckpointError
from rlhfkit.rundir.atomic import read_json, write_atomically, write_directory_atomically, write_json
from rlhfkit.rundir.directory import RunDir


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_files_have_the_documented_names(tmp_path):
    run = RunDir(tmp_path)
    documented = ["recipe.toml", "config.json", "manifest.json", "metrics.jsonl", "samples.jsonl", "report.html"]
    files = [run.recipe, run.config, run.manifest, run.metrics, run.samples, run.report]
    assert [path.name for path in files] == documented
    assert run.checkpoints == tmp_path / "checkpoints"
    assert run.model("policy") == tmp_path / "policy"
    assert run.model("reward_model") == tmp_path / "reward_model"


def test_pointing_at_a_directory_creates_nothing(tmp_path):
    RunDir(tmp_path / "run")
    assert names(tmp_path) == []


def test_finished_stages_are_remembered(tmp_path):
    run = RunDir(tmp_path)
    assert run.finished_stages() == {}
    run.finish_stage("sft", {"loss": 0.5})
    run.finish_stage("ppo", {"iterations": 3})
    assert RunDir(tmp_path).finished_stages() == {"sft": {"loss": 0.5}, "ppo": {"iterations": 3}}


@pytest.mark.parametrize("content", [b'{"half": ', b"\xff\xfe"])
def test_a_damaged_record_is_named_with_a_remedy(tmp_path, content):
    path = tmp_path / "stages.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"stages\.json is damaged .* --fresh"):
        read_json(path)


def test_json_survives_a_round_trip(tmp_path):
    write_json(tmp_path / "x.json", {"text": "Güte", "list": [1, None]})
    assert read_json(tmp_path / "x.json") == {"text": "Güte", "list": [1, None]}
    assert "Güte" in (tmp_path / "x.json").read_text(encoding="utf-8")


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    (tmp_path / "directory" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        write_atomically(tmp_path / "directory", "a file cannot replace a directory")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["directory", "file"]


def test_a_file_can_be_read_by_others(tmp_path):
    write_atomically(tmp_path / "file", b"content")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_a_directory_appears_only_when_it_is_full(tmp_path):
    with write_directory_atomically(tmp_path / "policy") as directory:
        (directory / "weights").write_text("new")
        assert not (tmp_path / "policy").exists()
    assert names(tmp_path) == ["policy"]
    assert (tmp_path / "policy" / "weights").read_text() == "new"


def test_a_directory_replaces_the_one_before_it(tmp_path):
    for content in ("old", "new"):
        with write_directory_atomically(tmp_path / "policy") as directory:
            (directory / content).write_text(content)
    assert names(tmp_path) == ["policy"]
    assert names(tmp_path / "policy") == ["new"]


def test_a_directory_that_cannot_be_filled_leaves_the_old_one(tmp_path):
    with write_directory_atomically(tmp_path / "policy") as directory:
        (directory / "weights").write_text("old")
    with pytest.raises(OSError, match="full"), write_directory_atomically(tmp_path / "policy") as directory:
        (directory / "weights").write_text("ne")
        raise OSError("disk is full")
    assert names(tmp_path) == ["policy"]
    assert (tmp_path / "policy" / "weights").read_text() == "old"


def test_a_run_is_reported_from_a_model_by_its_recipe(tmp_path):
    assert not RunDir(tmp_path).is_run()
    RunDir(tmp_path).config.touch()  # as a model has it too
    assert not RunDir(tmp_path).is_run()
    RunDir(tmp_path).recipe.touch()
    assert RunDir(tmp_path).is_run()
