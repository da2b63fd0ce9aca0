"""What a run notes about itself, and what it says where it cannot go on exactly."""

from importlib import metadata

import pytest

from rlhfkit.rundir import manifest
from rlhfkit.rundir.atomic import read_json, write_json
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.manifest import Manifest

NOW = 4
"""Threads of the process that goes on."""


def went_on(tmp_path, *, num_threads, checkpoint):
    """What is said by a run that began with so many threads."""
    tmp_path.mkdir(exist_ok=True)
    run = RunDir(tmp_path)
    Manifest(run, seed=0, device="cpu", num_threads=NOW)
    content = read_json(run.manifest)
    assert content["num_threads"] == NOW
    write_json(run.manifest, {**content, "num_threads": num_threads})
    if checkpoint:
        (run.checkpoints / "ppo" / "00000003").mkdir(parents=True)
    said = []
    Manifest(run, seed=0, device="cpu", num_threads=NOW, warn=said.append)
    return said


def test_another_number_of_threads_is_reported_where_a_stage_goes_on(tmp_path):
    (said,) = went_on(tmp_path, num_threads=NOW + 2, checkpoint=True)
    assert said.startswith(
        f"this run began with {NOW + 2} threads and goes on with {NOW}, which add sums up in another"
    )
    assert said.endswith(f"set OMP_NUM_THREADS={NOW + 2} for that")


def test_the_same_number_of_threads_or_nothing_to_go_on_from_needs_no_word(tmp_path):
    assert went_on(tmp_path / "same", num_threads=NOW, checkpoint=True) == []
    assert went_on(tmp_path / "nothing", num_threads=NOW + 2, checkpoint=False) == []


def test_a_stage_that_is_finished_does_not_go_on(tmp_path):
    RunDir(tmp_path).finish_stage("ppo", {})
    assert went_on(tmp_path, num_threads=NOW + 2, checkpoint=True) == []


def test_a_package_that_is_not_installed_has_no_version(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "PACKAGES", ("numpy", "no-such-package"))
    Manifest(RunDir(tmp_path), seed=0, device="cpu", num_threads=1)
    versions = read_json(RunDir(tmp_path).manifest)["versions"]
    assert versions.keys() == {"python", "numpy"}
    assert versions["numpy"] == metadata.version("numpy")


def test_seconds_of_a_stage_are_those_of_all_its_starts(tmp_path, monkeypatch):
    clock = iter([10.0, 13.0, 50.0, 54.5])
    monkeypatch.setattr(manifest.time, "monotonic", lambda: next(clock))
    for _ in range(2):
        noted = Manifest(RunDir(tmp_path), seed=0, device="cpu", num_threads=NOW)
        with pytest.raises(KeyboardInterrupt), noted.stop_timed("ppo"):
            raise KeyboardInterrupt
    assert Manifest(RunDir(tmp_path), seed=0, device="cpu", num_threads=NOW).seconds_of("ppo", 2.0) == 9.5
    assert noted.seconds_of("sft", 2.0) == 2.0
