"""Files of a run that another process may be writing: read in part, leniently, and as what they are."""

import json
import math
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from rlhfkit.errors import CheckpointError

__all__ = [
    "MOST_BYTES",
    "Row",
    "finite_or_none",
    "last_row",
    "list_or_empty",
    "mapping_or_empty",
    "object_or",
    "open_lines",
    "read_bytes",
    "read_lines",
    "read_object",
    "row_of",
    "whole_or_none",
]

MOST_BYTES = 4 * 1024 * 1024
"""Read at once; the rest comes with the next request."""


_TAIL_BYTES = 64 * 1024


Row = Mapping[str, Any]


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a run; an empty one where there is no file. Raises: CheckpointError."""
    content = read_bytes(path, 0, MOST_BYTES)
    if content is None:
        return {}
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is damaged ({error}); expected a JSON object; restore it") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name} is damaged: it holds no JSON object; restore it")
    return value


def object_or(path: Path, problems: list[str]) -> dict[str, Any]:
    """The object in a JSON file; an empty one, and a line in `problems`, where the file is damaged."""
    try:
        return read_object(path)
    except CheckpointError as error:
        problems.append(str(error))
        return {}


def open_lines(path: Path) -> IO[bytes] | None:
    """A file of ours, open for reading; None where there is none. A link could lead anywhere, a pipe never ends."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CheckpointError(
            f"{path.name} cannot be read ({error.strerror}); expected a file of the run, not a link"
        ) from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise CheckpointError(f"{path.name} is no ordinary file; expected one that the run has written")
    return os.fdopen(number, "rb")


def read_bytes(path: Path, offset: int, most: int) -> bytes | None:
    """At most so many bytes from `offset` on; None where there is no such file."""
    opened = open_lines(path)
    if opened is None:
        return None
    with opened as file:
        file.seek(offset)
        return file.read(most)


def last_row(path: Path) -> Row:
    """The last whole line of a JSONL file; nothing where there is none."""
    try:
        size = path.lstat().st_size
        content = read_bytes(path, max(0, size - _TAIL_BYTES), _TAIL_BYTES) or b""
    except (OSError, CheckpointError):
        return {}
    lines = content.split(b"\n")[:-1]
    return next((row for line in reversed(lines) if (row := row_of(line)) is not None), {})


def read_lines(path: Path) -> tuple[list[dict[str, Any]], tuple[int, ...]]:
    """The objects in a file of lines, and the numbers of the lines that are none, from 1.

    Blank lines are passed over, and so is a last one without an end, which is still being written.
    """
    if not path.exists():
        return [], ()
    rows, damaged = [], []
    *lines, _unfinished = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = row_of(line)
        if row is None:
            damaged.append(number)
        else:
            rows.append(row)
    return rows, tuple(damaged)


def row_of(line: bytes) -> dict[str, Any] | None:
    """The object that a line holds; None where it holds none."""
    with suppress(ValueError, RecursionError):
        row = json.loads(line)
        return row if isinstance(row, dict) else None
    return None


def finite_or_none(value: object) -> float | None:
    """A finite number as a float; None for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def whole_or_none(value: object) -> int | None:
    """A whole number that can count something; None for all else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**12 else None


def mapping_or_empty(value: object) -> Row:
    """The value if it is an object of JSON, or an empty one."""
    return value if isinstance(value, Mapping) else {}


def list_or_empty(value: object) -> Sequence[Any]:
    """The value if it is a list, or an empty one."""
    return value if isinstance(value, list) else ()
