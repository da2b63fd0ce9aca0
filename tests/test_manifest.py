"""What a run notes about itself, and what it says where it cannot go on exactly."""

import torch

from rlhfkit.manifest import Manifest
from rlhfkit.rundir import RunDir, read_json, write_json

CPU = torch.device("cpu")


def went_on(tmp_path, *, num_threads, checkpoint):
    """What is said by a run that began with so many threads."""
    tmp_path.mkdir(exist_ok=True)
    run = RunDir(tmp_path)
    Manifest(run, seed=0, device=CPU)
    content = read_json(run.manifest)
    assert content["num_threads"] == torch.get_num_threads()
    write_json(run.manifest, {**content, "num_threads": num_threads})
    if checkpoint:
        (run.checkpoints / "ppo" / "00000003").mkdir(parents=True)
    said = []
    Manifest(run, seed=0, device=CPU, warn=said.append)
    return said


def test_another_number_of_threads_is_told_where_a_stage_goes_on(tmp_path):
    now = torch.get_num_threads()
    (said,) = went_on(tmp_path, num_threads=now + 2, checkpoint=True)
    assert said.startswith(
        f"this run began with {now + 2} threads and goes on with {now}, which add sums up in another"
    )
    assert said.endswith(f"set OMP_NUM_THREADS={now + 2} for that")


def test_the_same_number_of_threads_or_nothing_to_go_on_from_needs_no_word(tmp_path):
    assert went_on(tmp_path / "same", num_threads=torch.get_num_threads(), checkpoint=True) == []
    assert went_on(tmp_path / "nothing", num_threads=torch.get_num_threads() + 2, checkpoint=False) == []


def test_a_stage_that_is_finished_does_not_go_on(tmp_path):
    RunDir(tmp_path).finish_stage("ppo", {})
    assert went_on(tmp_path, num_threads=torch.get_num_threads() + 2, checkpoint=True) == []
