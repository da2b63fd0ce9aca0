"""A run that begins with the finished stages of another one, by links to what those wrote.

So PPO can be tried with several settings, or seeds, without fine-tuning and a reward model of each: all read the same.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhfkit.config.load import LoadedRecipe
from rlhfkit.config.recipe import Recipe
from rlhfkit.config.stages import STAGE_SPECS, Stage, readers_of_table
from rlhfkit.errors import CheckpointError, ConfigError
from rlhfkit.rundir.atomic import read_json, write_atomically, write_json
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.lock import locked
from rlhfkit.rundir.resume import change_read_by, prepare, recipe_of, refuse_other_directories, refuse_other_settings

__all__ = ["fork"]


def fork(base: RunDir, to: RunDir, loaded: LoadedRecipe) -> None:
    """Make `to` a run of `loaded`, in which the stages that `base` has finished are finished.

    `run(loaded, to.path)` then goes on with the next stage, with the bits that `base` would have with these settings.
    These may differ from those of `base` where none of its finished stages has read them: in `seed`, which is that of
    the stages to come, in `name`, and in `stages` after the finished ones. The links are relative, so both directories
    can be moved together; nothing that is done in `to`, --fresh included, changes `base`. Done again after a kill, it
    completes what that left; where it is done, it changes nothing.
    Raises: ConfigError with the first setting that may not differ. CheckpointError where `base` is no whole run, or
    `to` holds anything else.
    """
    done = _finished_stages(base, loaded)
    links = list(_written_by(base, done))
    refuse_other_directories(to)
    with locked(to):
        if set(done) <= to.finished_stages().keys():
            refuse_other_settings(to, loaded.recipe)
            return
        prepare(to, loaded, fresh=False)
        for path in links:
            _link(path, to.path / path.relative_to(base.path))
        for path in (base.metrics, base.samples, base.observations):
            _copy_lines(path, to.path / path.name, done)
        write_json(to.manifest, _manifest(base, to, done, seed=loaded.recipe.seed))
        finished = base.finished_stages()
        write_json(to.stages, {stage: finished[stage] for stage in done})  # the last: now the fork is whole


def _finished_stages(base: RunDir, loaded: LoadedRecipe) -> tuple[Stage, ...]:
    """The stages that `base` has finished. Raises: ConfigError, CheckpointError, as `fork`."""
    if not base.is_run():
        raise CheckpointError(f"{base.path} is no run directory, so there is nothing to fork; it may have been moved")
    before, after = recipe_of(base), loaded.recipe
    if not isinstance(before, Recipe) or not isinstance(after, Recipe):
        raise ConfigError(f"{after.name} is a control task, whose one stage leaves nothing to fork; run it by itself")
    if before.rounds > 1 or after.rounds > 1:
        raise ConfigError(f"rounds = {max(before.rounds, after.rounds)} cannot be forked; set rounds=1")
    finished = base.finished_stages()
    done = tuple(stage for stage in before.stages if stage in finished)
    if not done:
        raise CheckpointError(f"{base.path} has finished no stage yet, so there is nothing to fork; run it first")
    if after.stages[: len(done)] != done:
        raise ConfigError(
            f"stages = {list(after.stages)} does not begin with what {base.path} has finished, {list(done)}; name "
            "these first, in this order"
        )
    if (change := change_read_by(base, after, done)) is not None:
        raise ConfigError(
            f"{change}, but a stage that {base.path} has finished has read it; leave it as it was, or run the recipe "
            "from the beginning"
        )
    return done


def _written_by(base: RunDir, done: Sequence[Stage]) -> Iterator[Path]:
    """What these stages of `base` have left. Raises: CheckpointError where a model of theirs is gone."""
    further = {"ppo": (base.checkpoints / "ppo",), "evaluate": (base.evaluation,), "probe": (base.probes,)}
    for stage in done:
        spec = STAGE_SPECS[stage]
        if spec.model is not None and not base.model(spec.model).is_dir():
            raise CheckpointError(
                f"{base.model(spec.model)} is gone, which the stage {stage} wrote; put it back, or run the recipe of "
                f"{base.path} again with --fresh"
            )
        paths = (*(base.path / name for name in spec.writes), *further.get(stage, ()))
        yield from (path for path in paths if path.exists())


def _link(target: Path, link: Path) -> None:
    """Have `link` lead to `target`, by a relative path. Raises: CheckpointError where something else is there."""
    link.parent.mkdir(exist_ok=True)
    way = os.path.relpath(target.parent.resolve() / target.name, link.parent.resolve())
    if link.is_symlink():
        link.unlink()  # of a fork that was cut short
    elif link.exists():
        raise CheckpointError(f"{link} is there already, and no link to {target}; choose another directory")
    link.symlink_to(way)


def _copy_lines(source: Path, to: Path, done: Sequence[Stage]) -> None:
    """The lines of these stages: a file to which the fork appends can be no link."""
    if not source.exists():
        return
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    beginnings = tuple(f'{{"stage": {json.dumps(stage)}, ' for stage in done)
    write_atomically(to, "".join(line for line in lines if line.startswith(beginnings)))


def _manifest(base: RunDir, to: RunDir, done: Sequence[Stage], *, seed: int) -> dict[str, Any]:
    """That of `base`, with what belongs to these stages alone."""
    known = read_json(base.manifest)
    made = {name for stage in done for name in STAGE_SPECS[stage].writes}
    return {
        **known,
        "seed": seed,
        "data": [entry for entry in known["data"] if set(readers_of_table(entry["use"])) & set(done)],
        "models": [
            {**model, "path": str(to.path / model["name"])} if model["name"] in made else model
            for model in known["models"]
            if model["name"] in {*made, "start"}
        ],
        "stages": {stage: facts for stage, facts in known["stages"].items() if stage in {*done, "data"}},
    }
