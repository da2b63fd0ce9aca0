"""`rlhfkit doctor`: is the machine ready, and would a recipe run on it; each answer with what was seen and what to do.

Nothing heavy is imported before it is needed, so that a machine on which torch is broken is examined all the same.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rlhfkit.doctor.findings import Finding, Verdict, checked
from rlhfkit.doctor.machine import examine_machine
from rlhfkit.doctor.table import as_json, summary, table_of
from rlhfkit.errors import ConfigError

__all__ = ["Finding", "Verdict", "as_json", "examine", "examine_machine", "summary", "table_of"]


def examine(
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    *,
    run_dir: Path | None = None,
    forecast: bool = False,
) -> Iterator[Finding]:
    """Findings on this machine and, where one is given, on a recipe that would run in `run_dir`, one after the other.

    By default a run is in runs/NAME, as of `rlhfkit run`. Nothing is written there. With `forecast` a part of every
    stage is done, beside that directory, for what it takes in time and memory.
    Raises: nothing of rlhfkit's; what goes wrong is a finding.
    """
    if recipe is None:
        yield from examine_machine(run_dir or Path("runs"))
        return
    from rlhfkit.config.load import load_recipe
    from rlhfkit.rundir.directory import default_run_dir

    try:
        loaded = load_recipe(recipe, overrides)
    except ConfigError as error:
        yield from examine_machine(run_dir or Path("runs"))
        yield Finding("recipe.settings", "fault", str(error))
        return
    directory = run_dir or default_run_dir(loaded.recipe.name, loaded.recipe.seed)
    yield from examine_machine(directory)
    from rlhfkit.doctor.recipe import examine_recipe

    yield from checked("recipe.settings", lambda: examine_recipe(loaded, directory, forecast=forecast))
