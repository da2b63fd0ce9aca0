import multiprocessing
import os
import signal
import time

import pytest

from rlhfkit.machine import interrupts
from rlhfkit.machine.interrupts import ends_like_interrupts, interrupts_wait

FORK = multiprocessing.get_context("fork")


def sleep_after_saying_so(started):
    started.set()
    time.sleep(30)


def forked():
    """A process that has begun, as a reward that uses a pool of them makes it."""
    started = FORK.Event()
    process = FORK.Process(target=sleep_after_saying_so, args=(started,), daemon=True)
    process.start()
    assert started.wait(20)
    return process


def test_a_process_that_is_forked_inside_dies_of_sigterm_without_a_word(capfd):
    for block in (interrupts_wait("this iteration"), ends_like_interrupts()):
        with block:
            process = forked()
            process.terminate()
            process.join(20)
        assert process.exitcode == -signal.SIGTERM
    assert capfd.readouterr() == ("", "")


def test_ctrl_c_leaves_it_to_the_process_that_trains_what_becomes_of_its_workers(capfd):
    with interrupts_wait("this iteration") as has_come:
        process = forked()
        os.kill(process.pid, signal.SIGINT)
        process.join(0.3)
        assert process.is_alive()
        assert capfd.readouterr() == ("", "")
        os.kill(os.getpid(), signal.SIGINT)
        assert has_come()
        process.terminate()
        process.join(20)
    assert "finishing this iteration, then saving" in capfd.readouterr().err


def test_signals_that_come_at_once_are_one_and_a_later_one_stops(capfd, monkeypatch):
    with interrupts_wait("this iteration") as has_come:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(number)
        assert has_come()
        monkeypatch.setattr(interrupts, "AT_ONCE_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err.count("finishing this iteration") == 1


def test_a_signal_that_comes_twice_does_not_disturb_what_follows_the_first():
    with ends_like_interrupts():
        with interrupts_wait("this iteration", says=False) as has_come:
            signal.raise_signal(signal.SIGTERM)
            assert has_come()
        signal.raise_signal(signal.SIGTERM)  # that of the parent process


def test_another_process_may_say_what_a_signal_does(capfd):
    with interrupts_wait("this iteration", says=False) as has_come:
        signal.raise_signal(signal.SIGTERM)
        assert has_come()
    assert capfd.readouterr().err == ""
