"""What a driver leaves for people: events that outlive trainers and drivers, what a loss cost, who works."""

import json

import pytest

from rlhfkit.launch.board import News
from rlhfkit.launch.record import Record
from rlhfkit.rundir.cluster import read_cluster
from rlhfkit.rundir.directory import RunDir


@pytest.fixture
def run(tmp_path):
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    run.config.write_text("{}", encoding="utf-8")
    run.recipe.write_text("", encoding="utf-8")
    return run


def news(iteration=0, silent=0.1, *events, **table):
    return News(
        table={"sampler": {"workers": [], "events": list(events), **table}},
        iteration=iteration,
        silent_seconds=silent,
    )


def event(at, what="joined", who="sampler-0", **more):
    return {"time": at, "what": what, "who": who, **more}


def show(record, news, **more):
    given = {"num_trainers": 1, "wanted": {"samplers": 1, "reward_workers": 0}, "starting": {}}
    record.show(news, **{**given, **more})


def test_events_of_trainers_that_are_gone_are_kept_once(run):
    record = Record(run)
    record.hear(news(0, 0.1, event(1.0), event(2.0, "lost")))
    record.hear(news(0, 0.1, event(1.0), event(2.0, "lost")))
    record.hear(news(0, 0.1, event(9.0)))  # of new trainers
    show(record, news())
    assert [(event.time, event.what) for event in read_cluster(run).events] == [
        (1.0, "joined"),
        (2.0, "lost"),
        (9.0, "joined"),
    ]


def test_a_driver_goes_on_with_the_events_of_the_one_before(run):
    record = Record(run)
    record.hear(news(0, 0.1, event(1.0, "lost", why="gone", lost_seconds=2.5)))
    show(record, news())
    another = Record(run)
    another.go_on()
    another.hear(news(0, 0.1, event(5.0)))
    show(another, news())
    events = read_cluster(run).events
    assert [(event.time, event.why, event.lost_seconds) for event in events] == [(1.0, "gone", 2.5), (5.0, "", None)]


def test_a_loss_of_trainers_costs_what_it_takes_to_be_there_again(run, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("rlhfkit.launch.record.time.time", lambda: now[0])
    record = Record(run)
    record.trainers_lost("its machine has ended", 7)
    for now[0], silent, iteration in ((110.0, None, 7), (120.0, 0.1, 0), (130.0, 0.1, 6)):
        record.hear(news(iteration, silent))
    assert "lost_seconds" not in record.events[0]  # new trainers are up, but not where the old ones were
    now[0] = 145.0
    record.hear(news(7))
    now[0] = 190.0
    record.hear(news(9))
    assert record.events[0]["lost_seconds"] == 45.0
    assert record.num_restarts == 1


def test_workers_that_start_are_shown_beside_those_at_work(run):
    record = Record(run)
    told = news(3)
    told.table["sampler"]["workers"] = [{"name": "sampler-0", "state": "working"}]
    show(record, told, starting={"sampler": {"sampler-1": 12.34}}, state="done")
    table = read_cluster(run)
    assert [(row.name, row.state, row.seconds_in_state) for row in table.samplers.rows] == [
        ("sampler-0", "working", None),
        ("sampler-1", "starting", 12.3),
    ]
    assert table.state == "done"


def test_the_timeline_is_written_after_each_iteration_and_at_the_end(run):
    record = Record(run)
    show(record, news(1, spans={"work": [["sampler-0", 1, 0.0, 1.0, False]], "waits": [], "whole_since": None}))
    before = run.cluster_timeline.read_text(encoding="utf-8")
    assert json.loads(before)["sampler"]["work"] == [["sampler-0", 1, 0.0, 1.0, False]]
    later = news(1, spans={"work": [], "waits": [], "whole_since": None})
    show(record, later)
    assert run.cluster_timeline.read_text(encoding="utf-8") == before
    show(record, later, state="done")
    assert run.cluster_timeline.read_text(encoding="utf-8") != before
    assert "spans" not in run.cluster.read_text(encoding="utf-8")


def test_a_directory_that_is_no_run_yet_stays_as_it_is(tmp_path):
    show(Record(RunDir(tmp_path)), news())
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_cannot_be_written_ends_no_run(run, monkeypatch):
    def full(path, value):
        raise FileNotFoundError(2, "removed by a start over")

    monkeypatch.setattr("rlhfkit.launch.record.write_json", full)
    show(Record(run), news())
