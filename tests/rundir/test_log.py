"""Metrics add up exactly, and the log of a resumed run is the log of an uninterrupted one."""

import json
import random
import time

import pytest

from rlhfkit.errors import CheckpointError, TrainingError
from rlhfkit.metrics import Metrics
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.log import RunLog


class Tensor:
    """A tensor of one element, as far as metrics care, that counts how often somebody waits for it."""

    def __init__(self, value):
        self.value = value
        self.num_reads = 0

    def detach(self):
        return self

    def __float__(self):
        self.num_reads += 1
        return self.value


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path / "run")


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ── Metrics ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_mean_is_sum_over_count():
    metrics = Metrics()
    metrics.add("loss", 6.0, 3)
    metrics.add("loss", 2.0, 1)
    metrics.add("eos_rate", 1.0)
    assert metrics.means() == {"loss": 2.0, "eos_rate": 1.0}


def test_order_and_cuts_change_no_bit():
    rng = random.Random(0)
    values = [rng.uniform(-1e8, 1e8) for _ in range(1000)] + [rng.uniform(-1e-8, 1e-8) for _ in range(1000)]
    whole, first, second = Metrics(), Metrics(), Metrics()
    for value in values:
        whole.add("x", value)
    rng.shuffle(values)
    for value in values[:777]:
        first.add("x", value)
    for value in values[777:]:
        second.add("x", value)
    second.merge(first)
    assert second.means() == whole.means()


def test_merging_leaves_the_other_as_it_was():
    one, other = Metrics(), Metrics()
    other.add("x", 4.0, 2)
    one.merge(other)
    one.add("x", 0.0, 2)
    assert one.means() == {"x": 1.0}
    assert other.means() == {"x": 2.0}


def test_a_tensor_is_read_only_for_the_means():
    metrics, total, count = Metrics(), Tensor(6.0), Tensor(4.0)
    metrics.add("loss", total, count)
    assert total.num_reads == count.num_reads == 0
    assert metrics.means() == {"loss": 1.5}


def test_nothing_counted_has_no_mean():
    metrics = Metrics()
    metrics.add("x", 0.0, 0)
    assert metrics.means() == {}


def test_what_is_not_finite_stays_so():
    metrics = Metrics()
    metrics.add("x", 1.0)
    metrics.add("x", float("inf"))
    assert metrics.means() == {"x": float("inf")}


# ── RunLog ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_iteration_is_one_line_that_is_there_at_once(run):
    with RunLog(run) as log:
        log.write("ppo", 1, {"score/mean": 1 / 3, "env_steps": 123456789})
        assert lines(run.metrics) == [
            {"stage": "ppo", "iteration": 1, "score/mean": 0.333333, "env_steps": 123456789},
        ]
        log.write_samples("ppo", 1, [{"prompt": "Güte", "response": "\ud83d", "score": 2 / 3}, {"prompt": "b"}])
        assert lines(run.samples) == [
            {"stage": "ppo", "iteration": 1, "prompt": "Güte", "response": "?", "score": 0.666667},
            {"stage": "ppo", "iteration": 1, "prompt": "b"},
        ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_stops_the_run_and_is_not_written(run, value):
    with RunLog(run) as log:
        with pytest.raises(TrainingError, match=r"ppo/loss is -?(nan|inf) in stage ppo, iteration 7"):
            log.write("ppo", 7, {"score/mean": 1.0, "ppo/loss": value})
        with pytest.raises(TrainingError, match=r"score of a sample is -?(nan|inf) in stage ppo, iteration 7"):
            log.write_samples("ppo", 7, [{"prompt": "a", "score": value}])
    assert run.metrics.read_text() == run.samples.read_text() == ""


def test_a_resumed_log_equals_an_uninterrupted_one(run, tmp_path):
    whole = RunDir(tmp_path / "whole")
    with RunLog(whole) as log:
        for iteration in range(1, 5):
            log.write("ppo", iteration, {"x": iteration})
            log.write_samples("ppo", iteration, [{"prompt": "é", "n": iteration}])
            log.write_observation("ppo", iteration, "evaluation", {"judge": [iteration]})

    with RunLog(run) as log:
        for iteration in range(1, 4):
            log.write("ppo", iteration, {"x": iteration})
            log.write_samples("ppo", iteration, [{"prompt": "é", "n": iteration}])
            log.write_observation("ppo", iteration, "evaluation", {"judge": [iteration]})
            if iteration == 2:
                checkpoint = json.loads(json.dumps(log.position()))
    with RunLog(run) as log:
        log.truncate(checkpoint)
        for iteration in range(3, 5):
            log.write("ppo", iteration, {"x": iteration})
            log.write_samples("ppo", iteration, [{"prompt": "é", "n": iteration}])
            log.write_observation("ppo", iteration, "evaluation", {"judge": [iteration]})
    assert run.metrics.read_bytes() == whole.metrics.read_bytes()
    assert run.samples.read_bytes() == whole.samples.read_bytes()
    assert run.observations.read_bytes() == whole.observations.read_bytes()


def test_what_was_observed_after_the_checkpoint_is_forgotten_where_nothing_was_before(run):
    with RunLog(run) as log:
        log.write("ppo", 1, {"x": 1})
        start = log.position()
        assert not run.observations.exists()
        log.write_observation("ppo", 2, "evaluation", {"judge": [1.0]})
    with RunLog(run) as log:
        log.truncate(start)
    assert run.observations.read_bytes() == b""


def test_truncating_to_the_beginning_empties_the_log(run):
    with RunLog(run) as log:
        start = log.position()
        log.write("sft", 1, {"x": 1})
        log.truncate(start)
        log.write("sft", 1, {"x": 2})
    assert lines(run.metrics) == [{"stage": "sft", "iteration": 1, "x": 2}]


def test_a_stage_that_begins_anew_forgets_its_first_attempt_and_no_other_stage(run):
    with RunLog(run) as log:
        log.write("sft", 1, {"x": 1})
        log.write("ppo", 1, {"x": 1})
        log.write_samples("ppo", 1, [{"prompt": "a"}])
    with RunLog(run) as log:
        log.forget("ppo")
        log.forget("ppo")
        log.write("ppo", 1, {"x": 2})
    assert lines(run.metrics) == [{"stage": "sft", "iteration": 1, "x": 1}, {"stage": "ppo", "iteration": 1, "x": 2}]
    assert lines(run.samples) == []


def test_a_half_written_line_is_dropped(run):
    with RunLog(run) as log:
        log.write("ppo", 1, {"x": 1})
    with run.metrics.open("a") as file:
        file.write('{"stage": "ppo", "itera')
    with RunLog(run) as log:
        log.write("ppo", 2, {"x": 2})
    assert [line["iteration"] for line in lines(run.metrics)] == [1, 2]


@pytest.mark.parametrize("damage", ["", '{"stage": "sft"}\n', '{"stage": "a longer line than it was"}\n' * 3])
def test_a_log_that_does_not_fit_the_checkpoint_is_refused(run, damage):
    with RunLog(run) as log:
        log.write("ppo", 1, {"x": 1})
        position = log.position()
    run.metrics.write_text(damage)
    with RunLog(run) as log, pytest.raises(CheckpointError, match=r"metrics\.jsonl .* --fresh"):
        log.truncate(position)
    assert run.metrics.read_text() == damage


def test_tensorboard_shows_each_iteration_once_after_a_resume(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(run) as log:
        log.write("sft", 9, {"loss": 0.5})
        for iteration in (1, 2, 3):
            log.write("ppo", iteration, {"score/mean": float(iteration)})
    time.sleep(1.1)  # TensorBoard orders its files by the second
    with RunLog(run) as log:
        for iteration in (2, 3):
            log.write("ppo", iteration, {"score/mean": 10.0 * iteration})

    def points(stage, tag):
        events = EventAccumulator(str(run.tensorboard / stage))
        events.Reload()
        return [(event.step, event.value) for event in events.Scalars(tag)]

    assert points("ppo", "ppo/score/mean") == [(1, 1.0), (2, 20.0), (3, 30.0)]
    assert points("sft", "sft/loss") == [(9, 0.5)]


# ── what only shows a run ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_damaged_line_is_left_out_and_named_once_for_those_who_watch(run):
    with RunLog(run) as log:
        for iteration in range(3):
            log.write("ppo", iteration, {"score/mean": 1.0})
    lines = run.metrics.read_bytes().splitlines(keepends=True)
    run.metrics.write_bytes(lines[0] + lines[1].replace(b'"ppo"', b'\xf0ppo"') + lines[2])
    warnings = []
    with RunLog(run, warn=warnings.append) as log:
        assert [row["iteration"] for row in log.rows("ppo")] == [0, 2]
    (warning,) = warnings
    assert warning.startswith(f"{run.metrics}:2: the line is damaged (1 in all)")


def test_a_flipped_bit_that_leaves_json_is_noticed_when_a_run_is_resumed(run):
    with RunLog(run) as log:
        log.write("ppo", 0, {"score/mean": 1.5})
        log.write_samples("ppo", 0, [{"response": "tea"}])
        position = log.position()
    warnings = []
    with RunLog(run, warn=warnings.append) as log:
        log.truncate(position)
        assert warnings == []
    run.samples.write_bytes(run.samples.read_bytes().replace(b"tea", b"tee"))
    with RunLog(run, warn=warnings.append) as log:
        log.truncate(position)
        log.write_samples("ppo", 1, [{"response": "more"}])  # at the end, though the file was read from its beginning
    (warning,) = warnings
    assert warning.startswith(f"{run.samples} is not what it was when the checkpoint was written")
    assert [json.loads(line)["iteration"] for line in run.samples.read_text().splitlines()] == [0, 1]


def test_tensorboard_never_ends_a_run_and_is_complained_of_once(run):
    run.tensorboard.parent.mkdir(parents=True, exist_ok=True)
    run.tensorboard.write_text("a file where a directory should be")
    warnings = []
    with RunLog(run, warn=warnings.append) as log:
        for stage in ("sft", "ppo"):
            for iteration in range(2):
                log.write(stage, iteration, {"loss": 1.0})
    (warning,) = warnings
    assert warning.startswith(f"TensorBoard's files in {run.tensorboard} cannot be written (")
    assert len(run.metrics.read_text().splitlines()) == 4


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of TensorBoard's own thread
def test_tensorboard_files_that_vanish_while_a_run_is_on_do_not_end_it(run):
    warnings = []
    with RunLog(run, warn=warnings.append) as log:
        log.write("ppo", 0, {"loss": 1.0})
        run.tensorboard.rename(run.path / "gone")  # at once: TensorBoard's thread writes meanwhile
        run.tensorboard.write_text("")
        log.write("ppo", 1, {"loss": 1.0})
        log.write("sft", 0, {"loss": 1.0})
    assert len(warnings) <= 1
    assert len(run.metrics.read_text().splitlines()) == 3
