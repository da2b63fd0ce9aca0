"""The launcher starts ranks, passes signals on, and says how a rank ended that could not say so itself."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhfkit.distributed.joining import interface_towards
from rlhfkit.distributed.launching import environments, launch


def ranks_that(program):
    """A command for ranks: python without torch's parts that take long."""
    return [sys.executable, "-c", f"import os, signal, sys, time; rank = os.environ['RANK']\n{program}"]


def test_all_end_well():
    assert launch(2, ranks_that("")) == 0


def test_code_of_the_first_that_fails():
    assert launch(2, ranks_that("sys.exit(3 if rank == '1' else 0)")) == 3


@pytest.mark.parametrize(
    ("name", "words"), [("SIGKILL", "lower ppo.microbatch_tokens"), ("SIGSEGV", "was killed by SIGSEGV. The same")]
)
def test_what_a_signal_did_is_said(name, words, capfd, monkeypatch):
    monkeypatch.setattr("rlhfkit.distributed.launching.GRACE_SECONDS", 0.5)
    program = f"if rank == '1': os.kill(os.getpid(), signal.{name})\ntime.sleep(60)"
    start = time.monotonic()
    assert launch(2, ranks_that(program)) == 128 + getattr(signal, name)
    assert time.monotonic() - start < 5
    said = capfd.readouterr().err
    assert re.fullmatch(rf"error: rank 1 of 2 \(host .*, process \d+\): was killed by {name}.*\n", said)
    assert words in said


@pytest.mark.thorough
def test_a_rank_that_others_call_silent_is_ended_at_once():
    """It may be stopped, and then it would not end by itself."""
    post = (
        "from rlhfkit.distributed.faults import Fault, post\n"
        "from torch.distributed import PrefixStore, TCPStore\n"
        "store = TCPStore('127.0.0.1', int(os.environ['MASTER_PORT']), is_master=False)\n"
        "post(PrefixStore('rlhfkit', store), Fault(1, 2, 'a', 1, '', 'is silent', by=0))\n"
    )
    program = "if rank == '1': os.kill(os.getpid(), signal.SIGSTOP)\n" + post + "sys.exit(1)"
    start = time.monotonic()
    assert launch(2, ranks_that(program)) == 1
    assert time.monotonic() - start < 15


@pytest.mark.thorough
@pytest.mark.parametrize(("is_interrupt", "code"), [(False, 1), (True, 130)])
def test_a_rank_that_is_aborted_after_it_has_said_why_has_failed_by_that(is_interrupt, code, capfd):
    post = (
        "from rlhfkit.distributed.faults import Fault, post\n"
        "from torch.distributed import PrefixStore, TCPStore\n"
        "store = TCPStore('127.0.0.1', int(os.environ['MASTER_PORT']), is_master=False)\n"
        f"post(PrefixStore('rlhfkit', store), Fault(1, 2, 'a', 1, '', 'x', by=1, is_interrupt={is_interrupt}))\n"
    )
    assert launch(2, ranks_that(f"{post}os.kill(os.getpid(), signal.SIGABRT)")) == code
    assert capfd.readouterr().err == ""  # the rank has


@pytest.mark.thorough
@pytest.mark.parametrize("to_group", [False, True], ids=["the launcher alone", "all of them"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_reach_all_ranks_and_end_them_as_interrupted(name, to_group, tmp_path):
    """Before they heed signals as well as after."""
    ranks = (
        "from pathlib import Path; from rlhfkit.machine.interrupts import interrupts_wait\n"
        f"with interrupts_wait('x', says=rank == '0') as come:\n    Path({str(tmp_path)!r}, rank).touch()\n"
        "    while not come(): time.sleep(0.05)\n"
        "    time.sleep(0.4)\n"
        "sys.exit(130)"
    )
    program = (
        f"import sys; from rlhfkit.distributed.launching import launch; sys.exit(launch(2, {ranks_that(ranks)!r}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.05)
    (os.killpg if to_group else os.kill)(process.pid, getattr(signal, name))
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert said.strip() == "finishing x, then saving; once more stops at once"


@pytest.mark.thorough
def test_a_signal_before_ranks_heed_it_is_an_interrupt_and_no_fault(tmp_path):
    started = tmp_path / "started"
    ranks = ranks_that(f"open({str(started)!r}, 'w').close(); time.sleep(60)")
    program = f"import sys; from rlhfkit.distributed.launching import launch; sys.exit(launch(2, {ranks!r}))"
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    while not started.exists():
        time.sleep(0.05)
    process.terminate()
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (130, "")


def test_cores_are_shared_out_unless_threads_are_set(monkeypatch):
    monkeypatch.setattr("rlhfkit.distributed.launching._cores", lambda: range(9))
    assert [each["OMP_NUM_THREADS"] for each in environments(4, 1, {})] == ["2"] * 4
    assert [each["OMP_NUM_THREADS"] for each in environments(2, 1, {"OMP_NUM_THREADS": "7"})] == ["7"] * 2


@pytest.mark.skipif(not Path("/proc").exists(), reason="asks Linux")
def test_interface_is_the_one_that_leads_there():
    assert interface_towards("127.0.0.1", 1) == "lo"
    assert interface_towards("no.such.host.invalid", 1) is None
