"""`rlhfkit tune` and `rlhfkit.tune`: open a study, say what it will take, work on it, say what it has found."""

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from rlhfkit.config.cluster import ClusterConfig
from rlhfkit.config.load import load_recipe, recipe_table
from rlhfkit.config.secrets import hidden_in
from rlhfkit.doctor.forecast import examine_forecast
from rlhfkit.errors import CheckpointError, ConfigError, MissingDependencyError
from rlhfkit.machine.progress import Progress
from rlhfkit.report.study import write_study_page
from rlhfkit.rundir.atomic import read_json, write_atomically, write_json
from rlhfkit.rundir.study import StudyDir, StudyResults
from rlhfkit.tuning.agenda import DEFAULT
from rlhfkit.tuning.board import board, line, seconds_left
from rlhfkit.tuning.cost import Cost, Rates, cost_of, factor_of, fitting
from rlhfkit.tuning.design import Design, Job, design_of, job_overrides
from rlhfkit.tuning.journal import Journal, locked_study
from rlhfkit.tuning.runs import Runs, seconds_to_start
from rlhfkit.tuning.study import Study
from rlhfkit.tuning.suggest import optuna
from rlhfkit.tuning.summary import State, best_recipe, results_of, write_results
from rlhfkit.tuning.work import Work
from rlhfkit.wording import counted, duration, listed

__all__ = ["default_study_dir", "tune"]

UPDATE_SHARE = 0.6
"""Part of an iteration that updates take, before one was timed."""


def default_study_dir(name: str) -> Path:
    """Where a study goes if nobody says otherwise."""
    return Path("runs") / f"tune-{name}"


def tune(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    budget_seconds: float | None = None,
    jobs: int = 1,
    directory: str | Path | None = None,
    storage: str | None = None,
    ray: str | None = None,
    progress: Progress | None = None,
) -> StudyResults:
    """Search for better settings of PPO than a recipe has, or go on with a search that was stopped.

    Trials are ordinary runs below `directory` (by default runs/tune-NAME), paused at rungs and gone on with. What the
    score is, how far the policy may go (`tune.kl`), what is searched (`tune.space`) and how many trials there are
    (`tune.trials`) the recipe's section `tune` says; with `budget_seconds` there are as many as it has room for, and
    nothing begins that it has none for. `jobs` runs at a time. Another call for the same directory joins the search.
    `storage`: URL of a database for what was tried, in place of a file in the directory. `ray`: address of a Ray
    cluster ("auto": the one that this machine belongs to) on whose machines the runs are; each has
    `cluster.trainer_cpus` and `cluster.trainer_gpus`, and all reach the directory by the same path.

    Example:
        >>> from pathlib import Path
        >>> from rlhfkit import tune
        >>> def best_of(recipe: Path, hours: float) -> str:
        ...     found = tune(recipe, ["tune.kl=8"], budget_seconds=3600 * hours, jobs=2)
        ...     return found.command if found.comparison and found.comparison.is_gain else "keep the recipe"

    Returns: what was found: trials, finalists with their seeds, and how winner and recipe compare on fresh seeds and
    prompts that the search did not see. `study.html`, `study.json` and, where the winner is better, `best.toml` are in
    the directory.
    Raises: ConfigError, CheckpointError, MissingDependencyError; TrainingError where the recipe itself cannot be
    trained. KeyboardInterrupt once all that runs has been saved.
    """
    optuna()
    loaded = load_recipe(recipe, overrides)
    progress = progress or Progress()
    design = design_of(loaded.recipe)
    study_dir = StudyDir(directory or default_study_dir(design.recipe.name))
    cluster = getattr(design.recipe, "cluster", ClusterConfig())
    threads = cluster.trainer_cpus if ray else max(1, (os.cpu_count() or 1) // jobs)
    launcher = () if ray is None else launcher_of(ray, cluster)
    opening = _opened(study_dir, loaded.text, list(overrides), design, budget_seconds, jobs, threads, storage, progress)
    design, forecast = opening.design, opening.forecast
    journal = Journal(study_dir, design.knobs, storage=storage, name=study_dir.path.absolute().name)
    runner = Runs(
        study_dir,
        design,
        recipe=str(study_dir.recipe),
        overrides=list(overrides),
        threads=opening.threads,
        launcher=launcher,
    )

    def has_room(study: Study) -> bool:
        if budget_seconds is None:
            return True
        reserve = (forecast.confirmation + forecast.test) / jobs
        return study.ledger.seconds() / jobs + reserve < budget_seconds or not study.journal.trials()

    study = Study(study_dir, design, journal, runner, tell=progress.note, has_room=has_room)

    def write(state: State | None = None) -> StudyResults:
        command = f"rlhfkit run {study_dir.best}"
        results = results_of(
            study, state=state, forecast=forecast.total, budget=budget_seconds, jobs=jobs, command=command
        )
        if results.comparison is not None and results.comparison.is_gain:
            table = recipe_table(study_dir.recipe, overrides)
            write_atomically(study_dir.best, best_recipe(study, table, results))
        write_results(study, results)
        try:
            write_study_page(study_dir)
        except Exception as error:  # it only shows the study, which is whole
            progress.warn(
                f"{study_dir.page} cannot be written ({error}); once that is put right: rlhfkit report {study_dir.path}"
            )
        return results

    def show(draw: Callable[[RenderableType], None] | None) -> None:
        results = write()
        left = seconds_left(results, design, runs_done=study.ledger.num_whole_runs())
        if draw is None:
            progress.note(line(results, left=left))
        else:
            draw(board(results, left=left))

    try:
        with progress.board() as draw:
            is_done = Work(study, after_each=partial(show, draw)).do(jobs)
    except KeyboardInterrupt:
        with locked_study(study_dir):
            write("stopped")
        raise
    with locked_study(study_dir):
        results = write(None if is_done else "stopped")
    if not is_done:
        raise KeyboardInterrupt
    return results


def launcher_of(address: str, cluster: ClusterConfig) -> list[str]:
    """What a command begins with that a Ray cluster is to run, on as much of a machine as a trainer of a run has.

    Raises: ConfigError where the address is no cluster's; MissingDependencyError.
    """
    if address == "local":
        raise ConfigError("--ray local has the runs of a search on this machine, as --jobs has without Ray; use --jobs")
    if find_spec("ray") is None:
        raise MissingDependencyError(
            "--ray needs a package that is missing (ray); pip install 'rlhfkit[ray]', on every machine of the cluster"
        )
    module = [sys.executable, "-m", "rlhfkit.launch.errand"]
    room = [f"--cpus={cluster.trainer_cpus}", f"--gpus={cluster.trainer_gpus:g}"]
    return [*module, f"--address={address}", *room, "--"]


@dataclass(frozen=True)
class _Opening:
    design: Design
    forecast: Cost
    threads: int


def _opened(
    study: StudyDir,
    text: str,
    overrides: list[str],
    design: Design,
    budget: float | None,
    jobs: int,
    threads: int,
    storage: str | None,
    progress: Progress,
) -> _Opening:
    """The study as it was begun, or begun now: what is decided once stands in `settings.json`."""
    if study.path.exists() and not study.is_study() and any(study.path.iterdir()):
        left = {study.lock.name, study.recipe.name}
        if any(path.name not in left for path in study.path.iterdir()):
            raise CheckpointError(
                f"{study.path} exists and is not the directory of a study; choose another --study-dir"
            )
    study.path.mkdir(parents=True, exist_ok=True)
    with locked_study(study):
        if not study.is_study():
            rates = _measured(text, overrides, design, study, progress)
            if budget is not None and "trials" not in design.tune.model_fields_set:
                design = fitting(design, rates, budget=budget, jobs=jobs)
            forecast = cost_of(design, rates)
            write_atomically(study.recipe, text)
            write_json(
                study.settings,
                {
                    "overrides": hidden_in(overrides),
                    "tune": design.tune.model_dump(mode="json"),
                    "recipe_sha256": hashlib.sha256(text.encode()).hexdigest(),
                    "rungs": list(design.rungs),
                    "every": design.every,
                    "threads": threads,
                    "storage": (storage or "").rpartition("@")[2],
                    "forecast": forecast.__dict__,
                },
            )
        known = read_json(study.settings)
    _refuse_others(study, known, text, overrides)
    design = design.with_trials(known["tune"]["trials"])
    for words in plan_lines(design, Cost(**known["forecast"]), budget=budget, jobs=jobs):
        progress.note(words)
    return _Opening(design, Cost(**known["forecast"]), known["threads"])


def _refuse_others(study: StudyDir, known: dict[str, Any], text: str, overrides: list[str]) -> None:
    """Raises: CheckpointError where the directory holds a search of something else."""
    same_text = known["recipe_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    given = hidden_in(overrides)
    if same_text and known["overrides"] == given:
        return
    what = "another recipe" if not same_text else f"the settings {known['overrides']}, not {given}"
    raise CheckpointError(
        f"{study.path} holds a search of {what}; give the same recipe and settings, or choose another --study-dir"
    )


def _measured(text: str, overrides: list[str], design: Design, study: StudyDir, progress: Progress) -> Rates:
    """How long the recipe's stages take here, by a short try of each."""
    progress.note("trying each stage for a moment, to know what the search will take")
    job = Job(DEFAULT, design.recipe.seed, "test", design.default_params)
    with tempfile.TemporaryDirectory() as room:
        path = Path(room, "recipe.toml")
        path.write_text(text, encoding="utf-8")
        loaded = load_recipe(path, [*overrides, *job_overrides(design, job)])
    seconds: dict[str, float] = {}
    for finding in examine_forecast(loaded, study.run("forecast")):
        stage = finding.name.partition(".")[2]
        if finding.verdict == "fault":
            raise ConfigError(f"{finding.seen}; {finding.remedy}")
        if "seconds" in finding.numbers:
            seconds[stage] = finding.numbers["seconds"]
    whole = seconds.get("control" if design.is_control else "ppo", 0.0)
    base = sum(seconds.get(stage, 0.0) for stage in design.stages_before)
    return Rates(
        base=base,
        whole=whole,
        start=seconds_to_start(),
        evaluation=seconds.get("evaluate", 0.0),
        factor=factor_of(design, UPDATE_SHARE),
    )


def plan_lines(design: Design, cost: Cost, *, budget: float | None, jobs: int) -> Iterator[str]:
    """The space, the plan and what it is expected to take, for people."""
    tune = design.tune
    score = (
        f"{design.metric} within {design.kl:g} nats of the reference" if design.kl else f"{design.metric} at the end"
    )
    yield f"search: {counted(tune.trials, 'trial')} of {design.recipe.name}, the recipe as it is first; score: {score}"
    for knob in design.knobs:
        where = knob.where
        places = (
            listed([str(choice) for choice in where.choices]) if where.choices else f"{where.low:g} to {where.high:g}"
        )
        default = "" if knob.default is None else f" (the recipe: {_short(knob.default)})"
        yield f"  {knob.name}: {places}{', by factors' if where.log else ''}{default}"
    if len(design.rungs) > 1:
        rungs = listed([str(rung) for rung in design.rungs[:-1]])
        yield f"  compared after {rungs} of {design.total} {design.unit}; one in {tune.reduction} goes on"
    yield (
        f"  then {tune.finalists} finalists with {tune.confirmation_seeds} more seeds, and winner against recipe with "
        f"{tune.test_seeds} fresh ones"
    )
    time = duration(cost.total / jobs)
    parts = ", ".join(f"{name} {duration(getattr(cost, name))}" for name in ("base", "search", "confirmation", "test"))
    limit = "" if budget is None else f"; it may take {duration(budget)}"
    yield f"  expected: {time} with {counted(jobs, 'run')} at a time ({parts}){limit}"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
