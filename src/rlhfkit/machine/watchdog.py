"""A watchdog over a run: it names the phase that gives no sign of life, and where each thread is."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from pathlib import Path
from types import TracebackType
from typing import Self

from rlhfkit.config.watchdog import WatchdogConfig

__all__ = ["Watchdog", "current_phases", "failed_phases", "phase", "sign_of_life", "unwatched"]

# A phase is known where it runs and not to the objects on the way, which would all have to pass it on.
_current: ContextVar["Watchdog | None"] = ContextVar("watchdog", default=None)
# The one that was entered last, for other threads, to which a context does not go.
_newest: "Watchdog | None" = None

EXIT_CODE = 1


class Watchdog:
    """Watches the phases of the block that it is entered for, out of a thread of its own.

    It goes by a clock that only runs forward, and stands still while the machine sleeps.
    """

    def __init__(
        self,
        config: WatchdogConfig,
        stacks: Path,
        *,
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        """Warn by `warn`, with the threads' stacks in the file `stacks`; `leave` ends the process if that is asked for.

        Ending it takes no part in what hangs, so nothing is cleaned up; checkpoints are whole or not there.
        """
        self._config, self._stacks, self._warn, self._clock, self._leave = config, stacks, warn, clock, leave
        self._phases: tuple[str, ...] = ()
        self._failed: tuple[str, ...] = ()
        self._num_unwatched = 0
        self._since = clock()
        self._limit = config.patience_seconds
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._token: Token[Watchdog | None] | None = None

    def __enter__(self) -> Self:
        global _newest
        self._token, _newest = _current.set(self), self
        self.sign_of_life()
        if self._config.patience_seconds:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._token is not None:
            _current.reset(self._token)

    @property
    def failed(self) -> tuple[str, ...]:
        """The phases, the outermost first, in which an error was raised; none where there was none."""
        return self._failed

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases, the outermost first, that are under way."""
        return self._phases

    def sign_of_life(self) -> None:
        """Begin to wait anew."""
        self._since, self._limit = self._clock(), self._config.patience_seconds

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Give the block a name, until it ends."""
        before, is_on_the_way_out = self._phases, sys.exc_info()[0] is not None
        failed, self._failed = self._failed, ()
        self._phases = (*before, name)
        self.sign_of_life()
        try:
            yield
            if is_on_the_way_out:  # as where the last checkpoint is awaited, after an error that is still to be told
                self._failed = failed
        except BaseException:
            self._failed = self._failed or self._phases
            raise
        finally:
            self._phases = before
            self.sign_of_life()

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """Let the block take as long as it likes."""
        self._num_unwatched += 1
        try:
            yield
        finally:
            self.sign_of_life()
            self._num_unwatched -= 1

    def check(self) -> None:
        """Warn if there was no sign of life for too long; then again after twice that time, and so on."""
        silent = self._clock() - self._since
        if self._num_unwatched or silent < self._limit:
            return
        self._limit *= 2
        # The innermost first: "generation (ppo)".
        outer = f" ({', '.join(self._phases[:-1])})" if len(self._phases) > 1 else ""
        what = f"{self._phases[-1] if self._phases else 'the run'}{outer}"
        self._warn(
            f"no sign of life from {what} for {silent:.0f} s, where watchdog.patience_seconds is "
            f"{self._config.patience_seconds:g}; it may hang: {self._dump(what, silent)}. Stop it with Ctrl-C twice, "
            "and the same command goes on from the last checkpoint; if it is only slow, raise watchdog.patience_seconds"
        )
        if self._config.action == "stop":
            self._warn('the process ends now, since watchdog.action is "stop"')
            self._leave(EXIT_CODE)

    def _dump(self, what: str, silent: float) -> str:
        """Where the stacks of all threads are now written, in words."""
        try:
            with self._stacks.open("a", encoding="utf-8") as file:
                file.write(f"── {what}, silent for {silent:.0f} s, process {os.getpid()} ──\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
                file.write("\n")
        except OSError as error:
            return f"where each thread is could not be written to {self._stacks} ({error.strerror})"
        return f"where each thread is stands in {self._stacks}"

    def _watch(self) -> None:
        while not self._ended.wait(min(10.0, self._config.patience_seconds / 10)):
            self.check()


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Give the block a name for the watchdog, if one watches."""
    watchdog = _current.get()
    if watchdog is None:
        yield
        return
    with watchdog.phase(name):
        yield


@contextmanager
def unwatched() -> Iterator[None]:
    """Let the block take as long as it likes, as where people are waited for."""
    watchdog = _current.get()
    if watchdog is None:
        yield
        return
    with watchdog.unwatched():
        yield


def sign_of_life() -> None:
    """Tell the watchdog, if one watches, that the run moves on."""
    watchdog = _current.get()
    if watchdog is not None:
        watchdog.sign_of_life()


def current_phases() -> tuple[str, ...]:
    """The phases, the outermost first, in which the process works, or an error ended its work; known in any thread."""
    return () if _newest is None else _newest.phases or _newest.failed


def failed_phases() -> tuple[str, ...]:
    """The phases, the outermost first, that the error came from which is being handled."""
    watchdog = _current.get()
    return () if watchdog is None else watchdog.failed
