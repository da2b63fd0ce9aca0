"""The stages of a recipe, in order; what is finished is not done again."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhfkit.config.control import ControlRecipe
from rlhfkit.config.load import LoadedRecipe
from rlhfkit.config.recipe import Recipe
from rlhfkit.config.stages import STAGE_SPECS, Stage
from rlhfkit.distributed.ranks import ranks
from rlhfkit.errors import ConfigError
from rlhfkit.machine.device import release_memory
from rlhfkit.machine.dtype import DtypeChoice
from rlhfkit.machine.interrupts import Paused
from rlhfkit.machine.progress import Progress
from rlhfkit.machine.seeding import derive_seed, seed_everything
from rlhfkit.machine.watchdog import Watchdog, phase
from rlhfkit.models.loading import quiet_transformers
from rlhfkit.pipeline.compare import compare
from rlhfkit.pipeline.context import RunContext
from rlhfkit.pipeline.control import ControlPipeline, check_control
from rlhfkit.pipeline.dpo import dpo
from rlhfkit.pipeline.evaluate import evaluate
from rlhfkit.pipeline.opening import note_changes, open_log, open_run
from rlhfkit.pipeline.ppo import ppo
from rlhfkit.pipeline.preferences import preferences
from rlhfkit.pipeline.probe import ask_reward, probe
from rlhfkit.pipeline.raft import raft
from rlhfkit.pipeline.reward_model import judge, reward_model
from rlhfkit.pipeline.sft import pretrain, sft
from rlhfkit.pipeline.workload import Workload
from rlhfkit.report.page import report_or_warn
from rlhfkit.rundir.directory import RunDir
from rlhfkit.training.out_of_memory import memory_told

__all__ = ["STAGES", "begin_stage", "end_stage", "refuse_pause", "run", "run_stage", "working"]

STAGES: dict[Stage, Callable[[RunContext], dict[str, Any]]] = {
    "pretrain": pretrain,
    "sft": sft,
    "preferences": preferences,
    "reward_model": reward_model,
    "judge": judge,
    "ppo": ppo,
    "evaluate": evaluate,
    "probe": probe,
    "dpo": dpo,
    "raft": raft,
    "compare": compare,
}
"""Stage → what does it, and returns a small record of facts for `stages.json`."""


def run(
    loaded: LoadedRecipe,
    directory: Path,
    *,
    fresh: bool = False,
    progress: Progress | None = None,
    dtype: DtypeChoice | None = None,
    workload: Workload | None = None,
) -> None:
    """Run the recipe's stages in `directory`, from where an unfinished run of the same recipe stopped.

    `dtype` is the type that was chosen already, for the run of which this is a round; `workload` as for `open_run`.
    Raises: RlhfkitError with what to do; what was finished before stays. Paused where the workload says so.
    """
    progress, until = progress or Progress(), None if workload is None else workload.until
    if until is not None:
        refuse_pause(loaded.recipe, until)
    if isinstance(loaded.recipe, ControlRecipe):
        _run_control(loaded, loaded.recipe, RunDir(directory), fresh=fresh, progress=progress, until=until)
        return
    with open_run(loaded, directory, fresh=fresh, progress=progress, dtype=dtype, workload=workload) as ctx:
        is_finished = set(loaded.recipe.stages) <= set(ctx.run.finished_stages())
        for stage in loaded.recipe.stages:
            run_stage(ctx, stage)
            if stage == "ppo" and not is_finished:
                _pause_after_ppo(ctx)
        if is_finished:
            progress.note("nothing was left to do; --fresh starts over")
        if ctx.writes:
            report_or_warn(ctx.run, progress.warn)


def refuse_pause(recipe: Recipe | ControlRecipe, until: int) -> None:
    """Raises: ConfigError where there is no one PPO whose iterations could be counted."""
    why = ""
    if isinstance(recipe, ControlRecipe):
        if recipe.num_seeds > 1:
            why = f"num_seeds = {recipe.num_seeds} trains as many policies, one after the other; set num_seeds=1"
    elif "ppo" not in recipe.stages:
        why = f"this recipe has none (stages = {list(recipe.stages)}); leave --until out"
    elif recipe.rounds > 1:
        why = f"rounds = {recipe.rounds} runs it as many times; leave --until out, or set rounds=1"
    if why:
        raise ConfigError(f"--until {until} counts the iterations of PPO, and {why}")


def _pause_after_ppo(ctx: RunContext) -> None:
    """Raises: Paused where PPO was to pause before its last iteration, though it has ended by itself before that."""
    until, stages = ctx.workload.until, ctx.recipe.stages
    if until is None or until >= ctx.recipe.ppo.iterations or stages[-1] == "ppo":
        return
    done = ctx.run.finished_stages()["ppo"]["iterations"]
    left = ", ".join(stages[stages.index("ppo") + 1 :])
    raise Paused(f"PPO is finished, after {done} of {ctx.recipe.ppo.iterations} iterations; left to do: {left}")


def _run_control(
    loaded: LoadedRecipe,
    recipe: ControlRecipe,
    run_dir: RunDir,
    *,
    fresh: bool,
    progress: Progress,
    until: int | None = None,
) -> None:
    note_changes(loaded, run_dir, fresh=fresh, progress=progress)
    for note in check_control(recipe):  # before anything is written
        progress.note(note)
    with open_log(loaded, run_dir, fresh=fresh, progress=progress) as log:
        ControlPipeline(recipe, run_dir, log, progress, until).do()
        report_or_warn(run_dir, progress.warn)


def run_stage(ctx: RunContext, stage: Stage) -> None:
    """Run one stage, unless it is finished."""
    if stage in ctx.run.finished_stages():
        ctx.progress.note(f"{stage}: finished before")
        return
    if stage == "ppo" and "probe" in ctx.recipe.stages:
        ask_reward(ctx)  # before the stage sets its random numbers
    start = begin_stage(ctx, stage)
    watchdog = Watchdog(ctx.recipe.watchdog, ctx.run.stacks, warn=ctx.progress.warn)
    with watchdog, ctx.manifest.stop_timed(stage), working(ctx, stage):
        record = STAGES[stage](ctx)
    end_stage(ctx, stage, record, seconds=time.monotonic() - start)


def begin_stage(ctx: RunContext, stage: Stage) -> float:
    """When the stage began, once what it reads from outside of the run is noted and its random numbers are set."""
    ctx.tell_dtype()
    ctx.manifest.refuse_damaged()
    ctx.manifest.add_inputs(stage, ctx.inputs.read_from_outside([stage])[stage])
    start = time.monotonic()
    seed_everything(derive_seed(ctx.recipe.seed, stage))
    release_memory()  # of the stage before, whose gigabytes this one would begin with
    return start


@contextmanager
def working(ctx: RunContext, stage: Stage) -> Iterator[None]:
    """In the block the stage works: its errors are noted, and one of memory says which setting to lower."""
    with quiet_transformers(), ctx.manifest.error_noted(stage), memory_told(stage, ctx.recipe), phase(stage):
        yield


def end_stage(ctx: RunContext, stage: Stage, record: dict[str, Any], *, seconds: float) -> None:
    """Note that the stage is finished, with its record of facts; `seconds` of this start are added to earlier ones."""
    ctx.manifest.add("fast_paths", ctx.builder.paths.as_facts())
    if "ppo" not in ctx.recipe.stages and stage == ctx.recipe.stages[-1]:
        ctx.tell_paths()
    seconds = ctx.manifest.seconds_of(stage, seconds)
    ctx.manifest.add_stage(stage, seconds=seconds)
    if ctx.writes:
        ctx.run.finish_stage(stage, {"seconds": seconds, **record})
        if not STAGE_SPECS[stage].keeps_checkpoints:  # the result is written, and nobody needs them any more
            shutil.rmtree(ctx.run.checkpoints / stage, ignore_errors=True)
    ranks().wait()  # what the stage has written is there for all
