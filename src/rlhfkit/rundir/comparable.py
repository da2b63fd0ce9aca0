"""What `rlhfkit compare` runs: a recipe, or that of a run, with the stages that PPO is compared by."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhfkit.config.load import MADE_IN_PYTHON, LoadedRecipe, list_recipes, load_recipe, recipe_table, with_overrides
from rlhfkit.config.recipe import Recipe
from rlhfkit.config.stages import BASELINES
from rlhfkit.errors import ConfigError
from rlhfkit.rundir.atomic import read_json
from rlhfkit.rundir.directory import RunDir, default_run_dir

__all__ = ["comparable", "directory_for"]


def comparable(recipe_or_run: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """The recipe of this name or file, or that of a run, with DPO, RAFT and the comparison as its last stages.

    DPO is left out where there are no preferences.
    Raises: ConfigError, which lists every fault, and where the recipe has no PPO to compare.
    """
    if (run := _run(recipe_or_run)) is not None:
        text, table = run.recipe.read_text(encoding="utf-8"), read_json(run.config)
        if text.startswith(MADE_IN_PYTHON):
            raise ConfigError(
                f"{run.path} was made in Python, of things that may be in memory there alone; write a recipe of it "
                "(rlhfkit recipes shows some), and compare that"
            )
        loaded = LoadedRecipe(with_overrides(table, overrides, name=f"the run {run.path}"), text, tuple(overrides))
    else:
        loaded, table = load_recipe(recipe_or_run, overrides), recipe_table(recipe_or_run, overrides)
    added = f"stages={json.dumps(_stages(loaded.recipe))}"
    recipe = with_overrides(table, [*overrides, added], name=f"compare {recipe_or_run}")
    return LoadedRecipe(recipe, loaded.text, (*loaded.overrides, added))


def directory_for(recipe_or_run: str, loaded: LoadedRecipe, given: Path | None) -> Path:
    """Where to run it: in the run that was named, whose finished stages are not done again.

    Raises: ConfigError where another directory is given for a run.
    """
    if (run := _run(recipe_or_run)) is None:
        return given or default_run_dir(loaded.recipe.name, loaded.recipe.seed)
    if given is not None:
        words = "which goes on in its place; leave it out"
        raise ConfigError(f"--run-dir {given} was given beside the run {run.path}, {words}")
    return run.path


def _run(recipe_or_run: str) -> RunDir | None:
    """The run of this directory; None where it is a recipe, which the name of a shipped one always is."""
    run = RunDir(recipe_or_run)
    is_shipped = recipe_or_run in {summary.name for summary in list_recipes()}
    return run if run.is_run() and not is_shipped else None


def _stages(recipe: Any) -> list[str]:
    if not isinstance(recipe, Recipe) or "ppo" not in recipe.stages:
        raise ConfigError(
            f"{recipe.name} trains no language model by PPO (stages = {list(recipe.stages)}), so there is nothing to "
            "compare; give a recipe with the stage ppo"
        )
    has_pairs = "preferences" in recipe.stages or recipe.data.preferences is not None
    added = [*(stage for stage in BASELINES if stage != "dpo" or has_pairs), "compare"]
    return [*recipe.stages, *(stage for stage in added if stage not in recipe.stages)]
