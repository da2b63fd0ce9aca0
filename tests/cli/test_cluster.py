"""`rlhfkit cluster`: the table of a run on a cluster, and changing it while it goes on."""

import json
import threading
import time

import pytest

from rlhfkit.launch.board import SAMPLERS, SCORERS, News
from rlhfkit.launch.crew import Crew
from rlhfkit.launch.record import Record
from rlhfkit.launch.requests import heed, wanted_of
from rlhfkit.rundir.directory import RunDir


@pytest.fixture
def run(tmp_path):
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    run.config.write_text("{}", encoding="utf-8")
    run.recipe.write_text("", encoding="utf-8")
    return run


class Driver:
    """What a driver does at each turn, without Ray: its workers are words."""

    def __init__(self, run, *, samplers=1, reward_workers=0):
        self.run, self.words = run, []
        self.crew = Crew(start=lambda name, kind: name, is_up=lambda worker: True, end=lambda worker: None)
        self.crew.have(SAMPLERS, samplers)
        self.crew.have(SCORERS, reward_workers)
        self.record = Record(run)
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.work)

    def turn(self):
        heed(self.run, self.crew, self.record, note=self.words.append, warn=self.words.append)
        self.crew.look()
        wanted = wanted_of(self.crew)
        self.record.show(
            News(iteration=3, silent_seconds=0.2),
            num_trainers=1,
            wanted={"samplers": wanted.samplers, "reward_workers": wanted.reward_workers},
            starting={},
        )

    def work(self):
        while not self.ended.wait(0.02):
            self.turn()

    def __enter__(self):
        self.turn()
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()


def test_a_run_grows_and_shrinks_while_it_goes_on(invoke, run):
    with Driver(run) as driver:
        code, output, errors = invoke("cluster", str(run.path), "--samplers", "3")
        assert (code, output, errors) == (0, "3 samplers from now on, in place of 1\n", "")
        assert driver.crew.up() == ("sampler-0", "sampler-1", "sampler-2")
        assert invoke("cluster", str(run.path), "--samplers", "1")[:2] == (0, "1 sampler from now on, in place of 3\n")
        assert driver.crew.up() == ("sampler-0",)
    assert driver.words == ["from now on 3 samplers in place of 1", "from now on 1 sampler in place of 3"]
    assert not run.cluster_request.exists()


def test_reward_workers_change_too(invoke, run):
    with Driver(run, reward_workers=1) as driver:
        code, output, _ = invoke("cluster", str(run.path), "--reward-workers", "2", "--samplers", "2")
        assert (code, driver.crew.number(SCORERS), driver.crew.number(SAMPLERS)) == (0, 2, 2)
        assert "2 reward workers from now on, in place of 1" in output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--samplers", "0"), "0 samplers are asked for; expected 1 to 1000"),
        (("--samplers", "1001"), "expected 1 to 1000"),
        (("--reward-workers", "1"), "has begun without any"),
    ],
)
def test_what_cannot_be_had_is_an_error_and_changes_nothing(invoke, run, options, words):
    with Driver(run) as driver:
        code, output, errors = invoke("cluster", str(run.path), *options)
        assert (code, output) == (1, "")
        assert words in errors
        assert (driver.crew.number(SAMPLERS), driver.crew.number(SCORERS)) == (1, 0)


def test_a_driver_refuses_what_somebody_else_wrote_into_the_file(run):
    driver = Driver(run)
    for content in ('{"samplers": "all"}', '{"samplers": 0}', "[]", "no JSON"):
        run.cluster_request.write_text(content, encoding="utf-8")
        driver.turn()
        assert driver.words.pop().startswith("the workers stay as they are: ")
        assert not run.cluster_request.exists()
    assert driver.crew.number(SAMPLERS) == 1


def test_a_driver_that_is_gone_is_not_asked(invoke, run):
    Driver(run).turn()
    table = json.loads(run.cluster.read_text(encoding="utf-8"))
    run.cluster.write_text(json.dumps({**table, "time": time.time() - 190}), encoding="utf-8")
    code, _, errors = invoke("cluster", str(run.path), "--samplers", "2")
    assert code == 1
    assert "written 3 min 10 s ago: the driver is not running" in errors
    assert not run.cluster_request.exists()
    assert "the driver is not running" in invoke("cluster", str(run.path))[1]


def test_a_driver_that_does_not_answer_is_an_error_and_finds_nothing_later(invoke, run, monkeypatch):
    monkeypatch.setattr("rlhfkit.cli.cluster.ANSWER_SECONDS", 0.3)
    Driver(run).turn()
    code, _, errors = invoke("cluster", str(run.path), "--samplers", "2")
    assert code == 1
    assert "has not answered" in errors
    assert not run.cluster_request.exists()


def test_the_table_shows_workers_queue_and_what_losses_cost(invoke, run):
    row = {"name": "sampler-7", "state": "slow", "host": "node-b", "pid": 4711, "iteration": 12, "per_second": 366.1}
    event = {"time": time.time(), "what": "lost", "who": "sampler-7", "why": "its machine has ended"}
    run.cluster.write_text(
        json.dumps(
            {
                "time": time.time(),
                "state": "running",
                "iteration": 13,
                "trainers": {"number": 2, "restarts": 1, "silent_seconds": 0.4},
                "sampler": {
                    "workers": [{**row, "chunks": 51, "restarts": 2, "faults": 1, "seconds_in_state": 4.4}],
                    "open_chunks": 9,
                    "waiting_chunks": 5,
                },
                "events": [{**event, "lost_seconds": 8.3}],
            }
        ),
        encoding="utf-8",
    )
    code, output, _ = invoke("cluster", str(run.path))
    assert code == 0
    assert "running, iteration 13, written" in output
    assert "2 trainers, started again 1 time, last sign of life" in output
    row = next(line for line in output.splitlines() if "sampler-7" in line)
    assert row.split() == ["sampler-7", "slow", "4.4", "s", "node-b", "4711", "12", "366.1", "51", "2", "1"]
    assert "9 chunks not done, 5 of them waiting" in output
    assert any("8.3 s" in line and "its machine has ended" in line for line in output.splitlines())


def test_hostile_names_steer_no_terminal(invoke, run):
    row = {"name": "[red]a\x1b[2J", "state": "[bold]", "host": "\x1b]0;x\x07[/red]"}
    run.cluster.write_text(json.dumps({"time": 1e308, "sampler": {"workers": [row]}}), encoding="utf-8")
    code, output, _ = invoke("cluster", str(run.path))
    assert code == 0
    assert "\x1b" not in output and "\x07" not in output
    assert "[red]a" in output and "unknown" in output


def test_a_run_on_one_machine_has_no_table(invoke, run):
    code, _, errors = invoke("cluster", str(run.path))
    assert code == 1
    assert "runs on no cluster" in errors and "--ray" in errors
