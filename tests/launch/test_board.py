"""The board, where driver and trainers leave word for each other, and what trainers make of it."""

import signal
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from rlhfkit.launch.board import Board, Orders
from rlhfkit.machine.interrupts import interrupts_wait


def test_a_board_that_has_started_anew_does_not_know_what_the_driver_wants():
    board = Board()
    assert board.beat([], {}, 0) is None
    board.order(Orders(workers=("sampler-0",)))
    assert board.beat([], {}, 0) == Orders(workers=("sampler-0",))


def test_lines_are_handed_out_once_and_the_rest_again():
    board = Board()
    board.beat(["a"], {"sampler": {}}, 3)
    board.beat(["b"], {"sampler": {}}, 4)
    first, second = board.news(), board.news()
    assert (first.lines, second.lines) == (["a", "b"], [])
    assert (second.table, second.iteration) == ({"sampler": {}}, 4)


@pytest.fixture
def trainer(monkeypatch):
    """The module, where `ray.get` answers with what it is given."""
    trainer = pytest.importorskip("rlhfkit.launch.trainer", exc_type=ImportError)
    monkeypatch.setattr(trainer.ray, "get", lambda orders, *, timeout: orders)
    return trainer


def beats_of(trainer, board: Callable[[], Board], transport: object):
    workload = SimpleNamespace(transports={"sampler": transport}, table=dict, iteration=1)
    handle = SimpleNamespace(beat=SimpleNamespace(remote=lambda *given: board().beat(*given)))
    return trainer.Beats(handle, trainer.Lines(), workload)


def test_workers_stay_when_the_board_is_lost(trainer):
    boards, transport = [Board()], SimpleNamespace(orders=Orders())
    boards[-1].order(Orders(workers=("sampler-0",)))
    beats = beats_of(trainer, lambda: boards[-1], transport)
    beats._turn()
    boards.append(Board())
    beats._turn()
    assert transport.orders.workers == ("sampler-0",)


def test_the_order_to_stop_comes_through_where_the_signal_is_blocked(trainer):
    """As Ray blocks SIGINT in its workers."""
    board = Board()
    board.order(Orders(stop=True))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with interrupts_wait("this iteration", says=False) as interrupted:
            beats_of(trainer, lambda: board, SimpleNamespace())._turn()
            assert interrupted()
    finally:
        signal.sigtimedwait({signal.SIGINT}, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
