"""Trackers of a run in processes of their own: what they do, how long they take and how they fail is not the run's."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import rlhfkit
from rlhfkit.config.tracking import TrackerName
from rlhfkit.errors import MissingDependencyError
from rlhfkit.rundir.directory import RunDir
from rlhfkit.tracking.follow import module_of
from rlhfkit.tracking.tracker import Ending

__all__ = ["TITLES", "check_trackers", "tracked"]

TITLES: dict[TrackerName, str] = {"wandb": "Weights & Biases", "mlflow": "MLflow", "trackio": "Trackio"}
END_SECONDS = 60.0
"""So long a run waits at its end until its trackers have sent the rest."""


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Whether each tracker can be used, before anything is written.

    Raises: MissingDependencyError, ConfigError where nobody is logged in.
    """
    for name in names:
        module = module_of(name)
        spec = find_spec(module.PACKAGE)
        if spec is None or spec.origin is None:  # a folder of that name, as trackers leave them, is no package
            raise MissingDependencyError(
                f"tracking.to names {name!r}, and {TITLES[name]} is not installed; {module.INSTALL}, or leave it out"
            )
        module.check()


@contextmanager
def tracked(
    run: RunDir, names: Sequence[TrackerName], *, note: Callable[[str], None], warn: Callable[[str], None]
) -> Iterator[Callable[[str], None]]:
    """In the block the trackers follow the run; what comes is called with each stage that begins anew.

    Whatever goes wrong with one is one warning, and the run goes on. The block's end waits for them, within limits.
    """
    with ExitStack() as stack:
        processes = [stack.enter_context(_Process(run, name, note=note, warn=warn)) for name in dict.fromkeys(names)]

        def forget(stage: str) -> None:
            for process in processes:
                process.tell(f"forget {stage}")

        yield forget


class _Process:
    """One tracker's process, from its start to its end."""

    def __init__(
        self, run: RunDir, name: TrackerName, *, note: Callable[[str], None], warn: Callable[[str], None]
    ) -> None:
        self._run, self._name, self._note, self._warn = run, name, note, warn
        self._has_warned = False
        self._process: subprocess.Popen[bytes] | None = None
        self._listener = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> "_Process":
        # The package from where this process has it; a relative path would mean another folder elsewhere.
        paths = [str(Path(rlhfkit.__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        found = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "rlhfkit.tracking", self._name, str(self._run.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**module_of(self._name).ENVIRONMENT, **os.environ, **found},
                start_new_session=True,  # Ctrl-C is for the run, which tells it to end
            )
        except OSError as error:
            self._complain(str(error))
        else:
            self._listener.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._process is None:
            return
        self.tell(f"end {_ending(kind)}")
        with suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            self._complain(f"it has not sent the rest within {END_SECONDS:.0f} s")
        else:
            self._listener.join(5.0)
            if code:
                self._complain(f"its process ended with code {code}")
        finally:
            self._listener.join(5.0)

    def tell(self, line: str) -> None:
        """Write a line to the process; one that is gone has said why."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError, ValueError):
                self._process.stdin.write(f"{line}\n".encode())
                self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            with suppress(ValueError, AttributeError):
                said = json.loads(line)
                if place := said.get("place"):
                    self._note(f"{TITLES[self._name]}: {place}")
                if error := said.get("error"):
                    self._complain(error)

    def _complain(self, words: str) -> None:
        """One warning, once."""
        if not self._has_warned:
            self._has_warned = True
            self._warn(
                f"{TITLES[self._name]} gets no more of the run ({words}); the run goes on, all numbers are in "
                f"{self._run.metrics.name}, and a later start of the run sends what is missing"
            )


def _ending(kind: type[BaseException] | None) -> Ending:
    if kind is None:
        return "finished"
    return "stopped" if issubclass(kind, KeyboardInterrupt) else "failed"  # a pause is one too
