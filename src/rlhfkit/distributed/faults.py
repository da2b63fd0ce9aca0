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
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from rlhfkit.config.secrets import hidden
from rlhfkit.errors import LostRankError, RlhfkitError
from rlhfkit.machine.watchdog import current_phases

__all__ = ["Fault", "FaultWatch", "Store", "life_key", "post", "written"]

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
HURRIED_SECONDS = 0.2
"""Between one look and the next, once something has happened."""
JOIN_SECONDS = 300.0
"""Within this time all must have come."""

EXIT_CODE, INTERRUPTED_CODE = 1, 130

GO_ON = "the same command goes on from the last checkpoint"
SILENT = (
    "has given no sign of life for {:.0f} s: it was killed, its machine has stopped, or the network between is gone. "
    f"Look at that machine (memory, cable); {GO_ON}"
)
HAS_LEFT = "has ended its program, while others wait for it; every rank must make the same calls"
STORE_IS_GONE = (
    "what all ranks meet at cannot be reached any more ({}): the process that started them was killed, its machine has "
    f"stopped, or the network between is gone. Look at that machine; {GO_ON}"
)


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
    of_all: bool = False
    """Whether all ranks have met the same."""
    is_interrupt: bool = False
    """Whether somebody has asked for the end."""

    def words(self) -> str:
        """One message; of what all ranks have met it names none."""
        if self.of_all:
            return self.why
        where = f" in phase {self.phase}" if self.phase else ""
        return f"rank {self.rank} of {self.size} (host {self.host}, process {self.pid}){where}: {self.why}"


def life_key(rank: int) -> str:
    """Where a rank shows that it lives."""
    return f"life/{rank}"


def post(store: Store, fault: Fault) -> Fault:
    """Write a fault where all look for it; the one that stands there, which is another's if that came first."""
    return Fault(**json.loads(store.compare_set(FAULT, "", json.dumps(asdict(fault)))))


def written(store: Store) -> Fault | None:
    """The fault that stands there; None while there is none."""
    return Fault(**json.loads(store.get(FAULT))) if store.check([FAULT]) else None


class FaultWatch:
    """Shows that this rank lives, and ends it where another one has failed; two threads from `start` to `stop`.

    One alone talks to the store, which may answer late or never; the other one has a clock.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        *,
        way: str = "the network",
        here: range | None = None,
        clock: Callable[[], float] = time.monotonic,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        """Use `store` from one thread alone; `leave` ends the process where the main thread hangs.

        `way`: how this rank reaches the others, for the message where it does not. `here`: the ranks of this machine,
        by default all.
        """
        self.store, self.rank, self.size = store, rank, size
        self._here = range(size) if here is None else here
        self._way, self._clock, self._leave = way, clock, leave
        self.fault: Fault | None = None
        self._own: _Own | None = None
        self._others = {other: _Other() for other in range(size) if other != rank}
        self._beats = 0
        self._last_turn = self._last_look = clock()
        self._deaf = self._joining = self._since_fault = 0.0
        self._is_broken = self._has_joined = self._is_said = False
        self._hurries, self._known, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for name, work in (("ranks", self._talk), ("ranks' clock", self._keep_time))
        ]

    def start(self) -> None:
        """Begin."""
        self._beat()
        for thread in self._threads:
            thread.start()

    def joined(self) -> None:
        """All have come; until then one that is late is waited for."""
        self._has_joined = True

    def stop(self) -> None:
        """This rank is done: its silence means nothing from now on."""
        self._ended.set()
        self._hurries.set()
        for thread in self._threads:
            thread.join(GRACE_SECONDS)  # a store that is gone may never answer, and nobody is left to hear

    def wait_for_the_others(self, seconds: float) -> None:
        """Return once all others are done, or `seconds` later."""
        self._hurries.set()
        until = time.monotonic() + seconds
        while time.monotonic() < until and not all(other.has_left for other in self._others.values()):
            time.sleep(HURRIED_SECONDS)

    def fail(self, error: BaseException) -> Fault:
        """What ends the run, now that `error` ends this rank: it may be another one's fault that came first.

        Whoever is named in its `by` tells the user. Returns within SILENT_SECONDS and some.
        """
        if _is_of_a_loss(error):
            self._is_broken = True
        else:
            why = str(error) if isinstance(error, RlhfkitError) else f"{type(error).__name__}: {error}"
            is_interrupt = isinstance(error, KeyboardInterrupt)
            why = "was interrupted" if is_interrupt else why.strip().removesuffix(":")
            self._own = _Own(self._fault_of_own(why, is_interrupt=is_interrupt))
        self._hurries.set()
        self._known.wait(SILENT_SECONDS + SILENT_AFTER_BREAK_SECONDS)
        if self.fault is None:
            self.fault = self._own.fault if self._own else self._fault_of_own(f"{error}, and gave no reason")
        self._is_said = True
        return self.fault

    # ── the thread that talks ────────────────────────────────────────────────────────────────────────────────────────

    def _talk(self) -> None:
        while not self._ended.is_set():
            try:
                self.turn()
            except Exception as error:  # torch's errors of a store that is gone are of several classes
                self._lose_store((str(error).splitlines() or [type(error).__name__])[0])
                return
            if self._hurries.wait(BEAT_SECONDS):
                self._ended.wait(HURRIED_SECONDS)
        with suppress(Exception):  # whoever kept the store may have gone first
            self.store.set(life_key(self.rank), "")

    def turn(self) -> None:
        """Show that this rank lives, and look for what the others say. Raises: what the store raises."""
        self._beat()
        now = self._clock()
        # Time in which this process stood still itself, as after Ctrl-Z, does not count.
        passed, self._last_turn = min(now - self._last_turn, 2 * BEAT_SECONDS), now
        self._listen(passed)
        if self._own is not None and self.fault is None:
            self._tell_own(self._own)
        if self.fault is None:
            self._find(written(self.store) or self._lost())
        self._deaf = 0.0

    def _find(self, fault: Fault | None) -> None:
        if fault is not None and self.fault is None:
            self.fault = fault
            self._known.set()

    def _beat(self) -> None:
        self._beats += 1
        life = {"host": socket.gethostname(), "pid": os.getpid(), "phase": _phase(), "beat": self._beats}
        self.store.set(life_key(self.rank), json.dumps(life))

    def _listen(self, passed: float) -> None:
        for rank, other in self._others.items():
            life = self.store.get(life_key(rank)) if self.store.check([life_key(rank)]) else None
            other.silent = 0.0 if life != other.life else other.silent + passed
            if life != other.life:
                other.life, other.heard = life, self._clock()

    def _tell_own(self, own: "_Own") -> None:
        """Say what ended this rank; a little later, once others that met the same have said so too, that it is over."""
        if not own.is_reported:
            self.store.set(f"error/{self.rank}", json.dumps(asdict(own.fault)))
            own.is_reported, own.since = True, self._clock()  # all that the others wrote before has been heard
        keys = [f"error/{rank}" for rank in range(self.size)]
        reported = [Fault(**json.loads(self.store.get(key))) for key in keys if self.store.check([key])]
        others = [other for rank, other in self._others.items() if all(fault.rank != rank for fault in reported)]
        if own.fault.is_interrupt:  # whoever ends a run of which one was killed interrupts the others, as torchrun does
            is_ready = all(other.heard > own.since for other in others)
        else:
            is_ready = not others or self._clock() - own.since >= TOGETHER_SECONDS
        if is_ready:
            first = min(reported, key=lambda fault: (fault.is_interrupt, fault.rank))
            of_all = len(reported) == self.size and len({fault.why for fault in reported}) == 1
            self._find(post(self.store, replace(first, of_all=of_all)))

    def _lost(self) -> Fault | None:
        """Another rank that is silent, as this one found, or said."""
        for rank, other in self._others.items():
            if other.life is None:
                if other.silent > JOIN_SECONDS:
                    return post(self.store, self._fault_of(rank, f"has not come within {JOIN_SECONDS:.0f} s"))
            elif other.has_left:
                if self._is_broken:
                    return post(self.store, self._fault_of(rank, HAS_LEFT))
            elif other.silent > self._limit:
                return post(self.store, self._fault_of(rank, SILENT.format(other.silent)))
        return None

    # ── the thread that has a clock ──────────────────────────────────────────────────────────────────────────────────

    def _keep_time(self) -> None:
        while not self._ended.wait(0.5):
            self.look()

    def look(self) -> None:
        """See whether the store answers, and whether the main thread has ended what is over."""
        now = self._clock()
        passed, self._last_look = min(now - self._last_look, 1.0), now
        self._deaf += passed
        if self._deaf > self._limit:
            self._lose_store(f"no answer for {self._deaf:.0f} s")
        if not self._has_joined:
            self._joining += passed
            if self._joining > JOIN_SECONDS:
                self._find(self._fault_of_own(f"cannot reach the others over {self._way}"))
        if self.fault is None:
            return
        self._since_fault += passed
        does_nothing_yet = not self._has_joined and self._own is None  # but wait for the others
        if self._since_fault > GRACE_SECONDS or does_nothing_yet:
            if self.fault.by == self.rank and not self._is_said:
                print(f"error: {hidden(self.fault.words())}", file=sys.stderr, flush=True)
            self._leave(INTERRUPTED_CODE if self.fault.is_interrupt else EXIT_CODE)

    def _lose_store(self, reason: str) -> None:
        first = self._others.get(0)
        if first is not None and first.has_left:  # done, and has taken the store along; nothing more is to be heard
            self._ended.set()
            return
        # Nobody can be reached any more: of each machine the first rank that lives says it.
        lives = {rank: self._others[rank].as_dict() for rank in self._here if rank != self.rank}
        here = [rank for rank, life in lives.items() if life and _is_alive(life["pid"])]
        fault = self._own.fault if self._own else self._fault_of(0, STORE_IS_GONE.format(reason))
        self._find(replace(fault, by=self.rank if self._own else min([self.rank, *here])))

    # ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _limit(self) -> float:
        return SILENT_AFTER_BREAK_SECONDS if self._is_broken else SILENT_SECONDS

    def _fault_of_own(self, why: str, *, is_interrupt: bool = False) -> Fault:
        host, pid = socket.gethostname(), os.getpid()
        return Fault(self.rank, self.size, host, pid, _phase(), why, by=self.rank, is_interrupt=is_interrupt)

    def _fault_of(self, rank: int, why: str) -> Fault:
        if rank == self.rank:
            return self._fault_of_own(why)
        life = self._others[rank].as_dict()
        return Fault(
            rank, self.size, life.get("host", "unknown"), life.get("pid", 0), life.get("phase", ""), why, by=self.rank
        )


@dataclass
class _Own:
    """The error that ends this rank."""

    fault: Fault
    is_reported: bool = False
    since: float = 0.0
    """When it was reported."""


@dataclass
class _Other:
    """What is known of another rank."""

    life: bytes | None = None
    """As it said last; None before it has come, empty once it is done."""
    heard: float = 0.0
    silent: float = 0.0
    """Seconds for which it has said nothing new."""

    @property
    def has_left(self) -> bool:
        return self.life == b""

    def as_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.life) if self.life else {}
        return found


def _phase() -> str:
    return " / ".join(current_phases())


def _is_of_a_loss(error: BaseException) -> bool:
    """Whether it comes of another rank that does not answer, whoever has put it in other words.

    So does an interrupt after that: torchrun interrupts the others where one is gone.
    """
    cause: BaseException | None = error
    while cause is not None:
        is_of_torch = isinstance(cause, RuntimeError) and ("gloo/" in str(cause) or type(cause).__name__[:4] == "Dist")
        if isinstance(cause, LostRankError) or is_of_torch:
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _is_alive(pid: int) -> bool:
    """Whether a process of this machine is there, and no mere remainder."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.exists():
        return stat.read_text().rpartition(")")[2].split()[0] not in "ZX"
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
