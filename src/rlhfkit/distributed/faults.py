"""One process of a run fails, and all end soon, with one message that says which and why.

What waits for another process in a collective cannot find out why that does not come. So each process has a thread that
says at a common store that it lives, and looks there for what the others say. Whoever fails writes why; of one that
says nothing any more, as after `kill -9` or with the cable pulled, the others do.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from rlhfkit.errors import LostRankError, RlhfkitError
from rlhfkit.machine.watchdog import current_phases

__all__ = ["FAULT", "Fault", "FaultWatch", "Store", "life_key", "phase_of_life", "post"]

FAULT = "fault"
"""Where the first fault stands, for all to see."""

BEAT_SECONDS = 2.0
SILENT_SECONDS = 30.0
"""A rank that has not shown that it lives for so long is lost."""
SILENT_AFTER_BREAK_SECONDS = 8.0
"""The same where a collective has broken already."""
GRACE_SECONDS = 15.0
"""Time for the main thread to end by itself, before its process is ended where it stands."""
TOGETHER_SECONDS = 1.0
"""Ranks that meet the same error do so within this time, and one of them says it."""

EXIT_CODE = 1


class Store(Protocol):
    """What torch.distributed's stores can do, as far as it is needed here."""

    def set(self, key: str, value: str) -> None:
        """Write."""
        ...

    def get(self, key: str) -> bytes:
        """Read, waiting for it."""
        ...

    def check(self, keys: list[str]) -> bool:
        """Whether they are there."""
        ...

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        """Write where nobody has; what stands there then."""
        ...


@dataclass(frozen=True)
class Fault:
    """Which rank failed, and why."""

    rank: int
    size: int
    host: str
    pid: int
    phase: str
    why: str
    by: int
    """The rank that says so to the user; -1 for the launcher."""

    def words(self) -> str:
        """One message."""
        where = f" in phase {self.phase}" if self.phase else ""
        return f"rank {self.rank} of {self.size} (host {self.host}, process {self.pid}){where}: {self.why}"


def life_key(rank: int) -> str:
    """Where a rank shows that it lives."""
    return f"life/{rank}"


def phase_of_life(store: Store, rank: int) -> dict[str, Any]:
    """What a rank said of itself last: host, pid and phase."""
    found: dict[str, Any] = json.loads(store.get(life_key(rank)))
    return found


def post(store: Store, fault: Fault) -> Fault:
    """Write a fault where all look for it; the one that stands there, which is another's if that came first."""
    return Fault(**json.loads(store.compare_set(FAULT, "", json.dumps(asdict(fault)))))


class FaultWatch:
    """Shows that this rank lives, and ends it where another one has failed; a thread from `start` to `stop`."""

    def __init__(self, store: Store, rank: int, size: int, *, leave: Callable[[int], object] = os._exit) -> None:
        """Use `store` from the thread alone; `leave` ends the process where the main thread hangs."""
        self.store, self.rank, self.size, self._leave = store, rank, size, leave
        self.fault: Fault | None = None
        self._broken = threading.Event()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._beats = 0
        self._thread = threading.Thread(target=self._watch, name="ranks", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """This rank is done: its silence means nothing from now on."""
        self._ended.set()
        self._thread.join()
        with self._lock:
            self.store.set(life_key(self.rank), "")

    def explain(self, error: BaseException) -> str | None:
        """What this rank is to say of the error that ends it; None where another one says it.

        Returns within SILENT_SECONDS.
        """
        if isinstance(error, LostRankError):
            return self._explain_loss(error)
        why = str(error) if isinstance(error, RlhfkitError) else f"{type(error).__name__}: {error}"
        with self._lock:
            self.store.set(f"error/{self.rank}", why)
        time.sleep(TOGETHER_SECONDS)
        with self._lock:
            keys = [rank for rank in range(self.size) if self.store.check([f"error/{rank}"])]
            is_of_all = len(keys) == self.size and len({self.store.get(f"error/{rank}") for rank in keys}) == 1
            phase = " / ".join(current_phases())
            own = Fault(self.rank, self.size, socket.gethostname(), os.getpid(), phase, why, by=min(keys))
            found = post(self.store, own)
        if found.by != self.rank:
            return None
        return why if is_of_all else own.words()

    def _explain_loss(self, error: LostRankError) -> str | None:
        self._broken.set()
        deadline = time.monotonic() + SILENT_SECONDS
        while self.fault is None and time.monotonic() < deadline:
            time.sleep(0.1)
        if self.fault is None:
            return f"{error}, and gave no reason; look at what the other processes have said"
        return self.fault.words() if self.fault.by == self.rank else None

    # ── the thread ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _watch(self) -> None:
        failed_at: float | None = None
        while not self._ended.wait(0.2 if self._broken.is_set() else BEAT_SECONDS):
            try:
                with self._lock:
                    self._beat()
                    self.fault = self.fault or self._found()
            except Exception as error:  # torch's errors of a store that is gone are of several classes
                self.fault = self.fault or self._store_is_gone(error)
            if self.fault is not None:
                failed_at = failed_at or time.monotonic()
                if time.monotonic() - failed_at > GRACE_SECONDS:
                    if self.fault.by == self.rank:
                        print(f"error: {self.fault.words()}", file=sys.stderr, flush=True)
                    self._leave(EXIT_CODE)

    def _beat(self) -> None:
        self._beats += 1
        life = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "phase": " / ".join(current_phases()),
            "beat": self._beats,
        }
        self.store.set(life_key(self.rank), json.dumps(life))

    def _found(self) -> Fault | None:
        """What somebody wrote, or what this rank finds: the first other one that is silent."""
        if self.store.check([FAULT]):
            return Fault(**json.loads(self.store.get(FAULT)))
        limit = SILENT_AFTER_BREAK_SECONDS if self._broken.is_set() else SILENT_SECONDS
        now = time.monotonic()
        for rank in range(self.size):
            if rank == self.rank or not self.store.check([life_key(rank)]):
                continue
            life = self.store.get(life_key(rank))
            before, since = self._seen.get(rank, (b"", now))
            if life != before:
                self._seen[rank] = life, now
            elif life and now - since > limit:
                return post(self.store, self._silent(rank, json.loads(life), now - since))
        return None

    def _silent(self, rank: int, life: dict[str, Any], seconds: float) -> Fault:
        why = (
            f"has given no sign of life for {seconds:.0f} s: it was killed, its machine has stopped, or the network "
            "between is gone. Look at that machine (memory, cable); the same command goes on from the last checkpoint"
        )
        return Fault(rank, self.size, life["host"], life["pid"], life["phase"], why, by=self.rank)

    def _store_is_gone(self, error: Exception) -> Fault:
        why = (
            "what all ranks meet at cannot be reached any more: that process was killed, its machine has stopped, or "
            f"the network between is gone ({str(error).splitlines()[0] if str(error) else type(error).__name__}). The "
            "same command goes on from the last checkpoint"
        )
        return Fault(0, self.size, "of rank 0", 0, "", why, by=self.rank)
