"""What a tracker does beside a run, and how it fails there, is not the run's."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from rlhfkit.tracking import process
from rlhfkit.tracking.process import tracked

pytestmark = pytest.mark.thorough

FAKE = """
import json, os, pathlib, sys, time
MODE = os.environ["FAKE_MODE"]
BOOK = pathlib.Path(os.environ["FAKE_BOOK"])
def note(**line):
    with BOOK.open("a") as file: file.write(json.dumps(line) + "\\n")
class Settings(dict): pass
class Run:
    id, url, dir = "r", "http://user:hunter2@tracker.example/r?api_key=hunter2", "."
    def define_metric(self, *names, **more): pass
    def log(self, values):
        if MODE == "log": raise OSError("the network is gone")
        if MODE == "dies": os._exit(9)
        note(**values)
    def finish(self, exit_code):
        if MODE == "hangs": time.sleep(100)
        note(exit_code=exit_code)
def init(**given):
    print("noise of a library", flush=True); print("noise", file=sys.stderr, flush=True)
    if MODE == "init": raise RuntimeError("no answer from http://me:hunter2@host")
    return Run()
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A package `wandb` that does what its mode says; the lines that it got."""
    (tmp_path / "packages" / "wandb").mkdir(parents=True)
    (tmp_path / "packages" / "wandb" / "__init__.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"), prepend=os.pathsep)
    monkeypatch.setenv("FAKE_BOOK", str(tmp_path / "book"))

    def set_mode(mode):
        monkeypatch.setenv("FAKE_MODE", mode)
        return lambda: (tmp_path / "book").read_text().splitlines() if (tmp_path / "book").exists() else []

    return set_mode


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_run_is_told_to_the_tracker_while_it_goes_on(fake, run, write, capfd):
    book, notes, warnings = fake("works"), [], []
    with tracked(run, ["wandb"], note=notes.append, warn=warnings.append):
        write("ppo", 0, 1)
        wait_for(lambda: len(book()) == 2)
        write("ppo", 2, 2)
    assert book()[0] == '{"ppo/iteration": 0, "ppo/score/mean": 0.5}'
    assert book()[2:] == ['{"ppo/iteration": 2, "ppo/score/mean": 2.5}', '{"exit_code": 0}']
    assert warnings == [] and notes == ["Weights & Biases: http://tracker.example/r?api_key=(hidden)"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("mode", "words"),
    [("init", "no answer from http://host"), ("log", "the network is gone"), ("dies", "ended with code 9")],
)
def test_whatever_goes_wrong_with_a_tracker_is_one_warning_and_the_run_goes_on(fake, run, write, mode, words):
    fake(mode)
    warnings = []
    with tracked(run, ["wandb"], note=str, warn=warnings.append) as forget:
        write("ppo", 0, 3)
        time.sleep(2.5)
        forget("ppo")
        write("ppo", 4, 5)
    (warning,) = warnings
    assert warning.startswith("Weights & Biases gets no more of the run (") and words in warning
    assert len(run.metrics.read_text().splitlines()) == 6


def test_a_tracker_that_does_not_end_is_ended(fake, run, write, monkeypatch):
    fake("hangs")
    monkeypatch.setattr(process, "END_SECONDS", 3.0)
    warnings, start = [], time.monotonic()
    with tracked(run, ["wandb"], note=str, warn=warnings.append):
        write("ppo", 0, 0)
    assert time.monotonic() - start < 10
    assert len(warnings) == 1 and "it has not sent the rest within 3 s" in warnings[0]


def test_an_error_of_the_run_is_what_the_tracker_hears(fake, run, write):
    book = fake("works")
    with pytest.raises(ZeroDivisionError), tracked(run, ["wandb"], note=str, warn=str):
        write("ppo", 0, 0)
        1 / 0  # noqa: B018
    assert book()[-1] == '{"exit_code": 1}'


def test_what_a_killed_run_had_written_is_sent_all_the_same(fake, run):
    book = fake("works")
    program = f"""
        import os, time
        from rlhfkit.rundir.directory import RunDir
        from rlhfkit.rundir.log import RunLog
        from rlhfkit.tracking.process import tracked
        run = RunDir({str(run.path)!r})
        with tracked(run, ["wandb"], note=str, warn=print), RunLog(run, tensorboard=False) as log:
            log.write("ppo", 0, {{"score/mean": 1.0}})
            print("written", flush=True)
            time.sleep(60)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"written\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    wait_for(lambda: len(book()) == 2)
    assert book() == ['{"ppo/iteration": 0, "ppo/score/mean": 1.0}', '{"exit_code": 1}']
