"""Ctrl-C that loses nothing: what is running is finished and saved first."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["interrupts_wait"]


@contextmanager
def interrupts_wait(what: str) -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM has come, so that the loop inside can finish `what`, save, and raise KeyboardInterrupt.

    The second one stops at once. In a thread other than the main one signals stay as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    has_come = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal has_come
        if has_come:
            raise KeyboardInterrupt
        has_come = True
        print(f"\nfinishing {what}, then saving; once more stops at once", file=sys.stderr)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: has_come
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
