"""Runs of several ranks by our own launcher, whose ranks come from a fork server that has torch loaded already."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rlhfkit.distributed import launching
from tests import killing

Harm = tuple[str, int, str, int]
"""(what, rank, pattern, number): as `die_at` of tests.killing; or `raise`, in an update of that number."""


@dataclass
class Ended:
    """How a run has ended."""

    code: int
    said: str
    """By the launcher and all ranks."""
    seconds: float | None
    """From the harm that was done to the end of the last process; None where none was."""

    @property
    def errors(self) -> list[str]:
        return [line for line in self.said.splitlines() if line.startswith("error:")]


class Forked:
    """What the launcher needs of `subprocess.Popen`."""

    started: list["Forked"]

    def __init__(self, command: Sequence[Any], env: dict[str, str]) -> None:
        self._process = killing.processes.Process(target=_rank, args=(*command, env))
        self._process.start()
        self.started.append(self)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> None:
        self._process.join()


def launched(
    name: str,
    directory: Path,
    *overrides: str,
    num: int = 2,
    harm: Harm | None = None,
    hurt: tuple[int, int, float] | Callable[[list[Forked]], None] | None = None,
) -> Ended:
    """Run the recipe `name` of tests.killing in `directory` with `num` ranks, from where it stopped.

    `harm` is done by a rank to itself; `hurt` is what this process does meanwhile: (signal, rank, after seconds), or a
    function, which returns when it is done.
    """
    said = directory.with_suffix(".said")
    said.write_text("")
    done_at: list[float] = []
    started: list[Forked] = []
    is_over = threading.Event()

    def meanwhile() -> None:
        if callable(hurt):
            hurt(started)
        elif hurt is not None:
            number, rank, seconds = hurt
            if is_over.wait(seconds) or len(started) <= rank or started[rank].poll() is not None:
                return
            started[rank].send_signal(number)
        if hurt is not None:
            done_at.append(time.monotonic())

    thread = threading.Thread(target=meanwhile)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Forked, "started", started, raising=False)
        patch.setattr(launching.subprocess, "Popen", Forked)
        patch.setattr(launching.sys, "stderr", said.open("a"))
        thread.start()
        code = launching.launch(num, (name, str(directory), overrides, harm))
        ended_at = time.monotonic()
        is_over.set()
        thread.join()
    if harm is not None and (at := directory.with_suffix(".harmed")).exists():
        done_at.append(float(at.read_text()))
        at.unlink()
    return Ended(code, said.read_text(), ended_at - done_at[0] if done_at else None)


def _rank(name: str, directory: str, overrides: Sequence[str], harm: Harm | None, env: dict[str, str]) -> None:
    import torch

    from rlhfkit.cli import app as cli
    from rlhfkit.pipeline import run as pipeline

    os.environ.update(env)
    torch.set_num_threads(1)
    said = Path(directory).with_suffix(".said").open("a")
    os.dup2(said.fileno(), 2)
    os.dup2(said.fileno(), 1)
    recipe = Path(f"{directory}.toml")
    if not recipe.exists():
        temporary = recipe.with_suffix(f".{os.getpid()}")
        temporary.write_text(killing.RECIPES[name])
        temporary.rename(recipe)
    pipeline.report_or_warn = lambda run_dir, warn: run_dir.report.touch()  # drawing takes longer than such a training
    if harm is not None and harm[1] == int(env["RANK"]):
        _prepare_harm(directory, harm)
    sys.argv = ["rlhfkit", "run", str(recipe), *overrides, "--run-dir", directory]
    cli.main()


def _prepare_harm(directory: str, harm: Harm) -> None:
    from rlhfkit.training import checkpoint, ppo

    what, _, pattern, number = harm

    def noted(act: Callable[..., None]) -> Callable[..., None]:
        def do(*given: Any) -> None:
            Path(directory).with_suffix(".harmed").write_text(str(time.monotonic()))
            act(*given)

        return do

    if what == "kill" and pattern == killing.HALF_TENSORS:
        killing._replace(checkpoint, "save_file", killing._Countdown(number, noted(killing._half_the_tensors)))
    elif what == "kill":
        killing._die_at_operation(directory, pattern, number, signal.SIGKILL)
    else:
        error = {"memory": MemoryError("cannot allocate 3 GiB"), "raise": ZeroDivisionError("division by zero")}[what]
        update, left = ppo.update, iter(range(number - 1, -1, -1))

        def fail() -> None:
            raise error

        def updated(*given: Any) -> dict[str, float]:
            if next(left) == 0:
                noted(fail)()
            return update(*given)

        ppo.update = updated
