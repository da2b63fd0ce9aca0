"""Whichever rank fails, all learn which and why, and one says it; with a store and a clock that are made up."""

import json
import os
import socket

import pytest

from rlhfkit.distributed import faults
from rlhfkit.distributed.faults import Fault, FaultWatch, life_key, post, written
from rlhfkit.errors import LostRankError, RewardError


class FakeStore:
    """A dictionary; `is_gone` makes every call fail."""

    def __init__(self):
        self.held, self.is_gone = {}, False

    def _held(self):
        if self.is_gone:
            raise RuntimeError("Broken pipe")
        return self.held

    def set(self, key, value):
        self._held()[key] = value.encode()

    def get(self, key):
        return self._held()[key]

    def check(self, keys):
        return all(key in self._held() for key in keys)

    def compare_set(self, key, expected, desired):
        return self._held().setdefault(key, desired.encode())


class Together:
    """Watches of several ranks, whose threads' work is done here, second by second."""

    def __init__(self, size, monkeypatch):
        self.now, self.store, self.left, self.stopped = 0.0, FakeStore(), {}, set()
        self.watches = [
            FaultWatch(
                self.store, rank, size, clock=lambda: self.now, leave=lambda code, rank=rank: self._leave(rank, code)
            )
            for rank in range(size)
        ]
        for watch in self.watches:
            watch.joined()
            # In place of waiting for the thread that talks.
            monkeypatch.setattr(watch._known, "wait", lambda limit, watch=watch: self._until_known(watch, limit))

    def _leave(self, rank, code):
        self.left.setdefault(rank, (code, self.now))
        self.stopped.add(rank)

    def _until_known(self, watch, limit):
        until = self.now + limit
        while watch.fault is None and self.now < until:
            self.go_on(1)

    def go_on(self, seconds):
        for _ in range(int(seconds)):
            self.now += 1
            for watch in self.watches:
                if watch.rank not in self.stopped and watch.fault is None:
                    try:
                        watch.turn()
                    except RuntimeError as error:
                        watch._lose_store(str(error))
            for watch in self.watches:
                if watch.rank not in self.stopped:
                    watch.look()

    def own_error(self, rank, error):
        """A rank begins to fail, and does not wait yet."""
        watch = self.watches[rank]
        wait, watch._known.wait = watch._known.wait, lambda limit: None
        watch.fail(error)
        watch._known.wait, watch.fault, watch._is_said = wait, None, False


@pytest.fixture
def three(monkeypatch):
    together = Together(3, monkeypatch)
    together.go_on(4)
    return together


def test_ranks_that_live_find_nothing_however_long_it_takes(three):
    three.go_on(10_000)
    assert [watch.fault for watch in three.watches] == [None] * 3
    assert not three.left


def test_error_of_one_rank_is_said_by_it_with_its_place(three, monkeypatch):
    monkeypatch.setattr("rlhfkit.machine.watchdog._newest", None)  # of a test before
    fault = three.watches[1].fail(RewardError("the endpoint answers 500"))
    assert fault.by == 1
    assert fault.words() == (
        f"rank 1 of 3 (host {socket.gethostname()}, process {os.getpid()}): the endpoint answers 500"
    )
    assert three.now <= 8
    three.go_on(2)
    assert [watch.fault for watch in three.watches] == [fault] * 3


def test_an_error_that_is_not_ours_is_named_by_its_class(three):
    assert "ZeroDivisionError: division by zero" in three.watches[2].fail(ZeroDivisionError("division by zero")).words()


def test_phase_is_named(monkeypatch, three):
    monkeypatch.setattr(faults, "current_phases", lambda: ("ppo", "rollout", "reward"))
    assert "in phase ppo / rollout / reward: no" in three.watches[1].fail(RewardError("no")).words()


def test_the_same_error_of_all_is_said_once_and_plainly(three):
    error = RewardError("ppo.reward pays nan")
    three.own_error(0, error)
    three.own_error(2, error)
    fault = three.watches[1].fail(error)
    assert (fault.words(), fault.by) == ("ppo.reward pays nan", 0)
    assert three.watches[0].fail(error) == three.watches[2].fail(error) == fault


def test_of_two_errors_one_is_said_and_the_other_waits(three):
    three.own_error(2, RewardError("one"))
    fault = three.watches[1].fail(RewardError("another"))
    assert (fault.rank, fault.by, fault.why, fault.of_all) == (1, 1, "another", False)
    assert three.watches[2].fail(RewardError("one")) == fault


def test_what_follows_from_the_loss_of_a_rank_is_told_from_its_cause(three):
    """As torch's own errors are, and a reward's in other words."""
    fault = post(three.store, Fault(1, 3, "b", 7, "ppo", "was killed by SIGKILL", by=-1))
    for error in (
        LostRankError("no answer"),
        RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"),
    ):
        assert three.watches[0].fail(error) == fault
    try:
        try:
            raise LostRankError("no answer")
        except LostRankError as loss:
            raise RewardError("the function failed") from loss
    except RewardError as error:
        assert three.watches[2].fail(error) == fault


@pytest.mark.parametrize("is_broken", [False, True])
def test_silent_rank_is_lost_and_one_other_says_so(three, is_broken):
    three.stopped.add(1)
    before = three.now
    if is_broken:
        fault = three.watches[0].fail(LostRankError("Connection closed by peer"))
    else:
        three.go_on(34)
        fault = three.watches[0].fault
    assert three.now - before <= (11 if is_broken else 34)
    assert fault.rank == 1
    assert fault.by in (0, 2)
    assert fault.words().startswith("rank 1 of 3") and "no sign of life" in fault.words()
    three.go_on(4)
    assert three.watches[2].fault == fault


def test_where_the_main_thread_hangs_the_process_is_ended_within_a_minute(three, capsys):
    three.stopped.add(1)
    three.go_on(70)
    assert three.left.keys() == {0, 2}
    assert all(code == 1 and at < 4 + 60 for code, at in three.left.values())
    assert capsys.readouterr().err.count("rank 1 of 3") == 1


def test_time_in_which_a_process_itself_stood_still_is_not_silence_of_others(three):
    three.now += 3600  # Ctrl-Z, or a laptop that is closed
    three.go_on(10)
    assert [watch.fault for watch in three.watches] == [None] * 3


def test_store_that_is_gone_is_said_once_on_a_machine(three, capsys):
    three.store.is_gone = True
    three.go_on(20)
    assert set(three.left) == {0, 1, 2}
    assert capsys.readouterr().err.count("cannot be reached any more (Broken pipe)") == 1


def test_store_that_is_gone_is_said_by_the_first_that_lives(three, capsys, monkeypatch):
    monkeypatch.setattr(faults, "_is_alive", lambda pid: False)  # whoever was killed with the store
    three.store.is_gone = True
    three.go_on(2)
    assert [watch.fault.by for watch in three.watches] == [0, 1, 2]


def test_store_that_is_gone_is_said_on_each_machine(monkeypatch):
    together = Together(4, monkeypatch)
    for watch in together.watches:
        watch._here = range(0, 2) if watch.rank < 2 else range(2, 4)
    together.go_on(4)
    together.store.is_gone = True
    together.go_on(2)
    assert [watch.fault.by for watch in together.watches] == [0, 0, 2, 2]


def test_own_error_is_said_where_the_store_is_gone(three):
    three.store.is_gone = True
    fault = three.watches[2].fail(RewardError("the endpoint answers 500"))
    assert fault.by == 2 and "the endpoint answers 500" in fault.words()


def test_store_that_never_answers_is_gone_too(three):
    watch = three.watches[2]
    three.stopped |= {0, 1}
    watch.turn = lambda: None  # stands for one that is stuck in the middle
    three.go_on(31)
    assert "no answer for" in watch.fault.words()


def test_store_that_went_with_a_first_rank_that_was_done_is_no_fault(three):
    three.stopped.add(0)
    three.store.set(life_key(0), "")
    three.go_on(2)
    three.store.is_gone = True
    three.go_on(60)
    assert not three.left


def test_rank_that_has_left_is_named_only_where_others_wait_for_it(three):
    three.stopped.add(1)
    three.store.set(life_key(1), "")
    three.go_on(100)
    assert three.watches[0].fault is None
    fault = three.watches[0].fail(LostRankError("Connection closed by peer"))
    assert fault.rank == 1 and "has ended its program" in fault.words()


def test_rank_that_never_comes_is_named(monkeypatch):
    together = Together(2, monkeypatch)
    together.stopped.add(1)
    together.go_on(299)
    assert together.watches[0].fault is None
    together.go_on(3)
    assert "rank 1 of 2 (host unknown, process 0): has not come within 300 s" in together.watches[0].fault.words()


def test_rank_that_cannot_reach_the_others_says_over_which_interface(monkeypatch):
    store = FakeStore()
    watch = FaultWatch(
        store, 0, 1, way="the interface eth0", clock=iter(range(10_000)).__next__, leave=lambda code: None
    )
    for _ in range(310):
        watch.turn()
        watch.look()
    assert "cannot reach the others over the interface eth0" in watch.fault.words()


def test_interrupt_of_one_ends_all_like_one(three):
    fault = three.watches[1].fail(KeyboardInterrupt())
    assert fault.is_interrupt
    three.go_on(1)
    assert three.watches[0].fail(LostRankError("Connection closed by peer")) == fault
    three.go_on(20)
    assert three.left[2][0] == 130  # whose main thread hangs


def test_interrupt_that_comes_because_a_rank_was_killed_is_not_the_cause(three):
    """As torchrun sends it to the others."""
    three.watches[1].turn()  # its last sign of life, which nobody has heard yet
    three.stopped.add(1)
    three.own_error(2, KeyboardInterrupt())
    fault = three.watches[0].fail(KeyboardInterrupt())
    assert (fault.rank, fault.is_interrupt) == (1, False)


def test_the_first_fault_stays():
    store = FakeStore()
    first = Fault(0, 2, "a", 1, "", "first", by=0)
    assert written(store) is None
    assert post(store, first) == post(store, Fault(1, 2, "b", 2, "", "second", by=1)) == written(store) == first


def test_threads_end_with_stop_and_leave_a_life_that_is_over():
    store = FakeStore()
    watch = FaultWatch(store, 0, 1)
    watch.start()
    assert json.loads(store.get(life_key(0)))["pid"] == os.getpid()
    watch.stop()
    assert store.get(life_key(0)) == b""
    assert not any(thread.is_alive() for thread in watch._threads)


def test_secrets_are_not_said(three, capsys, monkeypatch):
    monkeypatch.setattr(faults, "hidden", lambda text: text.replace("sesame", "…"))
    post(three.store, Fault(1, 3, "b", 7, "", "https://user:sesame@host answers 500", by=0))
    three.go_on(30)
    assert "sesame" not in capsys.readouterr().err
