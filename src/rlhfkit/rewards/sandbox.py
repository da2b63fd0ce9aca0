"""Code of others and tests of it, each in a process that can reach nothing; what the tests say of the code."""

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlhfkit.errors import RewardError

__all__ = ["Limits", "SandboxError", "examine", "why_none_here"]

PROGRAM = Path(__file__).with_name("confined.py")
FIRST_USER = 0x60000000
"""Users from here on are nobody's; each sandbox of root has one of its own, so that limits count it alone."""
LONGEST_VERDICT = 1_000_000
MIB = 1 << 20


class SandboxError(RewardError):
    """Nothing could be run, or nothing said of it; this is no verdict."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What code may take."""

    seconds: float = 10.0
    """By the clock, all tests together."""
    memory_mib: int = 512
    """Of each process."""
    processes: int = 4
    """And threads, at once."""
    file_mib: int = 16
    """Of all files together; they are in memory."""


def examine(source: str, tests: Sequence[str], limits: Limits) -> list[bool]:
    """Whether `source` passes each of `tests`.

    Raises: SandboxError where the sandbox fails, and where tests cannot be run or do not end.
    """
    with (
        tempfile.TemporaryDirectory(prefix="rlhfkit-") as root,
        _channel() as (one, other),
        _started("response", {"source": source}, one, root, limits) as response,
        _started("tests", {"tests": list(tests)}, other, root, limits) as judge,
    ):
        one.close()
        other.close()
        if "confined" not in (said := _said(response)):
            raise _unconfined(said)
        verdict = _said(judge)
    passed = verdict.get("passed")
    if isinstance(passed, list) and len(passed) == len(tests):
        return [found is True for found in passed]
    if "unusable" in verdict:
        raise SandboxError(f"the tests cannot be run apart from the response: {verdict['unusable']}")
    if "unconfined" in verdict:
        raise _unconfined(verdict)
    raise SandboxError(
        f"the tests gave no verdict within {limits.seconds:g} s and the time to start; see that they end by themselves,"
        " and within their memory"
    )


def why_none_here() -> str | None:
    """Why code cannot be confined on this machine; None where it can."""
    if not sys.platform.startswith("linux"):
        return f"it takes namespaces of Linux, and this is {sys.platform}"
    try:
        examine("", [], Limits(seconds=5.0))
    except SandboxError as error:
        return str(error)
    return None


def _unconfined(said: dict[str, Any]) -> SandboxError:
    return SandboxError(f"the kernel refuses a place to confine code in ({said.get('unconfined', 'no answer')})")


@contextlib.contextmanager
def _channel() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


@contextlib.contextmanager
def _started(
    role: Literal["response", "tests"], task: dict[str, Any], channel: socket.socket, root: str, limits: Limits
) -> Iterator[subprocess.Popen[bytes]]:
    """A process of `confined.py` with its task; at the end of the block it is over, and all that it has started."""
    command = [sys.executable, "-P", "-s", "-S", "-B", str(PROGRAM), role, str(channel.fileno())]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PYTHONHASHSEED": "0"},  # or sets of texts would come in another order each time
        pass_fds=[channel.fileno()],
        cwd="/",
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    whole = {
        **task,
        "root": root,
        "user": min(FIRST_USER + process.pid, _last_user()),
        "seconds": limits.seconds,
        "memory_bytes": limits.memory_mib * MIB,
        "processes": limits.processes,
        "file_bytes": limits.file_mib * MIB,
    }
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(whole).encode() + b"\n")
            process.stdin.flush()
        yield process
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()  # which ends it
        process.wait()
        process.stdout.close()


def _last_user() -> int:
    """The last user that there may be here; in a container there may be few. The very last stands for nobody at all."""
    ranges = [[int(word) for word in line.split()] for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return max(first + count - 2 for first, _, count in ranges)


def _said(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """What a process has said, until it closed its standard output; nothing where it has died before."""
    assert process.stdout is not None
    with contextlib.suppress(ValueError):
        said = json.loads(process.stdout.read(LONGEST_VERDICT))
        return said if isinstance(said, dict) else {}
    return {}
