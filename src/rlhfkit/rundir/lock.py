"""One process at a time in a run directory, and the one answer to whether one is there."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from rlhfkit.errors import CheckpointError
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.lines import open_lines
from rlhfkit.rundir.study import StudyDir

__all__ = [
    "is_locked",
    "locked",
]


@contextmanager
def locked(run: RunDir) -> Iterator[None]:
    """Nobody else may write to this run directory meanwhile; the lock falls with the process.

    Raises: CheckpointError where somebody does, or where the directory cannot be written to.
    """
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        file = run.lock.open("w")
    except OSError as error:
        raise CheckpointError(f"cannot write to {run.path} ({error.strerror}); choose another --run-dir") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CheckpointError(
                f"another process is working in {run.path}; wait for it, or choose another --run-dir"
            ) from error
        yield


def is_locked(run: RunDir | StudyDir) -> bool:
    """Whether a process works in this run or study directory now; nothing is written, nobody kept waiting."""
    try:
        file = open_lines(run.lock)
    except CheckpointError:  # a link or a pipe in its place was not made by a run
        return False
    if file is None:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False
