"""A command that runs wherever a Ray cluster has room, and for whoever starts it is a process of this machine.

What it prints is printed here, SIGTERM goes on to it, and this process ends as it does, by the same signal too. Files
must lie where all machines reach them, by the same path. A command whose machine is lost counts as killed.
"""

import argparse
import ctypes
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from rlhfkit.config.cluster import ClusterConfig
from rlhfkit.errors import RlhfkitError
from rlhfkit.launch.connecting import connected, passed_on
from rlhfkit.machine.interrupts import interrupts_wait

__all__ = ["Errand", "main"]

LOOK_SECONDS = 0.5
PATIENCE_SECONDS = 600.0
"""A cluster that grows by need may take minutes to start a machine that is large enough."""
PR_SET_PDEATHSIG = 1


class Errand:
    """An actor: a process on its machine, which is asked to end when the actor does, however that came."""

    def __init__(self) -> None:
        """Start nothing yet, so that what fails then is an error of its own, and not the loss of an actor."""
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the actor)
        self._num_read = 0

    def begin(self, words: Sequence[str], directory: str) -> tuple[bytes, int | None]:
        """Start the command, in a directory that must be here as well. Raises: OSError."""
        self._process = subprocess.Popen(
            list(words),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        return b"", None

    def look(self) -> tuple[bytes, int | None]:
        """What it has printed since the last look, and its exit code once it has ended."""
        code = self._process.poll()
        printed = os.pread(
            self._output.fileno(), os.fstat(self._output.fileno()).st_size - self._num_read, self._num_read
        )
        self._num_read += len(printed)
        return printed, code

    def terminate(self) -> None:
        """Ask it to save and end."""
        self._process.terminate()


LIBC = ctypes.CDLL(None)


def _end_with_parent() -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code, minus the signal where one has ended it."""
    parser = argparse.ArgumentParser(prog="rlhfkit.launch.errand", description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--cpus", type=int, required=True)
    parser.add_argument("--gpus", type=float, required=True)
    parser.add_argument("words", nargs="+")
    given = parser.parse_args(arguments)
    try:
        with connected(given.address, ClusterConfig()), suppress(KeyboardInterrupt):
            return _run(given.words, cpus=given.cpus, gpus=given.gpus)
    except RlhfkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 130


def _run(words: Sequence[str], *, cpus: int, gpus: float) -> int:
    environment = {**passed_on(), "OMP_NUM_THREADS": str(cpus), "NO_COLOR": "1"}
    options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0, "runtime_env": {"env_vars": environment}}
    actor: Any = ray.remote(Errand).options(**options).remote()
    give_up, is_asked = time.monotonic() + PATIENCE_SECONDS, False
    with interrupts_wait("what runs on the cluster", says=False) as interrupted:
        look = actor.begin.remote(list(words), os.getcwd())
        while True:
            if interrupted() and not is_asked:
                is_asked = True
                actor.terminate.remote()
            try:
                printed, code = ray.get(look, timeout=LOOK_SECONDS)
            except GetTimeoutError:  # it does not run yet
                if is_asked:
                    return 130
                if time.monotonic() > give_up:
                    print(f"error: {_no_room(cpus, gpus)}", file=sys.stderr)
                    return 1
                continue
            except RayActorError as error:
                print(f"lost: {str(error).splitlines()[0]}", file=sys.stderr)
                return -signal.SIGKILL
            except OSError as error:
                print(f"error: a machine of the cluster cannot run it: {str(error).splitlines()[-1]}", file=sys.stderr)
                return 1
            give_up = math.inf
            sys.stdout.buffer.write(printed)
            sys.stdout.buffer.flush()
            if code is not None:
                return int(code)
            time.sleep(LOOK_SECONDS)
            look = actor.look.remote()


def _no_room(cpus: int, gpus: float) -> str:
    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    sizes = "; ".join(f"{node.get('CPU', 0):g} cores and {node.get('GPU', 0):g} GPUs" for node in there)
    return (
        f"for {PATIENCE_SECONDS / 60:g} minutes no machine of the cluster had room for {cpus} cores and {gpus:g} GPUs "
        f"(cluster.trainer_cpus, cluster.trainer_gpus); there are {sizes}"
    )


if __name__ == "__main__":
    from rlhfkit.launch import errand  # by its name other processes find it too

    ended = errand.main()
    if ended < 0:
        os.kill(os.getpid(), -ended)
    sys.exit(ended)
