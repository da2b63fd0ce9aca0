"""Starts the processes of a run on this machine, and says how one of them ended where it could not say so itself."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # torch has no list of its names

from rlhfkit.distributed.faults import Fault, Store, life_key, post, written
from rlhfkit.distributed.listening import free_port, listening_at

__all__ = ["environments", "launch"]

LOOPBACK = "127.0.0.1"
POLL_SECONDS = 0.2
GRACE_SECONDS = 25.0
"""Time for the others to end by themselves after one has failed."""
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Those that may come to this process alone; ranks that were sent them too, as by Ctrl-C, take the two for one."""
INTERRUPTED_CODE = 130


def launch(num: int, command: Sequence[str]) -> int:
    """Run `num` processes of `command`, the ranks of one run, until all have ended; the exit code of the first to fail.

    Where one fails, the others end soon; where it could not say why, as after `kill -9`, that is said here. 130 where
    somebody has asked for the end.
    """
    port = free_port(LOOPBACK)
    store = TCPStore(
        LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=listening_at(LOOPBACK, port)
    )
    faults = PrefixStore("rlhfkit", store)
    children = [
        subprocess.Popen(command, env={**os.environ, **environment}) for environment in environments(num, store.port)
    ]
    with _forwarded_to(children) as interrupted:
        failed = _first_failed(children)
        if failed is None:
            return 0
        code = children[failed].returncode
        by_us = interrupted() and -code in FORWARDED  # before it could heed it
        known = _say(faults, failed, children, -code) if code < 0 and not by_us else None
        _end(faults, children)
    if by_us or (known is not None and known.is_interrupt):
        return INTERRUPTED_CODE
    if known is not None:
        return 1
    return 128 - code if code < 0 else code


def environments(num: int, port: int, given: Mapping[str, str] = os.environ) -> Iterator[dict[str, str]]:
    """What torchrun too would set for each of `num` ranks; the cores are shared out unless threads are set already."""
    threads = max(1, len(_cores()) // num)
    for rank in range(num):
        yield {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num),
            "LOCAL_WORLD_SIZE": str(num),
            "MASTER_ADDR": LOOPBACK,
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "OMP_NUM_THREADS": given.get("OMP_NUM_THREADS", str(threads)),
            # Or torch adds pages of its own stack to what is said where a process is gone.
            "TORCH_CPP_LOG_LEVEL": given.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
            # The ranks are on one machine: no other interface shall carry what they say, or be waited for.
            **({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}),
        }


def _cores() -> Sequence[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return range(os.cpu_count() or 1)


def _first_failed(children: Sequence["subprocess.Popen[bytes]"]) -> int | None:
    """The rank that failed first, as far as can be seen; None where all have ended well."""
    while True:
        codes = [child.poll() for child in children]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed:
            # What a signal ended is the cause; what ended by itself may have followed it.
            return next((rank for rank in failed if (codes[rank] or 0) < 0), failed[0])
        if all(code == 0 for code in codes):
            return None
        time.sleep(POLL_SECONDS)


def _say(store: Store, rank: int, children: Sequence["subprocess.Popen[bytes]"], number: int) -> Fault | None:
    """Say what a signal did to a rank; where a rank has said of another fault before, that one.

    torch's threads may abort a process that is ending because of it.
    """
    phase = ""
    if store.check([life_key(rank)]):
        phase = json.loads(store.get(life_key(rank)) or b"{}").get("phase", "")
    known = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    why = f"was killed by {known}"
    if number == signal.SIGKILL:
        why += ", as the kernel does when memory runs out; if that is why, lower ppo.microbatch_tokens or rollout.slots"
    why += ". The same command goes on from the last checkpoint"
    fault = Fault(rank, len(children), socket.gethostname(), children[rank].pid, phase, why, by=-1)
    first = post(store, fault)
    if first != fault:
        return first
    print(f"error: {fault.words()}", file=sys.stderr, flush=True)
    return None


def _end(store: Store, children: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Wait for those that are left, then kill them: checkpoints are whole or not there."""
    deadline = time.monotonic() + GRACE_SECONDS
    while any(child.poll() is None for child in children) and time.monotonic() < deadline:
        fault = written(store)
        if fault is not None and fault.by != fault.rank:  # silent, as the others say, so that it will not end by itself
            children[fault.rank].kill()
        time.sleep(POLL_SECONDS)
    for child in children:
        if child.poll() is None:
            child.kill()
            child.wait()


@contextmanager
def _forwarded_to(children: Sequence["subprocess.Popen[bytes]"]) -> Iterator[Callable[[], bool]]:
    """In the block signals that come to this process go to the ranks, for which it waits; whether any has come."""
    has_come = False

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal has_come
        has_come = True
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    heeded = [number for number in FORWARDED if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, forward) for number in heeded}
    try:
        yield lambda: has_come
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for child in children:
            if child.poll() is None:
                child.kill()
