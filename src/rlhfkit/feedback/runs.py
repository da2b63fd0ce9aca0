"""What run directories say while others write there: which runs there are, new lines of their metrics, samples.

Nothing here writes or locks. Who reads on says where they stopped; a `Mark` that no longer fits leads to the beginning.
"""

import hashlib
import json
import math
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from rlhfkit.errors import CheckpointError
from rlhfkit.rundir import RunDir

__all__ = [
    "MOST_POINTS",
    "Curves",
    "FoundRuns",
    "Mark",
    "Point",
    "RunState",
    "SampleIndex",
    "find_run",
    "find_runs",
    "new_curves",
    "new_samples",
    "read_object",
    "samples_at",
    "thinned",
]

MOST_POINTS = 1500
"""So many points of one curve are sent, about, however long the file is."""
MOST_METRICS = 200
_MOST_BYTES = 4 * 1024 * 1024
"""Read at once; the rest comes with the next request."""
_MOST_SAMPLE_BYTES = 1024 * 1024
_MARKED_BYTES = 256
_TAIL_BYTES = 64 * 1024
_DEEPEST = 3
_MOST_DIRECTORIES = 5000
_QUIET_SECONDS = 600.0
"""After so long without news, or three iterations if that is longer, a run is no longer taken for running."""
_ROUND = re.compile(r"round-([1-9][0-9]{0,5})")

Point = tuple[float, float]
Row = Mapping[str, Any]


# ── which runs there are ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class RunState:
    """How far one run is."""

    id: str
    """Its path below the directory of runs."""
    name: str
    purpose: str
    state: Literal["running", "quiet", "finished", "damaged"]
    """Quiet: unfinished, and nothing has changed for long."""
    stages: tuple[str, ...]
    finished_stages: tuple[str, ...]
    stage: str | None
    """The stage at work, or that comes next."""
    num_done: int | None
    """Iterations of the stage."""
    num_planned: int | None
    """Of how many; None where the config does not say."""
    age_seconds: float
    """Since the last change."""
    parent: str | None
    """The run whose round this one is."""
    stopped: str | None
    """Why PPO ended early."""
    problem: str
    """What is wrong with its files."""


@dataclass(frozen=True, slots=True)
class FoundRuns:
    """Runs, the newest first, each followed by its rounds."""

    runs: tuple[RunState, ...]
    problem: str = ""


def find_runs(root: Path, *, now: float | None = None) -> FoundRuns:
    """All runs below a directory, down to its third level, and itself if it is one; links are not followed."""
    now = time.time() if now is None else now
    if not root.is_dir():
        return FoundRuns((), f"there is no directory {root.name or root}")
    walk = _Walk(root)
    families: list[list[RunState]] = []
    for path in walk.runs(root, depth=0):
        rounds = [_run_state(root, each, path, now) for each in walk.rounds(path)]
        own = _run_state(root, path, None, now, rounds)
        families.append([own, *rounds])
    families.sort(key=lambda family: family[0].age_seconds)
    found = tuple(run for family in families for run in family)
    problem = f"more than {_MOST_DIRECTORIES} directories; the others are not shown" if walk.is_cut else ""
    return FoundRuns(found, problem)


def find_run(root: Path, id: str) -> RunDir | None:
    """The run of that id, or nothing: an id leads nowhere outside `root`, and through no link."""
    parts = [] if id == "." else id.split("/")
    if len(parts) > _DEEPEST + 1 or any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        return None
    path = root
    try:
        for part in parts:
            path = path / part
            if not stat.S_ISDIR(path.lstat().st_mode):
                return None
        run = RunDir(path)
        return run if run.is_run() and path.resolve().is_relative_to(root.resolve()) else None
    except (OSError, ValueError, RuntimeError):
        return None


@dataclass(slots=True)
class _Walk:
    root: Path
    num_left: int = _MOST_DIRECTORIES

    @property
    def is_cut(self) -> bool:
        return self.num_left <= 0

    def runs(self, path: Path, *, depth: int) -> Iterator[Path]:
        if RunDir(path).is_run():
            yield path
        elif depth < _DEEPEST:
            for each in self._directories(path):
                if not each.name.startswith("."):
                    yield from self.runs(each, depth=depth + 1)

    def rounds(self, path: Path) -> list[Path]:
        found = [(int(match[1]), each) for each in self._directories(path) if (match := _ROUND.fullmatch(each.name))]
        return [each for _, each in sorted(found) if RunDir(each).is_run()]

    def _directories(self, path: Path) -> Iterator[Path]:
        try:
            with os.scandir(path) as entries:
                names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except OSError:  # it vanished, or is somebody else's
            return
        for name in names:
            if self.is_cut:
                return
            self.num_left -= 1
            yield path / name


def _run_state(root: Path, path: Path, parent: Path | None, now: float, rounds: Sequence[RunState] = ()) -> RunState:
    run = RunDir(path)
    problems: list[str] = []
    config = _object_or(run.config, problems)
    finished = _object_or(run.stages, problems)
    stages = tuple(str(stage) for stage in _list(config.get("stages")))
    last = _last_row(run.metrics)
    stage = next((stage for stage in stages if stage not in finished), None)
    num_done = _num_done(last, config, stage)
    age = min([max(0.0, now - _changed_at(run)), *(each.age_seconds for each in rounds)])
    quiet_after = max(_QUIET_SECONDS, 3 * (_finite(last.get("time/iteration_seconds")) or 0.0))
    ended = _mapping(finished.get("ppo")).get("stopped")
    return RunState(
        id=_id(root, path),
        name=str(config.get("name") or path.name),
        purpose=str(config.get("purpose") or ""),
        state=_state(bool(problems), is_finished=bool(stages) and stage is None, is_quiet=age > quiet_after),
        stages=stages,
        finished_stages=tuple(each for each in stages if each in finished),
        stage=stage,
        num_done=num_done,
        num_planned=_num_planned(config, stage),
        age_seconds=round(age, 1),
        parent=None if parent is None else _id(root, parent),
        stopped=None if ended is None else str(ended),
        problem="; ".join(problems),
    )


def _state(
    is_damaged: bool, *, is_finished: bool, is_quiet: bool
) -> Literal["running", "quiet", "finished", "damaged"]:
    if is_damaged:
        return "damaged"
    return "finished" if is_finished else "quiet" if is_quiet else "running"


def _id(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _changed_at(run: RunDir) -> float:
    """When a file of the run last changed, in seconds since 1970."""
    files = (
        *(run.config, run.manifest, run.stages, run.metrics, run.samples, run.preferences, run.labels),
        *(run.labels.with_name(f"{run.labels.name}-wal"), run.simulated_labels, run.evaluation, run.report),
    )
    times = []
    for path in files:
        try:
            times.append(path.lstat().st_mtime)
        except OSError:
            continue
    return max(times, default=0.0)


def _num_done(last: Row, config: Row, stage: str | None) -> int | None:
    iteration = _finite(last.get("iteration"))
    if stage is None or last.get("stage") != stage or iteration is None:
        return None
    seed, first = _finite(last.get("seed")), _finite(config.get("seed")) or 0.0
    per_seed = _iterations(config, stage) or 0
    return int(iteration) + 1 + (int(seed - first) * per_seed if seed is not None else 0)


def _num_planned(config: Row, stage: str | None) -> int | None:
    planned = _iterations(config, stage)
    seeds = _finite(config.get("num_seeds")) if stage == "control" else 1
    return None if planned is None or not seeds else int(planned * seeds)


def _iterations(config: Row, stage: str | None) -> int | None:
    """How many iterations PPO has, of one seed; the other stages' depend on their data."""
    ppo = _mapping(config.get("ppo"))
    if stage == "ppo":
        return _whole(ppo.get("iterations"))
    steps, envs, per_env = (_whole(ppo.get(name)) for name in ("env_steps", "num_envs", "rollout_steps"))
    if stage != "control" or not (steps and envs and per_env):
        return None
    return -(-steps // (envs * per_env))


# ── curves ───────────────────────────────────────────────────────────────────────────────────────────────────────────


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

    Very many are thinned out, so that highs and lows stay. A line that is still being written waits.
    Raises: CheckpointError where the file cannot be read.
    """
    read = _new_lines(run.metrics, after)
    found = Curves(read.mark, read.is_new, read.has_more)
    wanted = None if only is None else frozenset(only)
    for line in read.lines:
        row = _row(line)
        x = None if row is None else _finite(row.get("env_steps", row.get("iteration")))
        if row is None or x is None:
            found.num_damaged += bool(line.strip())
            continue
        label = "" if row.get("seed") is None else str(row["seed"])
        curves = found.curves.setdefault(str(row.get("stage")), {}).setdefault(label, {})
        for name, value in row.items():
            y = _finite(value)
            is_curve = name not in ("iteration", "seed") and (wanted is None or name in wanted)
            if y is not None and is_curve and (name in curves or len(curves) < MOST_METRICS):
                curves.setdefault(name, []).append((x, y))
    most = max(20, math.ceil(MOST_POINTS * read.share))
    for seeds in found.curves.values():
        for curves in seeds.values():
            for name, points in curves.items():
                curves[name] = thinned(points, most)
    return found


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


# ── samples ──────────────────────────────────────────────────────────────────────────────────────────────────────────


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
    content = _bytes(run.samples, max(0, offset - 1), _MOST_SAMPLE_BYTES)
    if content is None or (offset > 0 and not content.startswith(b"\n")):
        return []
    *lines, _unfinished = content[1 if offset > 0 else 0 :].split(b"\n")
    samples = []
    for line in lines:
        if _sample_key(line) == (stage, iteration):
            samples.append(_sample(_row(line) or {}))
        elif line.strip():
            break
    return samples


def _sample_key(line: bytes) -> tuple[str, int] | None:
    match = _BEGINNING.match(line)
    if match:
        return match[1].decode(), int(match[2])
    row = _row(line)
    iteration = None if row is None else _whole(row.get("iteration"))
    return None if row is None or iteration is None else (str(row.get("stage")), iteration)


def _sample(row: Row) -> dict[str, Any]:
    """A sample with texts and finite numbers only."""
    sample: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, str) or _finite(value) is not None:
            sample[name] = value
        elif name in ("prompt", "response", "turns"):
            sample[name] = json.dumps(value, ensure_ascii=False)
    return sample


# ── reading files that others write ──────────────────────────────────────────────────────────────────────────────────


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a run; an empty one where there is no file. Raises: CheckpointError."""
    content = _bytes(path, 0, _MOST_BYTES)
    if content is None:
        return {}
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is damaged ({error}); expected a JSON object; restore it") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name} is damaged: it holds no JSON object; restore it")
    return value


def _object_or(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        return read_object(path)
    except CheckpointError as error:
        problems.append(str(error))
        return {}


def _open(path: Path) -> IO[bytes] | None:
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


def _bytes(path: Path, offset: int, most: int) -> bytes | None:
    opened = _open(path)
    if opened is None:
        return None
    with opened as file:
        file.seek(offset)
        return file.read(most)


def _new_lines(path: Path, after: Mark) -> _Lines:
    opened = _open(path)
    if opened is None:
        return _Lines([], 0, Mark(), is_new=True, has_more=False, share=1.0)
    with opened as file:
        size = os.fstat(file.fileno()).st_size
        is_new = after.offset <= 0 or after.offset > size or _digest(file, after.offset) != after.digest
        start = 0 if is_new else after.offset
        file.seek(start)
        content = file.read(_MOST_BYTES)
        end = content.rfind(b"\n") + 1
        if not end and len(content) == _MOST_BYTES:
            end = len(content)  # no line of ours is so long; what follows of it counts as damaged too
        has_more = end > 0 and start + end < size and len(content) == _MOST_BYTES
        lines = content[:end].split(b"\n")[:-1] if content[:end].endswith(b"\n") else [content[:end]] * bool(end)
        mark = Mark(start + end, _digest(file, start + end))
        return _Lines(lines, start, mark, is_new=is_new, has_more=has_more, share=end / max(1, size))


def _digest(file: IO[bytes], offset: int) -> str:
    """Of the bytes before `offset`, by which a file is known again that was cut and written anew."""
    first = max(0, offset - _MARKED_BYTES)
    file.seek(first)
    return hashlib.blake2b(file.read(offset - first), digest_size=8).hexdigest() if offset else ""


def _last_row(path: Path) -> Row:
    """The last whole line of a JSONL file; nothing where there is none."""
    try:
        size = path.lstat().st_size
        content = _bytes(path, max(0, size - _TAIL_BYTES), _TAIL_BYTES) or b""
    except (OSError, CheckpointError):
        return {}
    lines = content.split(b"\n")[:-1]
    return next((row for line in reversed(lines) if (row := _row(line)) is not None), {})


def _row(line: bytes) -> dict[str, Any] | None:
    with suppress(ValueError, RecursionError):
        row = json.loads(line)
        return row if isinstance(row, dict) else None
    return None


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**12 else None


def _mapping(value: object) -> Row:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else ()
