"""How far a study of settings is, for who looks on while it works; nothing here writes or locks."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from rlhfkit.errors import CheckpointError
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.lines import read_object
from rlhfkit.rundir.lock import is_locked
from rlhfkit.rundir.study import StudyDir, StudyResults, Trial

__all__ = ["BestSoFar", "StudyState", "best_trial", "num_finished", "read_study", "study_state"]

FINISHED = ("complete", "pruned", "infeasible", "failed")
"""States of a trial that is not trained any further."""
_QUIET_SECONDS = 600.0
_MOST_RUNS = 1000


def read_study(study: StudyDir) -> StudyResults | None:
    """What `study.json` holds; None where there is none yet. Raises: CheckpointError where it is damaged."""
    content = read_object(study.results)
    if not content:
        return None
    remedy = "the next event of the study writes it anew"
    if not _is_finite(content):
        raise CheckpointError(f"{study.results.name} is damaged: it holds a number that is not finite; {remedy}")
    try:
        return StudyResults.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"])) or "the whole"
        raise CheckpointError(f"{study.results.name} is damaged ({place}: {fault['msg']}); {remedy}") from error


def _is_finite(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


@dataclass(frozen=True, slots=True)
class BestSoFar:
    """The winner, or the best trial so far."""

    number: int
    score: float
    kl: float | None


@dataclass(frozen=True, slots=True)
class StudyState:
    """How far one study is."""

    id: str
    """Its path below the directory of runs."""
    name: str
    state: Literal["running", "quiet", "stopped", "finished", "damaged"]
    """As of a run."""
    phase: str
    """What it is at, as `StudyResults.state` has it."""
    num_done: int
    """Trials that are not trained any further."""
    num_planned: int
    metric: str
    best: BestSoFar | None
    is_gain: bool | None
    """Whether the winner is better than the default; None while that is not known."""
    age_seconds: float
    """Since the last change."""
    problem: str
    """What is wrong with its file."""


def study_state(id: str, study: StudyDir, *, now: float) -> StudyState:
    """State of the study in a directory; a damaged file is a problem in words, not an error."""
    problem, results = "", None
    try:
        results = read_study(study)
    except CheckpointError as error:
        problem = str(error)
    runs = list(_runs(study))
    age = max(0.0, now - max(_changed_at(study, runs), default=now))
    best = None if results is None else best_trial(results)
    comparison = None if results is None else results.comparison
    return StudyState(
        id=id,
        name=study.path.name if results is None else results.name,
        state=_state(study, runs, results, problem, is_quiet=age > _QUIET_SECONDS),
        phase="preparing" if results is None else results.state,
        num_done=0 if results is None else num_finished(results),
        num_planned=0 if results is None else results.num_trials,
        metric="" if results is None else results.metric,
        best=None if best is None or best.best is None else BestSoFar(best.number, best.best.score, best.best.kl),
        is_gain=None if comparison is None else comparison.is_gain,
        age_seconds=round(age, 1),
        problem=problem,
    )


def best_trial(study: StudyResults) -> Trial | None:
    """The winner where it is known, or else the best so far that keeps all limits; None where there is none."""
    by_number = {trial.number: trial for trial in study.trials}
    if study.comparison is not None:
        return by_number.get(study.comparison.winner)
    if study.finalists:
        return by_number.get(study.finalists[0].number)
    sound = [trial for trial in study.trials if trial.state not in ("failed", "infeasible")]
    known = [(trial.best.score, trial) for trial in sound if trial.best is not None]
    return max(known, key=lambda pair: pair[0])[1] if known else None


def num_finished(study: StudyResults) -> int:
    """How many trials are not trained any further."""
    return sum(trial.state in FINISHED for trial in study.trials)


def _state(
    study: StudyDir, runs: list[RunDir], results: StudyResults | None, problem: str, *, is_quiet: bool
) -> Literal["running", "quiet", "stopped", "finished", "damaged"]:
    if problem:
        return "damaged"
    if results is not None and results.state == "done":
        return "finished"
    if not (is_locked(study) or any(map(is_locked, runs))):
        return "stopped"
    return "quiet" if is_quiet else "running"


def _runs(study: StudyDir) -> Iterator[RunDir]:
    """The runs inside a study, links left out."""
    yield study.base
    try:
        with os.scandir(study.run("any").path.parent) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:  # none has begun
        return
    yield from (study.run(name) for name in sorted(names)[:_MOST_RUNS])


def _changed_at(study: StudyDir, runs: list[RunDir]) -> Iterator[float]:
    """When files of the study last changed, in seconds since 1970."""
    for path in (study.settings, study.journal, study.results, *(run.metrics for run in runs)):
        yield from _modified(path)


def _modified(path: Path) -> Iterator[float]:
    try:
        yield path.lstat().st_mtime
    except OSError:
        return
