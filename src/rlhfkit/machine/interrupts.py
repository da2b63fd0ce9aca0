"""Ctrl-C and kind kills that lose nothing: what is running is finished and saved first."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

__all__ = ["FailedRank", "Paused", "Spoken", "ends_like_interrupts", "interrupts_wait"]


class Spoken(Exception):
    """This process of a run ends because of an error that another one tells the user."""


class FailedRank(Exception):
    """This process of a run ends because of an error that nobody foresaw; the message names it, and the rank."""


class Paused(KeyboardInterrupt):
    """PPO is as far as it was to come for now, and saved; the message says how far.

    It is left in good order as an interrupt is, by whatever stands around it, but nobody has interrupted anything.
    """


KIND = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, `kill` or a scheduler at the end of the time, and a terminal or a connection that is gone."""

Handler = Callable[[int, FrameType | None], None]


AT_ONCE_SECONDS = 0.3
"""Signals within this time are one, as a terminal and a parent process may each send theirs; a person needs longer."""
_heeded_at: float | None = None
"""When the last one came that was heeded; None outside of all blocks."""
_num_blocks = 0
"""How many blocks that heed signals this process is in."""


@contextmanager
def interrupts_wait(what: str, *, then: str = "saving", says: bool = True) -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C, SIGTERM or SIGHUP has come, so that the loop inside can finish `what`, save, and raise.

    `then` says what comes after that, for the person who pressed Ctrl-C, unless another process `says` it. What it
    raises is KeyboardInterrupt; the second signal does so at once. In a thread other than the main one signals stay as
    they are.
    """
    has_come = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal has_come
        if has_come:
            raise KeyboardInterrupt
        has_come = True
        if not says:
            return
        with suppress(OSError):  # the terminal may be what is gone
            print(f"\nfinishing {what}, then {then}; once more stops at once", file=sys.stderr)

    with _handled(handle):
        yield lambda: has_come


@contextmanager
def ends_like_interrupts() -> Iterator[None]:
    """In the block SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does, so that it is left in good order."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled(handle):
        yield


@contextmanager
def _handled(handle: Handler) -> Iterator[None]:
    """Signals go to `handle`, except those that are ignored, as SIGHUP is under nohup.

    A process that is forked inside, as by a reward with a pool of workers, has the handlers too, but nothing to save.
    SIGTERM ends it; Ctrl-C and SIGHUP, which come to the whole group, leave it at work until its parent has done.
    """
    global _heeded_at, _num_blocks
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def handle_here(number: int, frame: FrameType | None) -> None:
        global _heeded_at
        if os.getpid() == owner:
            now = time.monotonic()
            if _heeded_at is None or now - _heeded_at > AT_ONCE_SECONDS:
                _heeded_at = now
                handle(number, frame)
        elif number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    heeded = [number for number in KIND if signal.getsignal(number) is not signal.SIG_IGN]
    _num_blocks += 1
    before = {number: signal.signal(number, handle_here) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _num_blocks -= 1
        if _num_blocks == 0:
            _heeded_at = None
