"""What run directories say while others write there: which runs there are, new lines of their metrics, samples.

Nothing here writes or locks. Who reads on says where they stopped; a `Mark` that no longer fits leads to the beginning.
"""

import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.lines import (
    Row,
    finite_or_none,
    last_row,
    list_or_empty,
    mapping_or_empty,
    object_or,
    whole_or_none,
)
from rlhfkit.rundir.lock import is_locked
from rlhfkit.rundir.studies import StudyState, study_state
from rlhfkit.rundir.study import StudyDir

__all__ = [
    "FoundRuns",
    "Known",
    "RunState",
    "find_run",
    "find_runs",
    "find_study",
]


_DEEPEST = 3
_MOST_DIRECTORIES = 5000
_QUIET_SECONDS = 600.0
"""After so long without news, or three iterations if that is longer, a run is called quiet."""
_FILES = (
    *(RunDir.config, RunDir.manifest, RunDir.stages, RunDir.metrics, RunDir.samples, RunDir.preferences),
    *(RunDir.labels, RunDir.simulated_labels, RunDir.evaluation, RunDir.report),
)
_WATCHED = (*(file.name for file in _FILES), f"{RunDir.labels.name}-wal")
"""Files that a run changes while it works."""
_ROUND = re.compile(r"round-([1-9][0-9]{0,5})")


# ── which runs there are ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class RunState:
    """How far one run is."""

    id: str
    """Its path below the directory of runs."""
    name: str
    purpose: str
    state: Literal["running", "quiet", "stopped", "finished", "damaged"]
    """Quiet: a process works there, and nothing has changed for long. Stopped: unfinished, and none works there."""
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


_FileStates = tuple[tuple[int, int, int] | None, ...]
"""Of each file in `_WATCHED`: its number, size and time of change; None where there is none."""

Known = dict[Path, tuple[_FileStates, RunState, float]]
"""The state of a run's files, what they said of it then, and after how many seconds without news it is quiet."""


@dataclass(frozen=True, slots=True)
class FoundRuns:
    """Runs, the newest first, each followed by its rounds."""

    runs: tuple[RunState, ...]
    problem: str = ""
    studies: tuple[StudyState, ...] = ()
    """Studies of settings, the newest first; their own runs are not among `runs`."""


def find_runs(root: Path, *, now: float | None = None, known: Known | None = None) -> FoundRuns:
    """All runs and studies below a directory, down to its third level, and itself; links are not followed.

    Who asks again gives the same `known`: a run whose files have not changed since is not read anew. It is filled here.
    """
    now, known = time.time() if now is None else now, {} if known is None else known
    if not root.is_dir():
        return FoundRuns((), f"there is no directory {root.name or root}")
    walk = _Walk(root)
    families: list[list[RunState]] = []
    for path in walk.runs(root, depth=0):
        rounds = [_run_state(root, each, path, now, known) for each in walk.rounds(path)]
        own = _run_state(root, path, None, now, known, rounds)
        families.append([own, *rounds])
    for path in known.keys() - {root / run.id for family in families for run in family}:
        del known[path]
    families.sort(key=lambda family: family[0].age_seconds)
    found = tuple(run for family in families for run in family)
    studies = [study_state(_id(root, path), StudyDir(path), now=now) for path in walk.studies]
    studies.sort(key=lambda study: study.age_seconds)
    problem = f"more than {_MOST_DIRECTORIES} directories; the others are not shown" if walk.is_cut else ""
    return FoundRuns(found, problem, tuple(studies))


def find_run(root: Path, id: str) -> RunDir | None:
    """The run of that id, or nothing: an id leads nowhere outside `root`, and through no link."""
    path = _below(root, id)
    return RunDir(path) if path is not None and RunDir(path).is_run() else None


def find_study(root: Path, id: str) -> StudyDir | None:
    """The study of that id, or nothing, as `find_run`."""
    path = _below(root, id)
    return StudyDir(path) if path is not None and _is_study(path) else None


def _below(root: Path, id: str) -> Path | None:
    """The directory of that id, if it is one below `root` that no link leads to."""
    parts = [] if id == "." else id.split("/")
    if len(parts) > _DEEPEST + 1 or any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        return None
    path = root
    try:
        for part in parts:
            path = path / part
            if not stat.S_ISDIR(path.lstat().st_mode):
                return None
        return path if path.resolve().is_relative_to(root.resolve()) else None
    except (OSError, ValueError, RuntimeError):
        return None


def _is_study(path: Path) -> bool:
    """Whether a study is here; others, too, have a settings.json."""
    study = StudyDir(path)
    return study.is_study() and study.recipe.exists()


@dataclass(slots=True)
class _Walk:
    root: Path
    num_left: int = _MOST_DIRECTORIES
    studies: list[Path] = field(default_factory=list)
    """Those that it came by; it does not go into them."""

    @property
    def is_cut(self) -> bool:
        return self.num_left <= 0

    def runs(self, path: Path, *, depth: int) -> Iterator[Path]:
        if RunDir(path).is_run():
            yield path
        elif _is_study(path):
            self.studies.append(path)
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


def _run_state(
    root: Path, path: Path, parent: Path | None, now: float, known: Known, rounds: Sequence[RunState] = ()
) -> RunState:
    run = RunDir(path)
    states = tuple(_file_state(f"{path}/{name}") for name in _WATCHED)
    seen = known.get(path)
    if seen is None or seen[0] != states or seen[1].problem:
        seen = known[path] = states, *_said(root, run, parent)
    _, said, quiet_after = seen
    changed_at = max((each[2] / 1e9 for each in states if each is not None), default=0.0)
    age = min([max(0.0, now - changed_at), *(each.age_seconds for each in rounds)])
    return replace(said, state=_state(run, said, is_quiet=age > quiet_after), age_seconds=round(age, 1))


def _said(root: Path, run: RunDir, parent: Path | None) -> tuple[RunState, float]:
    """What a run's files say of it, as of a stopped one, and after how many seconds without news it is quiet."""
    problems: list[str] = []
    config = object_or(run.config, problems)
    finished = object_or(run.stages, problems)
    stages = tuple(str(stage) for stage in list_or_empty(config.get("stages")))
    last = last_row(run.metrics)
    stage = next((stage for stage in stages if stage not in finished), None)
    ended = mapping_or_empty(finished.get("ppo")).get("stopped")
    said = RunState(
        id=_id(root, run.path),
        name=str(config.get("name") or run.path.name),
        purpose=str(config.get("purpose") or ""),
        state="stopped",
        stages=stages,
        finished_stages=tuple(each for each in stages if each in finished),
        stage=stage,
        num_done=_num_done(last, config, stage),
        num_planned=_num_planned(config, stage),
        age_seconds=0.0,
        parent=None if parent is None else _id(root, parent),
        stopped=None if ended is None else str(ended),
        problem="; ".join(problems),
    )
    return said, max(_QUIET_SECONDS, 3 * (finite_or_none(last.get("time/iteration_seconds")) or 0.0))


def _state(
    run: RunDir, said: RunState, *, is_quiet: bool
) -> Literal["running", "quiet", "stopped", "finished", "damaged"]:
    if said.problem or (said.stages and said.stage is None):
        return "damaged" if said.problem else "finished"
    if not is_locked(run):
        return "stopped"
    return "quiet" if is_quiet else "running"


def _id(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _file_state(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _num_done(last: Row, config: Row, stage: str | None) -> int | None:
    iteration = finite_or_none(last.get("iteration"))
    if stage is None or last.get("stage") != stage or iteration is None:
        return None
    seed, first = finite_or_none(last.get("seed")), finite_or_none(config.get("seed")) or 0.0
    per_seed = _iterations(config, stage) or 0
    return int(iteration) + 1 + (int(seed - first) * per_seed if seed is not None else 0)


def _num_planned(config: Row, stage: str | None) -> int | None:
    planned = _iterations(config, stage)
    seeds = finite_or_none(config.get("num_seeds")) if stage == "control" else 1
    return None if planned is None or not seeds else int(planned * seeds)


def _iterations(config: Row, stage: str | None) -> int | None:
    """How many iterations PPO has, of one seed; the other stages' depend on their data."""
    ppo = mapping_or_empty(config.get("ppo"))
    if stage == "ppo":
        return whole_or_none(ppo.get("iterations"))
    steps, envs, per_env = (whole_or_none(ppo.get(name)) for name in ("env_steps", "num_envs", "rollout_steps"))
    if stage != "control" or not (steps and envs and per_env):
        return None
    return -(-steps // (envs * per_env))
