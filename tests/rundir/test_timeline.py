"""When who was at work on a cluster: the last whole iterations out of spans."""

import json

import pytest

from rlhfkit.errors import CheckpointError
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.timeline import overlap, read_timeline, union


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path)


def written(run, work, waits, **more):
    sampler = {"whole_since": None, "work": work, "waits": [["trainer", *wait] for wait in waits], **more}
    run.cluster_timeline.write_text(json.dumps({"sampler": sampler}), encoding="utf-8")


def on_a_grid(intervals, *, parts=100, end=100):
    """Places of a fine grid that lie in any of the intervals; an oracle without merging."""
    return {place for place in range(end * parts) for start, stop in intervals if start * parts <= place < stop * parts}


def test_union_and_overlap_agree_with_a_grid():
    one = [(3.0, 7.0), (1.0, 2.0), (6.5, 9.0), (20.0, 30.0), (22.0, 23.0)]
    other = [(0.5, 1.25), (8.0, 21.0), (21.0, 22.5), (29.0, 40.0)]
    assert union(one) == [(1.0, 2.0), (3.0, 9.0), (20.0, 30.0)]
    both = on_a_grid(one) & on_a_grid(other)
    assert overlap(union(one), union(other)) == pytest.approx(len(both) / 100)
    assert overlap(union(other), union(one)) == pytest.approx(len(both) / 100)
    assert overlap([], union(one)) == 0.0


def test_sampling_and_training_in_turn_never_overlap(run):
    """Two iterations of 4 s of sampling and 6 s of training, and the beginning of a third."""
    work = [[f"sampler-{at}", i, 100 + 10 * i, 104 + 10 * i - at, False] for i in range(3) for at in (0, 1)]
    written(run, work, [(i, 100 + 10 * i, 104 + 10 * i, False) for i in range(3)])
    timeline = read_timeline(run)
    assert (timeline.iterations, timeline.starts, timeline.seconds) == ((0, 1), (0.0, 10.0), 20.0)
    assert timeline.training == [(4.0, 10.0), (14.0, 20.0)]
    assert timeline.waiting_share == timeline.sampling_share == pytest.approx(0.4)
    assert timeline.busy_share == pytest.approx(0.35)
    assert timeline.both_share == 0.0
    assert [lane.name for lane in timeline.samplers] == ["sampler-0", "sampler-1"]


def test_sampling_ahead_overlaps_with_training(run):
    """The trainer learns for 6 s of each 8, and meanwhile the next iteration is sampled, for 8 s."""
    work = [["sampler-0", i, 8 * i, 8 * i + 8, False] for i in range(6)]
    written(run, work, [(i, 8 * i + 6, 8 * i + 8, False) for i in range(6)])
    timeline = read_timeline(run)
    assert timeline.iterations == (1, 2, 3, 4)  # the last four that are whole
    assert (timeline.waiting_share, timeline.sampling_share, timeline.both_share) == (0.25, 1.0, 0.75)


def test_waiting_for_scores_is_waiting_too(run):
    content = {
        "sampler": {"work": [], "waits": [["trainer", 0, 0.0, 2.0, False], ["trainer", 1, 10.0, 11.0, False]]},
        "reward-worker": {"work": [["reward-worker-0", None, 2.0, 5.0, True]], "waits": [["trainer", None, 1.5, 5.0]]},
    }
    run.cluster_timeline.write_text(json.dumps(content), encoding="utf-8")
    timeline = read_timeline(run)
    assert timeline.waiting_share == 0.5
    assert timeline.training == [(5.0, 10.0)]
    assert timeline.reward_workers[0].spans[0].is_lost


def test_what_was_forgotten_in_part_is_not_shown(run):
    waits = [(i, 10 * i, 10 * i + 1, False) for i in range(4)]
    written(run, [], waits, whole_since=15.0)
    assert read_timeline(run).iterations == (2,)
    written(run, [], waits, whole_since=25.0)
    assert read_timeline(run) is None


def test_without_two_iterations_there_is_no_picture(run):
    assert read_timeline(run) is None
    written(run, [], [(0, 0.0, 1.0, False)])
    assert read_timeline(run) is None


HUGE = [["trainer", 0, -1e308, 1e308], ["trainer", 1, 1e308, 1e308], ["trainer", 2, 1.0, 1e400]]


@pytest.mark.parametrize(
    "wrong", [None, 3, "x", [], {}, [None], [[]], [["a"]], [["a", 0, "x", 2.0]], [[{}, [], 1, 1e400]], HUGE]
)
def test_wrong_values_are_left_out(run, wrong):
    content = {"sampler": {"work": wrong, "waits": wrong, "whole_since": wrong}, "reward-worker": wrong}
    run.cluster_timeline.write_text(json.dumps(content), encoding="utf-8")
    assert read_timeline(run) is None


def test_a_damaged_file_is_an_error_of_ours(run):
    run.cluster_timeline.write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="cluster_timeline"):
        read_timeline(run)
