"""What comes before the first stage of a run: everything is checked first, and nothing is written if it will not do."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from rlhfkit.config.load import LoadedRecipe
from rlhfkit.config.recipe import Recipe
from rlhfkit.config.stages import Stage
from rlhfkit.distributed.ranks import Ranks, become, ranks
from rlhfkit.machine.dtype import DtypeChoice
from rlhfkit.machine.progress import Progress
from rlhfkit.models.loading import quiet_transformers
from rlhfkit.pipeline.build import Builder, Given
from rlhfkit.pipeline.context import RunContext
from rlhfkit.pipeline.inputs import Inputs
from rlhfkit.pipeline.shard_choice import ShardChoice, choose_shard
from rlhfkit.pipeline.workload import Workload
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.lock import locked
from rlhfkit.rundir.log import RunLog
from rlhfkit.rundir.resume import (
    prepare,
    refuse_lost_links,
    refuse_other_data,
    refuse_other_directories,
    refuse_other_inputs,
    refuse_other_settings,
)
from rlhfkit.tracking.process import check_trackers, tracked

__all__ = ["note_changes", "open_log", "open_run", "reopened"]


@contextmanager
def open_run(
    loaded: LoadedRecipe,
    directory: Path,
    *,
    fresh: bool = False,
    progress: Progress | None = None,
    dtype: DtypeChoice | None = None,
    left: Sequence[Stage] | None = None,
    given: Given | None = None,
    workload: Workload | None = None,
    tensorboard: bool = True,
) -> Iterator[RunContext]:
    """A run of a language recipe, new or gone on with, for its stages to be run; nobody else may work in it.

    `dtype`: the type that was chosen already, for the run of which this is a part. `left`: the stages whose inputs are
    tried, by default all that are not finished. `given`: what is in memory in place of what the recipe names.
    `tensorboard`: whether anybody will look at its files.
    Raises: RlhfkitError with what to do, before anything is written or removed.
    """
    assert isinstance(loaded.recipe, Recipe)
    run, progress, given = RunDir(directory), progress or Progress(), given or Given()
    # A part of a run shares weights as the whole does.
    choice = choose_shard(loaded.recipe, run, fresh=fresh, given=given) if dtype is None else None
    with _shared_as(choice):
        note_changes(loaded, run, fresh=fresh, progress=progress)
        builder = Builder(loaded.recipe, run, fresh=fresh, given_dtype=dtype, given=given)
        inputs = Inputs(loaded.recipe, builder)
        if warning := inputs.foreign_code():
            progress.warn(warning)
        if left is None:
            finished = {} if fresh else run.finished_stages()
            left = [stage for stage in loaded.recipe.stages if stage not in finished]
        inputs.check(left)
        if not fresh:
            others = refuse_other_inputs(run, inputs.read_from_outside(left))
            for change in (*refuse_other_data(run, inputs.files()), *others):
                progress.warn(change)
        for remark in inputs.remarks() if dtype is None else ():  # of a round, the whole has said it
            progress.warn(remark)
        if dtype is None and (unread := inputs.unread()):
            progress.note(unread)
        with open_log(loaded, run, fresh=fresh, progress=progress, tensorboard=tensorboard) as log:
            builder.keep_given_model()
            ranks().wait()
            ctx = RunContext(inputs, run, log, progress, workload or Workload())
            if choice is not None:
                ctx.manifest.add("parallel", choice.as_facts())
            if choice is not None and choice.asked == "auto":
                progress.note(choice.words())
            yield ctx


def _shared_as(choice: ShardChoice | None) -> AbstractContextManager[Ranks]:
    """In the block weights are parted among the ranks, or not, as was chosen; where nothing was, as before."""
    here = ranks()
    shards = here.shards if choice is None else choice.taken == "fsdp"
    return nullcontext(here) if shards == here.shards else become(replace(here, shards=shards))


def note_changes(loaded: LoadedRecipe, run: RunDir, *, fresh: bool, progress: Progress) -> None:
    """Say which settings have changed since the run began.

    Raises: CheckpointError where the directory is no run's, or a stage has read one of them.
    """
    refuse_other_directories(run)
    if not fresh:
        refuse_lost_links(run)
    for change in () if fresh else refuse_other_settings(run, loaded.recipe):
        progress.note(f"changed since this run began: {change}")


@contextmanager
def open_log(
    loaded: LoadedRecipe, run: RunDir, *, fresh: bool, progress: Progress, tensorboard: bool = True
) -> Iterator[RunLog]:
    """The log of a run whose inputs were checked: the directory is locked, and says what the run is.

    Of several ranks the first one writes there.
    """
    here, trackers = ranks(), loaded.recipe.tracking.to
    if here.is_first:
        check_trackers(trackers)
    here.wait()  # until all have read what an earlier start left
    with locked(run) if here.is_first else nullcontext():
        if here.is_first:
            prepare(run, loaded, fresh=fresh)
        here.wait()
        with (
            tracked(run, trackers if here.is_first else (), note=progress.note, warn=progress.warn) as forget,
            RunLog(run, writes=here.is_first, warn=progress.warn, tensorboard=tensorboard, on_forget=forget) as log,
        ):
            yield log


@contextmanager
def reopened(recipe: Recipe, run: RunDir, stages: Sequence[Stage], *, progress: Progress) -> Iterator[RunContext]:
    """A run as it is, for `stages` to be done again; what it holds stays. Ranks share weights as they do now."""
    inputs = Inputs(recipe, Builder(recipe, run))
    inputs.check(stages)
    here = ranks()
    with (
        locked(run) if here.is_first else nullcontext(),
        quiet_transformers(),
        RunLog(run, writes=here.is_first, warn=progress.warn) as log,
    ):
        yield RunContext(inputs, run, log, progress)
