"""Who works on which run of a study: locks that fall with the processes that hold them."""

import fcntl
import json
import os
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

from rlhfkit.rundir.study import StudyDir

__all__ = ["Claim", "Claims"]

LOOK_SECONDS = 0.2


class Claim:
    """A run that is ours. The process that works on it inherits the lock, which lasts until both have ended."""

    def __init__(self, file: IO[str]) -> None:
        """Take over a locked file."""
        self._file = file
        self._write({})

    def fileno(self) -> int:
        """For a process that is to hold it too."""
        return self._file.fileno()

    def note(self, process: int) -> None:
        """Say which process works on it."""
        self._write({"process": process})

    def _write(self, facts: dict[str, Any]) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps({"host": socket.gethostname(), "search": os.getpid(), **facts}))
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


class Claims:
    """Those of a study."""

    def __init__(self, study: StudyDir) -> None:
        """In a directory of their own."""
        self._directory = study.claims

    def take(self, name: str) -> Claim | None:
        """The run of this name, or None where somebody works on it."""
        self._directory.mkdir(parents=True, exist_ok=True)
        file = (self._directory / name).open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return Claim(file)

    def taken(self) -> set[str]:
        """Names of the runs that somebody works on."""
        files = self._directory.iterdir() if self._directory.is_dir() else ()
        return {path.name for path in files if _is_locked(path)}

    def end_orphans(self) -> list[str]:
        """Have runs save and end whose search was killed; their names, once they have.

        They would go on alone, and a search with one job would have two.
        """
        orphans = [path for path in self._directory.iterdir() if _is_orphan(path)] if self._directory.is_dir() else []
        for path in orphans:
            with suppress(OSError, KeyError, ValueError):
                os.kill(json.loads(path.read_text())["process"], signal.SIGTERM)
        for path in orphans:
            while _is_locked(path):
                time.sleep(LOOK_SECONDS)
        return [path.name for path in orphans]


def _is_locked(path: Path) -> bool:
    with path.open("r") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _is_orphan(path: Path) -> bool:
    """Whether the search that claimed a run is gone, and the run is not."""
    if not _is_locked(path):
        return False
    try:
        facts = json.loads(path.read_text())
        if facts["host"] != socket.gethostname():
            return False
        os.kill(facts["search"], 0)
    except ProcessLookupError:
        return True
    except (ValueError, KeyError, PermissionError):
        return False
    return False
