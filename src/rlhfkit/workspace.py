"""A run directory as a place to work in: who may, and on which settings."""

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rlhfkit.config.control import ControlRecipe
from rlhfkit.config.load import LoadedRecipe, recipe_kind, resolved_json
from rlhfkit.config.schema import Recipe
from rlhfkit.errors import CheckpointError
from rlhfkit.rundir import RunDir, write_atomically

__all__ = ["locked", "prepare", "recipe_of", "refuse_other_directories", "refuse_other_settings"]


def refuse_other_directories(run: RunDir) -> None:
    """Nothing; but nothing may be written, not even the lock, among files that are no run's.

    Raises: CheckpointError.
    """
    path = run.path
    if path.exists() and not run.is_run() and not (path.is_dir() and set(path.iterdir()) <= {run.lock}):
        raise CheckpointError(f"{path} exists and is not a run directory; choose another --run-dir")


def refuse_other_settings(run: RunDir, recipe: Recipe | ControlRecipe) -> None:
    """Nothing, if the directory is free or holds a run of the same settings.

    Raises: CheckpointError with the first setting that differs.
    """
    if run.config.exists() and run.config.read_text(encoding="utf-8") != resolved_json(recipe):
        raise CheckpointError(
            f"{run.path} holds a run of other settings ({_first_difference(recipe_of(run), recipe)}); choose "
            "another --run-dir, or start over here with --fresh"
        )


def prepare(run: RunDir, loaded: LoadedRecipe, *, fresh: bool) -> None:
    """Write down what the run is; what an earlier one left is removed if `fresh`.

    Raises: CheckpointError where the directory holds a run of other settings.
    """
    if fresh:
        # If this is cut short, nothing may look finished, and it must still look like a run.
        for path in sorted(run.path.iterdir(), key=lambda path: (path in (run.config, run.recipe), path != run.stages)):
            if path.is_dir():
                shutil.rmtree(path)
            elif path != run.lock:
                path.unlink()
    else:
        refuse_other_settings(run, loaded.recipe)  # again, now that nobody else writes here
    write_atomically(run.config, resolved_json(loaded.recipe))
    write_atomically(run.recipe, loaded.text)


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


def _first_difference(theirs: Recipe | ControlRecipe, ours: Recipe | ControlRecipe) -> str:
    def differing(a: Any, b: Any, name: str) -> Iterator[str]:
        if isinstance(a, dict) and isinstance(b, dict):
            for key in {**a, **b}:
                yield from differing(a.get(key), b.get(key), f"{name}.{key}" if name else key)
        elif a != b:
            yield f"{name} was {a!r}, is now {b!r}"

    return next(differing(theirs.model_dump(), ours.model_dump(), ""), "only the order differs")


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
