"""The head node of a cluster, as a driver sees it: its loss is told before Ray ends this process for it."""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["HeadWatch", "knock", "watched_head"]

KNOCK_SECONDS = 10.0
EVERY_SECONDS = 2.0
TELL_SECONDS = 6.0
RAY_LIMIT = "RAY_gcs_rpc_server_reconnect_timeout_s"
SHARE_OF_LIMIT = 0.75
"""Of the time after which Ray ends every process of the cluster, drivers too, with nothing but its own log."""


def knock(address: str, seconds: float = KNOCK_SECONDS) -> None:
    """Raises: OSError, ValueError, where nobody listens at the address."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), seconds).close()


class HeadWatch:
    """What is known of the head."""

    def __init__(
        self,
        address: str,
        *,
        warn: Callable[[str], None],
        give_up: Callable[[str], None],
        is_there: Callable[[], bool],
        limit_seconds: float,
    ) -> None:
        """`give_up` is called once, with why, when the head is gone for longer than is worth waiting for."""
        self._address, self._warn, self._give_up, self._is_there = address, warn, give_up, is_there
        self._limit_seconds = limit_seconds
        self._seen: float | None = None
        self._is_told = self._has_given_up = False

    def look(self, now: float) -> None:
        """Ask once whether it is there."""
        if self._is_there():
            self._seen, self._is_told = now, False
            return
        gone = now - (now if self._seen is None else self._seen)
        self._seen = now - gone
        if gone >= SHARE_OF_LIMIT * self._limit_seconds and not self._has_given_up:
            self._has_given_up = True
            self._give_up(
                f"the head node at {self._address} has been gone for {gone:.0f} s; Ray's limit is "
                f"{self._limit_seconds:.0f} s ({RAY_LIMIT}); start it again and run the same command: it goes on from "
                "the last checkpoint"
            )
        elif gone >= TELL_SECONDS and not self._is_told:
            self._is_told = True
            self._warn(
                f"the head node at {self._address} has not answered for {gone:.0f} s; the run ends where it stays away "
                f"for {SHARE_OF_LIMIT * self._limit_seconds:.0f} s"
            )


@contextmanager
def watched_head(address: str, warn: Callable[[str], None]) -> Iterator[None]:
    """In the block a thread watches over the head, and ends this process with code 1 where it stays away.

    It holds nothing that is not on the disk; and what asks Ray for something then may wait for ever.
    """
    ended = threading.Event()
    limit = float(os.environ.get(RAY_LIMIT, "60"))
    watch = HeadWatch(address, warn=warn, give_up=_end, is_there=lambda: _answers(address), limit_seconds=limit)

    def work() -> None:
        while not ended.wait(EVERY_SECONDS):
            watch.look(time.monotonic())

    threading.Thread(target=work, name="head", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _answers(address: str) -> bool:
    try:
        knock(address)
    except OSError:
        return False
    return True


def _end(words: str) -> None:
    print(f"error: {words}", file=sys.stderr, flush=True)
    os._exit(1)
