"""New lines of metrics and samples while a run writes there."""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.lines import MOST_BYTES, Row, finite_or_none, open_lines, read_bytes, row_of, whole_or_none

__all__ = [
    "MOST_POINTS",
    "Curves",
    "Mark",
    "Point",
    "SampleIndex",
    "new_curves",
    "new_rows",
    "new_samples",
    "samples_at",
    "thinned",
]

MOST_POINTS = 1500
"""So many points of one curve are sent, about, however long the file is."""


MOST_METRICS = 200


_MOST_SAMPLE_BYTES = 1024 * 1024


_MARKED_BYTES = 256


Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Mark:
    """Where somebody stopped to read a file."""

    offset: int = 0
    digest: str = ""
    """Of the bytes before it."""


@dataclass(slots=True)
class _Lines:
    """New lines of a file."""

    lines: list[bytes]
    starts: int
    """Where the first one begins."""
    mark: Mark
    is_new: bool
    """Whether they begin at the beginning, so that what was read before is void."""
    has_more: bool
    share: float
    """Part of the file that these lines are."""


@dataclass(slots=True)
class Curves:
    """New points of a run's curves."""

    mark: Mark
    is_new: bool
    has_more: bool
    num_damaged: int = 0
    """Lines that are no objects of ours."""
    curves: dict[str, dict[str, dict[str, list[Point]]]] = field(default_factory=dict)
    """Stage → seed, if the stage has several → metric → points."""


def new_curves(run: RunDir, after: Mark, *, only: Iterable[str] | None = None) -> Curves:
    """Points of `metrics.jsonl` after a mark: by iteration, or by steps in the environment where these are there.

    `only` these names, and those that begin with one of them that ends in "/". Very many points are thinned out, so
    that highs and lows stay. A line that is still being written waits.
    Raises: CheckpointError where the file cannot be read.
    """
    read = _new_lines(run.metrics, after)
    found = Curves(read.mark, read.is_new, read.has_more)
    wanted = None if only is None else frozenset(only)
    beginnings = tuple(name for name in wanted or () if name.endswith("/"))
    for line in read.lines:
        row = row_of(line)
        x = None if row is None else finite_or_none(row.get("env_steps", row.get("iteration")))
        if row is None or x is None:
            found.num_damaged += bool(line.strip())
            continue
        label = "" if row.get("seed") is None else str(row["seed"])
        curves = found.curves.setdefault(str(row.get("stage")), {}).setdefault(label, {})
        for name, value in row.items():
            y = finite_or_none(value)
            is_curve = name not in ("iteration", "seed") and (
                wanted is None or name in wanted or name.startswith(beginnings)
            )
            if y is not None and is_curve and (name in curves or len(curves) < MOST_METRICS):
                curves.setdefault(name, []).append((x, y))
    most = max(20, math.ceil(MOST_POINTS * read.share))
    for seeds in found.curves.values():
        for curves in seeds.values():
            for name, points in curves.items():
                curves[name] = thinned(points, most)
    return found


def new_rows(run: RunDir, after: Mark) -> tuple[list[Row], Mark, bool]:
    """Lines of `metrics.jsonl` after a mark, where they end, and whether there are more to read now.

    A file that was cut before the mark is read from its beginning again; a damaged line is passed over.
    Raises: CheckpointError where the file cannot be read.
    """
    read = _new_lines(run.metrics, after)
    rows: list[Row] = [row for line in read.lines if (row := row_of(line)) is not None]
    return rows, read.mark, read.has_more


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` of the points: of each stretch the lowest and the highest; the first and the last stay."""
    if len(points) <= max(most, 4):
        return list(points)
    inner = points[1:-1]
    num_stretches = max(1, (most - 2) // 2)
    kept = [points[0]]
    for number in range(num_stretches):
        stretch = range(len(inner) * number // num_stretches, len(inner) * (number + 1) // num_stretches)
        places = {
            min(stretch, key=lambda place: inner[place][1], default=None),
            max(stretch, key=lambda place: inner[place][1], default=None),
        }
        kept += [inner[place] for place in sorted(place for place in places if place is not None)]
    return [*kept, points[-1]]


@dataclass(frozen=True, slots=True)
class SampleIndex:
    """Where samples of which iteration begin."""

    mark: Mark
    is_new: bool
    has_more: bool
    num_damaged: int
    iterations: tuple[tuple[str, int, int], ...]
    """Stage, iteration, first byte; an iteration that began before the mark comes again with a later byte."""


_BEGINNING = re.compile(rb'\{"stage": "([A-Za-z0-9_-]{1,50})", "iteration": ([0-9]{1,12})[,}]')


def new_samples(run: RunDir, after: Mark) -> SampleIndex:
    """Where the iterations after a mark begin in `samples.jsonl`. Raises: CheckpointError."""
    read = _new_lines(run.samples, after)
    place, num_damaged = read.starts, 0
    iterations: list[tuple[str, int, int]] = []
    for line in read.lines:
        key = _sample_key(line)
        if key is None:
            num_damaged += bool(line.strip())
        elif not iterations or iterations[-1][:2] != key:
            iterations.append((*key, place))
        place += len(line) + 1
    return SampleIndex(read.mark, read.is_new, read.has_more, num_damaged, tuple(iterations))


def samples_at(run: RunDir, offset: int, *, stage: str, iteration: int) -> list[dict[str, Any]]:
    """The samples of an iteration, which begin at a byte of `samples.jsonl`; none where they are not there (any more).

    Raises: CheckpointError where the file cannot be read.
    """
    content = read_bytes(run.samples, max(0, offset - 1), _MOST_SAMPLE_BYTES)
    if content is None or (offset > 0 and not content.startswith(b"\n")):
        return []
    *lines, _unfinished = content[1 if offset > 0 else 0 :].split(b"\n")
    samples = []
    for line in lines:
        if _sample_key(line) == (stage, iteration):
            samples.append(_sample(row_of(line) or {}))
        elif line.strip():
            break
    return samples


def _sample_key(line: bytes) -> tuple[str, int] | None:
    match = _BEGINNING.match(line)
    if match:
        return match[1].decode(), int(match[2])
    row = row_of(line)
    iteration = None if row is None else whole_or_none(row.get("iteration"))
    return None if row is None or iteration is None else (str(row.get("stage")), iteration)


def _sample(row: Row) -> dict[str, Any]:
    """A sample with texts and finite numbers only."""
    sample: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, str) or finite_or_none(value) is not None:
            sample[name] = value
        elif name in ("prompt", "response", "turns"):
            sample[name] = json.dumps(value, ensure_ascii=False)
    return sample


def _new_lines(path: Path, after: Mark) -> _Lines:
    opened = open_lines(path)
    if opened is None:
        return _Lines([], 0, Mark(), is_new=True, has_more=False, share=1.0)
    with opened as file:
        size = os.fstat(file.fileno()).st_size
        is_new = after.offset <= 0 or after.offset > size or _digest(file, after.offset) != after.digest
        start = 0 if is_new else after.offset
        file.seek(start)
        content = file.read(MOST_BYTES)
        end = content.rfind(b"\n") + 1
        if not end and len(content) == MOST_BYTES:
            end = len(content)  # no line of ours is so long; what follows of it counts as damaged too
        has_more = end > 0 and start + end < size and len(content) == MOST_BYTES
        lines = content[:end].split(b"\n")[:-1] if content[:end].endswith(b"\n") else [content[:end]] * bool(end)
        mark = Mark(start + end, _digest(file, start + end))
        return _Lines(lines, start, mark, is_new=is_new, has_more=has_more, share=end / max(1, size))


def _digest(file: IO[bytes], offset: int) -> str:
    """Of the bytes before `offset`, by which a file is known again that was cut and written anew."""
    first = max(0, offset - _MARKED_BYTES)
    file.seek(first)
    return hashlib.blake2b(file.read(offset - first), digest_size=8).hexdigest() if offset else ""
