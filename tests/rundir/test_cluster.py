"""What `cluster.json` says, whoever wrote it; and what is asked of a driver."""

import json

import pytest

from rlhfkit.errors import CheckpointError
from rlhfkit.rundir.cluster import MOST_ROWS, Wanted, ask_for, read_cluster, refused, taken_request
from rlhfkit.rundir.directory import RunDir


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path)


def written(run, **content):
    run.cluster.write_text(json.dumps(content), encoding="utf-8")


def test_a_run_on_no_cluster_has_no_table(run):
    assert read_cluster(run) is None


def test_a_table_is_read_as_it_was_written(run):
    worker = {"name": "sampler-0", "state": "slow", "host": "node-7", "pid": 12, "iteration": 3, "chunks": 9}
    written(
        run,
        time=100.0,
        iteration=4,
        trainers={"number": 2, "restarts": 1, "silent_seconds": 0.5},
        wanted={"samplers": 1, "reward_workers": 0},
        sampler={"workers": [{**worker, "per_second": 81.5, "restarts": 2, "faults": 1}], "waiting_chunks": 5},
        events=[
            {"time": 90.0, "what": "lost", "who": "sampler-0", "why": "gone", "lost_seconds": 1.5},
            {"time": 80.0, "what": "joined", "who": "sampler-0"},
        ],
    )
    table = read_cluster(run, now=103.0)
    assert (table.state, table.age_seconds, table.iteration) == ("running", 3.0, 4)
    assert (table.num_trainers, table.trainer_restarts, table.silent_seconds) == (2, 1, 0.5)
    (row,) = table.samplers.rows
    assert (row.name, row.state, row.host, row.pid, row.iteration) == ("sampler-0", "slow", "node-7", 12, 3)
    assert (row.per_second, row.restarts, row.faults, table.samplers.waiting_chunks) == (81.5, 2, 1, 5)
    assert [(event.what, event.lost_seconds) for event in table.events] == [("joined", None), ("lost", 1.5)]
    assert table.wanted == Wanted(1, 0)
    assert table.reward_workers.rows == ()


@pytest.mark.parametrize(
    ("said", "age", "state"),
    [
        ("running", 10, "running"),
        ("running", 180, "gone"),
        ("done", 180, "done"),
        ("stopped", 1, "stopped"),
        (None, 180, "gone"),
        (["done"], 1, "running"),
    ],
)
def test_a_driver_that_writes_no_more_is_gone(run, said, age, state):
    written(run, time=1000.0, state=said)
    assert read_cluster(run, now=1000.0 + age).state == state


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"a": ' * 100_000, "\x00"])
def test_a_damaged_file_is_an_error_of_ours(run, content):
    run.cluster.write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"cluster\.json is damaged"):
        read_cluster(run)


@pytest.mark.parametrize("wrong", [None, 3, "x", [], {}, -1, 1e300, True, ["x"], {"a": {}}])
def test_wrong_values_are_left_out(run, wrong):
    keys = ("time", "state", "iteration", "trainers", "wanted", "sampler", "reward-worker", "events")
    written(run, **dict.fromkeys(keys, wrong))
    assert read_cluster(run).samplers.rows == ()
    row = dict.fromkeys(("name", "state", "host", "pid", "iteration", "chunks", "per_second", "restarts"), wrong)
    written(run, sampler={"workers": [row, wrong]}, events=[wrong, {"time": wrong}, {"time": 1.0, "why": wrong}])
    table = read_cluster(run)
    assert len(table.samplers.rows) == 2
    assert table.samplers.rows[0].state == ""
    assert all(0 <= event.time < 1e10 for event in table.events)


def test_names_of_others_are_short_and_steer_no_terminal(run):
    host = "node\x1b[2J\n" + "x" * 1000
    written(run, sampler={"workers": [{"name": "a", "host": host}] * (MOST_ROWS + 5)})
    workers = read_cluster(run).samplers
    assert workers.rows[0].host.startswith("node [2J x")
    assert len(workers.rows[0].host) == 300
    assert (len(workers.rows), workers.num_left_out) == (MOST_ROWS, 5)


def test_a_request_is_taken_once(run):
    assert taken_request(run) is None
    ask_for(run, Wanted(samplers=3))
    assert taken_request(run) == Wanted(samplers=3, reward_workers=None)
    assert taken_request(run) is None
    assert list(run.path.iterdir()) == []


@pytest.mark.parametrize("content", ['{"samplers": "many"}', '{"samplers": true}', '{"samplers": 1.5}', "no JSON"])
def test_a_request_that_is_none_is_an_error_and_gone(run, content):
    run.cluster_request.write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match="cluster_request"):
        taken_request(run)
    assert list(run.path.iterdir()) == []


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (Wanted(samplers=0), "0 samplers are asked for; expected 1 to 1000"),
        (Wanted(samplers=-3), "expected 1 to 1000"),
        (Wanted(samplers=1001), "1001 samplers"),
        (Wanted(reward_workers=2), "has begun without any"),
    ],
)
def test_what_a_run_cannot_have_is_refused(asked, words):
    assert words in refused(asked, Wanted(samplers=1, reward_workers=0))


def test_the_last_reward_worker_stays():
    now = Wanted(samplers=1, reward_workers=2)
    assert "nobody else scores" in refused(Wanted(reward_workers=0), now)
    assert refused(Wanted(samplers=1000, reward_workers=1), now) is None
