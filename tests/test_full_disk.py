"""A disk that is full, or that may not be written to: a clear message, nothing lost, and the run can go on."""

import resource
import subprocess
from contextlib import contextmanager

import pytest
import torch

from rlhfkit.config.load import load_recipe
from rlhfkit.errors import CheckpointError
from rlhfkit.machine.progress import Progress
from rlhfkit.pipeline import run as pipeline
from rlhfkit.rundir.atomic import write_atomically, write_directory_atomically
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.log import RunLog
from rlhfkit.training.checkpoint import Checkpoints
from tests.killing import RECIPES, differences

pytestmark = pytest.mark.thorough


@pytest.fixture
def mount(tmp_path):
    """A function that mounts a file system in memory with options, and again to change them."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = []

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join([*mounted, options]), "tmpfs", str(place)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"no file system can be mounted here: {result.stderr.strip()}")
        mounted[:] = ["remount"]
        return place

    yield mount
    if mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def files_no_larger_than(num_bytes):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the recipe of SFT in a directory."""
    monkeypatch.setattr(pipeline, "report_or_warn", lambda run_dir, warn: run_dir.report.touch())
    recipe = tmp_path / "sft.toml"
    recipe.write_text(RECIPES["sft"])

    def run_in(directory):
        pipeline.run(load_recipe(recipe, []), directory, progress=Progress(quiet=True))

    return run_in


# 300 kB end in the middle of a checkpoint, 40 before the first, and 8 before the first model is written.
@pytest.mark.parametrize("kilobytes", [300, 40, 8])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
def test_a_run_whose_disk_fills_up_goes_on_once_there_is_room(run, mount, tmp_path, kilobytes):
    run(tmp_path / "whole")
    directory = mount(f"size={kilobytes}k") / "run"
    with pytest.raises(CheckpointError, match=r"the disk is full.*MB are free.*make room, then give the same command"):
        run(directory)
    assert list(directory.rglob(".*")) == []
    mount("size=50m")
    run(directory)
    assert differences(directory, tmp_path / "whole") == []


def test_a_disk_that_turns_read_only_ends_the_run_and_keeps_what_was_saved(mount):
    directory = mount("size=1m") / "ppo"
    checkpoints = Checkpoints(directory, warn=pytest.fail)
    with checkpoints:
        checkpoints.save(1, {"weight": torch.ones(3)}, {})
    mount("ro")
    with pytest.raises(CheckpointError, match=r"cannot write .*00000002: the file system is read-only"), checkpoints:
        checkpoints.save(2, {"weight": torch.ones(3)}, {})
    assert checkpoints.load_newest().iteration == 1


def test_a_file_system_that_is_read_only_is_named_before_anything_is_done(run, mount):
    directory = mount("size=1m")
    mount("ro")
    with pytest.raises(CheckpointError, match=r"cannot write to .*run \(Read-only file system\); choose another"):
        run(directory / "run")


def test_a_file_may_not_be_larger_than_the_process_may_write(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")
    with files_no_larger_than(1000), pytest.raises(CheckpointError, match=r"cannot write .*ulimit -f\); 0.002 MB were"):
        write_atomically(path, "x" * 2000)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]


def test_a_line_that_does_not_fit_is_not_half_there_for_the_next_start(tmp_path):
    run = RunDir(tmp_path)
    full = pytest.raises(CheckpointError, match=r"cannot write .*samples.jsonl: .*ulimit")
    with files_no_larger_than(3000), full, RunLog(run) as log:
        for iteration in range(100):
            log.write_samples("ppo", iteration, [{"response": "x" * 100}])
    assert not run.samples.read_bytes().endswith(b"\n")
    RunLog(run).close()
    assert run.samples.read_bytes().endswith(b"\n")


def test_an_error_of_the_block_is_not_taken_for_one_of_the_disk(tmp_path):
    with pytest.raises(ValueError, match="mine"), write_directory_atomically(tmp_path / "model"):
        raise ValueError("mine")
