"""Files of a run, written so that a reader, or a start after a crash, sees the old content or the new."""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from rlhfkit.errors import CheckpointError, RlhfkitError

__all__ = [
    "place_to_save",
    "read_json",
    "write_atomically",
    "write_directory_atomically",
    "write_json",
    "writing",
]


def read_json(path: Path) -> Any:
    """Content of a JSON file of the run.

    Raises: CheckpointError where the file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}); restore it, or start over with --fresh or another --run-dir"
        ) from error


FULL = {errno.ENOSPC, errno.EDQUOT}


REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "this user may not write there",
    errno.EPERM: "this user may not write there",
    errno.EFBIG: "the file would be larger than this process may write (ulimit -f)",
    errno.EIO: "the disk reports an error",
    errno.ESTALE: "the network file system is gone",
    errno.EMFILE: "too many files are open (ulimit -n)",
}


@contextmanager
def writing(path: Path, *, num_bytes: int | None = None) -> Iterator[None]:
    """Turn an OSError of the block into an error that says why `path` cannot be written, and how many bytes are free.

    Raises: CheckpointError in the place of OSError, and of what other libraries make of one.
    """
    try:
        yield
    except RlhfkitError:
        raise
    except Exception as error:
        number = _errno_of(error)
        if number not in REASONS:
            raise
        wanted = f"; {num_bytes / 1e6:.3g} MB were to be written" if num_bytes else ""
        room = f", {_free_bytes(path) / 1e6:.3g} MB are free" if number in FULL else ""
        remedy = "make room" if number in FULL else "see to it"
        raise CheckpointError(
            f"cannot write {path}: {REASONS[number]}{wanted}{room}; what was written before is whole: {remedy}, then "
            "give the same command again to go on"
        ) from error


def _errno_of(error: BaseException) -> int | None:
    """The operating system's number, also of an error that safetensors or torch has put into words."""
    if isinstance(error, OSError):
        return error.errno
    number = re.search(r"os error (\d+)", str(error))
    return int(number[1]) if number else None


def _free_bytes(path: Path) -> int:
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old content or the new, never a part."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a start after a crash, sees the old content or the new, never a part.

    Raises: CheckpointError where the disk is full, or may not be written to.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    with writing(path, num_bytes=len(data)):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
            _sync(path.parent)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextmanager
def write_directory_atomically(path: Path, *, num_bytes: int | None = None) -> Iterator[Path]:
    """A temporary directory to fill, which takes the place of `path` at the end, or vanishes if filling it failed.

    Raises: CheckpointError where the disk is full, or may not be written to; `num_bytes` says what was to be written.
    """
    with writing(path, num_bytes=num_bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            yield temporary
            for inside in (*temporary.rglob("*"), temporary):
                _sync(inside)
            os.chmod(temporary, 0o755)
            if path.exists():
                outgoing = path.with_name(f".{path.name}.outgoing")
                shutil.rmtree(outgoing, ignore_errors=True)
                path.rename(outgoing)
                temporary.rename(path)
                shutil.rmtree(outgoing)
            else:
                temporary.rename(path)
            _sync(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


OF_A_MODEL = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
"""Names of the files that a saved model has."""


def place_to_save(directory: str | Path) -> Path:
    """Where a model is saved to: a new directory, an empty one, or one that holds a saved model, which it replaces.

    Raises: CheckpointError where files of something else would be removed.
    """
    path = Path(directory).expanduser().absolute()
    if not path.exists():
        return path
    if not path.is_dir():
        raise CheckpointError(f"cannot save to {directory}: it is a file; expected a directory, give another name")
    inside = sorted(path.iterdir())
    other = [each.name for each in inside if not any(fnmatch(each.name, pattern) for pattern in OF_A_MODEL)]
    if inside and not any(each.suffix == ".safetensors" for each in inside):
        other = [each.name for each in inside]
    if other:
        named = ", ".join(other[:3]) + (", …" if len(other) > 3 else "")
        raise CheckpointError(
            f"cannot save to {directory}: it holds {named}, which saving would remove; "
            "expected a new or empty directory, or one that holds a saved model: give another name"
        )
    return path


def _sync(path: Path) -> None:
    """Have the disk hold what a file or a directory holds now; of a directory, the names in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
