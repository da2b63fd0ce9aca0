"""A run whose directory another process works in: it waits for that one, for a while."""

import threading

import pytest

from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.lock import is_locked, locked

pytest.importorskip("ray")

from rlhfkit.launch.trainer import wait_for_lock


def test_a_free_directory_is_not_waited_for(tmp_path):
    told = []
    wait_for_lock(RunDir(tmp_path), told.append)
    assert told == []


def test_the_end_of_another_process_is_waited_for(tmp_path):
    run, told, may_end, is_held = RunDir(tmp_path), [], threading.Event(), threading.Event()

    def other():
        with locked(run):
            is_held.set()
            may_end.wait()

    thread = threading.Thread(target=other)
    thread.start()
    is_held.wait()

    def tell(words):
        told.append(words)
        may_end.set()

    wait_for_lock(run, tell, seconds=60.0)
    assert not is_locked(run)
    thread.join()
    assert told == [
        f"another process still works in {tmp_path}, perhaps for a driver that was killed; waiting for its end, "
        "for 60 s at most"
    ]


def test_one_that_stays_is_not_waited_for_for_ever(tmp_path):
    run = RunDir(tmp_path)
    with locked(run):
        wait_for_lock(run, lambda words: None, seconds=0.0)
        assert is_locked(run)
