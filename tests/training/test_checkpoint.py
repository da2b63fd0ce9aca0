"""Checkpoints are whole or not there, are checked when read, and the one before stands in for a damaged one."""

import math
import random
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn

from rlhfkit.errors import CheckpointError, TrainingError
from rlhfkit.training import checkpoint as module
from rlhfkit.training.checkpoint import Checkpoints, load_trainable, prefixed, subset, trainable_tensors

FILES = ["SHA256SUMS", "state.json", "tensors.safetensors"]


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def checkpoints(tmp_path, warnings):
    return Checkpoints(tmp_path / "ppo", warn=warnings.append)


def save(checkpoints, iteration, *, best=None):
    checkpoints.save(iteration, {"weight": torch.full((3,), float(iteration))}, {"kl_coef": iteration / 10}, best=best)
    checkpoints.wait()


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_what_was_saved_comes_back(checkpoints):
    save(checkpoints, 3)
    loaded = checkpoints.load_newest()
    assert loaded.iteration == 3
    assert loaded.state == {"kl_coef": 0.3}
    assert loaded.tensors.keys() == {"weight"}
    assert loaded.tensors["weight"].tolist() == [3.0] * 3
    assert names(checkpoints.directory / "00000003") == FILES


def test_types_and_tied_tensors_come_back(checkpoints):
    tied = torch.arange(4, dtype=torch.bfloat16)
    checkpoints.save(1, {"a": tied, "b": tied, "part": tied[1:3], "step": torch.tensor(7)}, {})
    tensors = checkpoints.load_newest().tensors
    assert torch.equal(tensors["a"], tied)
    assert torch.equal(tensors["b"], tied)
    assert torch.equal(tensors["part"], tied[1:3])
    assert tensors["step"].item() == 7


def test_no_checkpoint_is_none(checkpoints):
    assert checkpoints.load_newest() is None


def test_the_last_two_are_kept(checkpoints):
    for iteration in (1, 2, 5, 12):
        save(checkpoints, iteration)
    assert names(checkpoints.directory) == ["00000005", "00000012"]
    assert checkpoints.load_newest().iteration == 12


def test_the_checksums_are_those_that_sha256sum_checks(checkpoints):
    if shutil.which("sha256sum") is None:
        pytest.skip("there is no sha256sum here")
    save(checkpoints, 1)
    directory = checkpoints.directory / "00000001"
    subprocess.run(["sha256sum", "--check", "--status", "SHA256SUMS"], cwd=directory, check=True)


# ── the best ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_best_is_kept_beside_the_last_two(checkpoints):
    for iteration, best in ((1, 0.2), (2, 0.9), (3, 0.1), (4, 0.5), (5, 0.4)):
        save(checkpoints, iteration, best=best)
    assert names(checkpoints.directory) == ["00000002", "00000004", "00000005"]
    best = checkpoints.load_best()
    assert (best.iteration, best.best, best.tensors["weight"].tolist()) == (2, 0.9, [2.0] * 3)
    assert checkpoints.load_newest().iteration == 5


def test_of_equally_good_ones_the_newest_is_the_best(checkpoints):
    for iteration in (1, 2, 3):
        save(checkpoints, iteration, best=0.5)
    assert checkpoints.load_best().iteration == 3


@pytest.mark.parametrize("best", [None, math.nan, math.inf])
def test_one_without_a_rank_is_never_the_best(checkpoints, best):
    save(checkpoints, 1, best=best)
    assert checkpoints.load_best() is None
    save(checkpoints, 2, best=-5)
    save(checkpoints, 3, best=best)
    assert checkpoints.load_best().iteration == 2


def test_the_next_best_stands_in_for_a_damaged_best(checkpoints, warnings):
    save(checkpoints, 1, best=1.0)
    save(checkpoints, 2, best=0.3)
    save(checkpoints, 3, best=0.2)
    flip(checkpoints.directory / "00000001" / "tensors.safetensors", -1)
    assert checkpoints.load_best().iteration == 2
    assert "00000001 is damaged" in warnings[0]


def test_who_goes_back_to_the_best_leaves_nothing_of_the_future(checkpoints):
    for iteration, best in ((1, 0.9), (2, 0.2), (3, 0.1)):
        save(checkpoints, iteration, best=best)
    checkpoints.drop_after(checkpoints.load_best().iteration)
    assert names(checkpoints.directory) == ["00000001"]
    assert checkpoints.load_newest().iteration == 1


def test_a_later_checkpoint_does_not_keep_the_rank_of_a_future_that_was_taken_back(checkpoints):
    save(checkpoints, 7, best=9.0)
    save(checkpoints, 3, best=0.1)
    assert checkpoints.load_best().iteration == 3


def test_files_of_others_stay_where_they_are(checkpoints):
    save(checkpoints, 1)
    (checkpoints.directory / "notes.txt").write_text("mine")
    (checkpoints.directory / "before-the-change").mkdir()
    for iteration in (2, 3, 4):
        save(checkpoints, iteration)
    assert names(checkpoints.directory) == ["00000003", "00000004", "before-the-change", "notes.txt"]


# ── in the background ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def slow_disk(monkeypatch):
    """An event: nothing reaches the disk until it is set."""
    disk = threading.Event()
    write = module.save_file

    def wait_and_write(tensors, path):
        assert disk.wait(20)
        write(tensors, path)

    monkeypatch.setattr(module, "save_file", wait_and_write)
    yield disk
    disk.set()


def test_training_goes_on_while_the_disk_is_slow_and_does_not_reach_what_was_copied(checkpoints, slow_disk):
    weight, state = torch.ones(3), {"log": {"metrics_bytes": 1}}
    checkpoints.save(1, {"weight": weight}, state)  # returns, though nothing is written yet
    assert names(checkpoints.directory.parent) in ([], ["ppo"])
    weight.add_(1)
    state["log"] = None
    random.seed(5)
    drawn = random.random()
    random.seed(5)
    slow_disk.set()
    loaded = checkpoints.load_newest()  # waits for the writer
    assert loaded.tensors["weight"].tolist() == [1.0] * 3
    assert loaded.state == {"log": {"metrics_bytes": 1}}
    assert random.random() != drawn  # the generators are where they were when it was saved


def test_the_next_save_waits_for_the_one_before(checkpoints, slow_disk):
    save_in_thread = threading.Thread(target=lambda: [checkpoints.save(i, {}, {}) for i in (1, 2)])
    save_in_thread.start()
    save_in_thread.join(0.2)
    assert save_in_thread.is_alive()
    slow_disk.set()
    save_in_thread.join(20)
    checkpoints.wait()
    assert names(checkpoints.directory) == ["00000001", "00000002"]


@pytest.mark.thorough
def test_the_process_does_not_end_before_the_checkpoint_is_written(tmp_path):
    program = f"""
import time
from pathlib import Path
import torch
from rlhfkit.training import checkpoint as module
write = module.save_file
module.save_file = lambda tensors, path: (time.sleep(0.5), write(tensors, path))
module.Checkpoints(Path({str(tmp_path)!r}), warn=print).save(1, {{"weight": torch.ones(2)}}, {{}})
raise SystemExit(3)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == 3
    assert Checkpoints(tmp_path, warn=pytest.fail).load_newest().tensors["weight"].tolist() == [1.0, 1.0]


def fails(*_):
    raise CheckpointError("the disk is full")


def test_what_the_writer_could_not_do_stops_the_next_save(checkpoints, monkeypatch):
    monkeypatch.setattr(module, "save_file", fails)
    checkpoints.save(1, {}, {})
    with pytest.raises(CheckpointError, match="the disk is full"):
        checkpoints.save(2, {}, {})


def test_what_the_writer_could_not_do_ends_the_block(checkpoints, monkeypatch):
    monkeypatch.setattr(module, "save_file", fails)
    with pytest.raises(CheckpointError, match="the disk is full"), checkpoints:
        checkpoints.save(1, {}, {})


def test_of_two_errors_the_first_is_raised_and_the_writers_is_reported(checkpoints, monkeypatch, warnings):
    monkeypatch.setattr(module, "save_file", fails)
    with pytest.raises(TrainingError, match="not finite"), checkpoints:
        checkpoints.save(1, {}, {})
        raise TrainingError("the loss is not finite")
    assert warnings == ["the disk is full"]


# ── kills ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("what", ["save_file", "write_json", "_checksums"])
def test_a_save_that_fails_in_the_middle_leaves_the_one_before(checkpoints, monkeypatch, what, warnings):
    save(checkpoints, 1)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, what, killed)
        with pytest.raises(KeyboardInterrupt):
            save(checkpoints, 2)
    assert names(checkpoints.directory) == ["00000001"]
    assert checkpoints.load_newest().iteration == 1
    assert warnings == []


def test_what_a_kill_left_half_written_is_neither_read_nor_kept(checkpoints, warnings):
    save(checkpoints, 1)
    rubbish = checkpoints.directory / ".00000002.x7z"
    rubbish.mkdir()
    (rubbish / "tensors.safetensors").write_bytes(b"half")
    assert checkpoints.load_newest().iteration == 1
    save(checkpoints, 2)
    assert names(checkpoints.directory) == ["00000001", "00000002"]
    assert warnings == []


# ── damage ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "empty"])
def test_the_one_before_stands_in_for_a_damaged_one(checkpoints, warnings, file, damage):
    save(checkpoints, 1)
    save(checkpoints, 2)
    path = checkpoints.directory / "00000002" / file
    match damage:
        case "flipped":
            flip(path, path.stat().st_size // 2)
        case "truncated":
            path.write_bytes(path.read_bytes()[:-1])
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
    loaded = checkpoints.load_newest()
    assert loaded.iteration == 1
    assert loaded.tensors["weight"].tolist() == [1.0] * 3
    (warning,) = warnings
    assert "00000002 is damaged" in warning


def test_if_all_are_damaged_the_stage_does_not_begin_anew_in_silence(checkpoints, warnings):
    for iteration in (1, 2):
        save(checkpoints, iteration)
        flip(checkpoints.directory / f"{iteration:08d}" / "tensors.safetensors", -1)
    with pytest.raises(CheckpointError, match=r"all checkpoints in .*ppo are damaged; start the stage over"):
        checkpoints.load_newest()
    assert len(warnings) == 2


def test_a_damaged_checkpoint_is_not_found_again_once_the_run_has_gone_on(checkpoints, warnings):
    save(checkpoints, 4)
    save(checkpoints, 9)
    flip(checkpoints.directory / "00000009" / "tensors.safetensors", -1)
    assert checkpoints.load_newest().iteration == 4
    save(checkpoints, 5)
    assert names(checkpoints.directory) == ["00000004", "00000005"]
    assert checkpoints.load_newest().iteration == 5
    assert len(warnings) == 1


# ── randomness ───────────────────────────────────────────────────────────────────────────────────────────────────────


def draws():
    return [random.random(), random.gauss(0, 1), *np.random.normal(size=3), *torch.randn(3).tolist()]


def test_the_global_generators_are_put_back(checkpoints):
    random.gauss(0, 1)  # each keeps a second normal number for later
    np.random.normal()
    save(checkpoints, 1)
    expected = draws()
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    checkpoints.load_newest()
    assert draws() == expected


# ── weights by name ──────────────────────────────────────────────────────────────────────────────────────────────────


def linear(*, width=3, frozen=False):
    model = nn.Linear(width, 2)
    model.bias.requires_grad_(not frozen)
    return model


def test_only_what_training_changes_is_kept():
    assert trainable_tensors(linear(frozen=True)).keys() == {"weight"}


def test_weights_are_put_back():
    model, other = linear(), linear()
    load_trainable(other, trainable_tensors(model))
    assert torch.equal(other.weight, model.weight)
    assert torch.equal(other.bias, model.bias)
    assert other.weight.requires_grad


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (linear(width=4), r"another model: weight is \(2, 3\), expected \(2, 4\)"),
        (linear(frozen=True), r"another model: 1 weights differ, such as bias"),
    ],
)
def test_weights_of_another_model_are_refused(other, message):
    with pytest.raises(CheckpointError, match=message):
        load_trainable(other, trainable_tensors(linear()))


def test_parts_share_a_checkpoint_by_prefix():
    a, b = torch.zeros(1), torch.ones(1)
    together = prefixed("policy", {"weight": a}) | prefixed("optimizer.policy", {"weight/step": b})
    assert together.keys() == {"policy/weight", "optimizer.policy/weight/step"}
    assert subset("policy", together) == {"weight": a}
    assert subset("optimizer.policy", together) == {"weight/step": b}
