"""A run directory as a place to work in: who may, and on which settings."""

import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from rlhfkit.config.control import ControlRecipe
from rlhfkit.config.load import LoadedRecipe, recipe_kind, resolved_json
from rlhfkit.config.recipe import Recipe
from rlhfkit.config.section import may_change
from rlhfkit.config.stages import BASELINES, readers_of_section, readers_of_table
from rlhfkit.errors import CheckpointError
from rlhfkit.rundir.atomic import read_json, write_atomically
from rlhfkit.rundir.directory import RunDir

__all__ = [
    "change_read_by",
    "prepare",
    "recipe_of",
    "recorded_date",
    "recorded_dtype",
    "recorded_shard",
    "refuse_lost_links",
    "refuse_other_data",
    "refuse_other_directories",
    "refuse_other_inputs",
    "refuse_other_settings",
]


ON_THE_WAY = ("seed", "judge", "every_iterations", "num_prompts_on_the_way", "probes")
"""Settings of `evaluation` that PPO goes by."""


def refuse_other_directories(run: RunDir) -> None:
    """Refuse a directory with files that are no run's, before anything is written there, even the lock.

    Raises: CheckpointError.
    """
    path = run.path
    if path.exists() and not run.is_run() and not _is_free(run):
        raise CheckpointError(f"{path} exists and is not a run directory; choose another --run-dir")


def _is_free(run: RunDir) -> bool:
    """Whether there is nothing but votes, and what a start that was cut short leaves."""
    # The lock comes first: without it, a config.json may be a model's.
    own = {run.lock, *run.leftovers(), *((run.config, run.recipe) if run.lock.exists() else ())}
    return run.path.is_dir() and all(file in own or run.holds_votes(file) for file in run.path.iterdir())


def refuse_other_settings(
    run: RunDir, recipe: Recipe | ControlRecipe, *, ignored: Collection[str] = ()
) -> tuple[str, ...]:
    """What differs from the settings of the run that the directory holds, where no stage that has begun read it.

    Nothing, if the directory is free or the settings are the same; those of the names in `ignored` may differ.
    Raises: CheckpointError with the first setting that a stage has read already.
    """
    if not run.config.exists() or run.config.read_text(encoding="utf-8") == resolved_json(recipe):
        return ()
    before = recipe_of(run)
    changes = dict(_differences(before.model_dump(), recipe.model_dump()))
    if _same_dtype(run, before, recipe):
        changes.pop("model.dtype", None)
    begun = {stage for stage in before.stages if _has_begun(run, stage)}
    half_done = begun - set(run.finished_stages())
    for name in ignored:
        changes.pop(name, None)
    for name, change in changes.items():
        readers = (begun & _readers(name, before)) | (half_done & _readers_on_the_way(name, before))
        if name == "rounds" and min(getattr(before, name, 1), getattr(recipe, name, 1)) > 1:
            continue  # rounds that are done stay what they are, and further ones can follow
        if name == "stages" and _begins_with(recipe.stages, before.stages):
            continue  # and so do stages
        if readers or type(before) is not type(recipe) or name in ("name", "stages"):
            raise CheckpointError(
                f"{run.path} holds a run of other settings ({change}); choose another --run-dir, or start over here "
                "with --fresh"
            )
    return tuple(changes.values())


def _begins_with(stages: Sequence[str], before: Sequence[str]) -> bool:
    return tuple(stages[: len(before)]) == tuple(before)


def change_read_by(run: RunDir, recipe: Recipe, stages: Collection[str]) -> str | None:
    """The first setting that differs from those of `run`, and that one of the `stages` has read; None where none has.

    The seed, and what the run is called and does after these stages, do not count.
    """
    before = recipe_of(run)
    for name, change in _differences(before.model_dump(), recipe.model_dump()):
        is_same = name in ("name", "seed", "stages") or (name == "model.dtype" and _same_dtype(run, before, recipe))
        if not is_same and _readers(name, before) & set(stages):
            return change
    return None


def refuse_lost_links(run: RunDir) -> None:
    """Raises: CheckpointError where the run was forked from another one, which is not there any more."""
    for path in run.path.iterdir() if run.path.is_dir() else ():
        if path.is_symlink() and not path.exists():
            raise CheckpointError(
                f"{path} leads to {path.readlink()}, which is gone: the run that this one was forked from was moved or "
                "removed; put it back where it was, or start over here with --fresh"
            )


def refuse_other_data(run: RunDir, files: Mapping[str, Mapping[str, str]]) -> tuple[str, ...]:
    """What differs from the data that finished stages have read, and stages to come read now.

    `files`: table of `data` → file → SHA-256, of the tables that are still to be read.
    Raises: CheckpointError where a stage that has begun would go on with other data than it began with.
    """
    known: dict[tuple[str, str], dict[str, Any]] = {}
    if run.manifest.exists():
        known = {(entry["use"], entry["path"]): entry for entry in read_json(run.manifest).get("data", [])}
    tables = {table for table, _ in known}
    finished = run.finished_stages()
    changes, beside = [], _learnt_beside_ppo(recipe_of(run)) if run.config.exists() else None
    for table, hashes in files.items():
        stages = (*readers_of_table(table), *(("ppo",) if table == beside else ()))
        readers = [stage for stage in stages if _has_begun(run, stage)]
        for path, sha256 in hashes.items():
            before = known.get((table, path), {}).get("sha256")
            if before == sha256 or not readers or table not in tables:
                continue
            was = f"SHA-256 was {before[:12]}…, is now {sha256[:12]}…" if before else f"new, SHA-256 {sha256[:12]}…"
            change = f"data.{table}: {path} has changed since the stage {readers[0]} read it ({was})"
            if any(stage not in finished for stage in readers):
                raise CheckpointError(
                    f"{change}; put back what it was, choose another --run-dir, or start over here with --fresh"
                )
            changes.append(change)
    return tuple(changes)


def recorded_dtype(run: RunDir) -> Literal["float32", "bfloat16"] | None:
    """The type that the run in this directory began with; None where there is none, or nothing says."""
    manifest = read_json(run.manifest) if run.manifest.exists() else {}
    taken = (manifest.get("dtype") or {}).get("taken")
    if taken is None and manifest and run.config.exists():  # a run of an older version, which knew no "auto"
        taken = (read_json(run.config).get("model") or {}).get("dtype")
    return taken if taken in ("float32", "bfloat16") else None


def recorded_shard(run: RunDir) -> Literal["none", "fsdp"] | None:
    """How the ranks of the run in this directory shared its weights; None where it had one process alone."""
    manifest = read_json(run.manifest) if run.manifest.exists() else {}
    taken = (manifest.get("parallel") or {}).get("taken")
    return taken if taken in ("none", "fsdp") else None


def recorded_date(run: RunDir) -> datetime | None:
    """The date that the run in this directory began with, or the whole of which it is a round; None where none is."""
    for directory in (run, RunDir(run.path.resolve().parent)):
        date = (read_json(directory.manifest) if directory.manifest.exists() else {}).get("date")
        if isinstance(date, str):
            return datetime.fromisoformat(date)
    return None


def _same_dtype(run: RunDir, before: Recipe | ControlRecipe, after: Recipe | ControlRecipe) -> bool:
    """Whether `model.dtype` comes to the same type, because "auto" continues with the type that the run began with."""
    if not isinstance(before, Recipe) or not isinstance(after, Recipe):
        return False
    taken = recorded_dtype(run)
    return len({taken if model.dtype == "auto" else model.dtype for model in (before.model, after.model)}) == 1


def refuse_other_inputs(run: RunDir, inputs: Mapping[str, Sequence[Mapping[str, str]]]) -> tuple[str, ...]:
    """What differs from the models and the code that stages have read from outside of the run.

    `inputs`: stage → what it reads now, each with `use` (a setting), `path`, `sha256` and `kind` (model | code).
    Code may be changed by who runs it, as to correct a fault, and is reported.
    Raises: CheckpointError where a stage that has begun would go on with another model than it began with.
    """
    stages = read_json(run.manifest).get("stages", {}) if run.manifest.exists() else {}
    finished, changes = run.finished_stages(), []
    for stage, entries in inputs.items():
        if stage in finished or not _has_begun(run, stage):
            continue
        before = {entry["use"]: entry["sha256"] for entry in stages.get(stage, {}).get("inputs", [])}
        for entry in entries:
            was, now = before.get(entry["use"]), entry["sha256"]
            if was is None or was == now:
                continue
            change = (
                f"{entry['use']}: {entry['path']} has changed since the stage {stage} began (SHA-256 was "
                f"{was[:12]}…, is now {now[:12]}…)"
            )
            if entry["kind"] == "model":
                raise CheckpointError(
                    f"{change}; put back what it was, choose another --run-dir, or start over here with --fresh"
                )
            changes.append(change)
    return tuple(changes)


def _has_begun(run: RunDir, stage: str) -> bool:
    """Whether something of the stage would be used again."""
    return stage in run.finished_stages() or (run.checkpoints / stage).exists()


def _readers(setting: str, recipe: Recipe | ControlRecipe) -> set[str]:
    """The stages that read a setting, by its dotted name."""
    if may_change(recipe, setting):
        return set()
    section, _, key = setting.partition(".")
    readers = readers_of_table(key.partition(".")[0]) if section == "data" else readers_of_section(section)
    # The one stage of a control task reads every section, whose names those of text have too.
    return set(recipe.stages if isinstance(recipe, ControlRecipe) else readers)


def _learnt_beside_ppo(recipe: Recipe | ControlRecipe) -> str | None:
    """The table of `data` that PPO learns beside its rollouts, if any."""
    return recipe.ppo.ptx_table if isinstance(recipe, Recipe) else None


def _readers_on_the_way(setting: str, recipe: Recipe | ControlRecipe) -> set[str]:
    """The stages that read a setting while they run, for texts beside PPO or for an evaluation."""
    if isinstance(recipe, ControlRecipe):
        return set()
    section, _, key = setting.partition(".")
    name = key.partition(".")[0]
    if section == "data" and name == _learnt_beside_ppo(recipe):
        return {"ppo"}
    is_read = (section == "evaluation" and name in ON_THE_WAY) or (section, name) == ("data", "test_prompts")
    readers = {*BASELINES, *(("ppo",) if recipe.evaluation.every_iterations else ())}
    return readers if is_read else set()


def prepare(run: RunDir, loaded: LoadedRecipe, *, fresh: bool) -> None:
    """Write down what the run is; what an earlier one left is removed if `fresh`, except people's votes.

    Raises: CheckpointError where the directory holds a run of other settings.
    """
    if fresh:
        # If this is cut short, nothing may look finished, and it must still look like a run.
        for path in sorted(run.path.iterdir(), key=lambda path: (path in (run.config, run.recipe), path != run.stages)):
            if path != run.lock:
                _remove(run, path)
    else:
        refuse_other_settings(run, loaded.recipe)  # again, now that nobody else writes here
        for path in list(run.leftovers()):
            _remove(run, path)
    write_atomically(run.config, resolved_json(loaded.recipe))
    write_atomically(run.recipe, loaded.text)


def _remove(run: RunDir, path: Path) -> None:
    """Remove a file or a directory; where a directory holds people's votes, all but them."""
    if path.is_symlink() or not path.is_dir():
        if not run.holds_votes(path):
            path.unlink(missing_ok=True)  # a driver on a cluster may be writing here
    elif any(run.holds_votes(file) for file in path.rglob("*")):
        for inner in path.iterdir():
            _remove(run, inner)
    else:
        shutil.rmtree(path)


def recipe_of(run: RunDir) -> Recipe | ControlRecipe:
    """The recipe of a run.

    Raises: CheckpointError where this version does not understand it.
    """
    try:
        table = json.loads(run.config.read_text(encoding="utf-8"))
        return recipe_kind(table).model_validate(table)
    except ValueError as error:
        raise CheckpointError(
            f"{run.config} cannot be read by this version of rlhfkit; choose another --run-dir, or start over here "
            "with --fresh"
        ) from error


def _differences(a: Any, b: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name of each setting that differs, and how."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in {**a, **b}:
            yield from _differences(a.get(key), b.get(key), f"{name}.{key}" if name else key)
    elif a != b:
        yield name, f"{name} was {a!r}, is now {b!r}"
