"""A run of a recipe that stays open while somebody's program works with it."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rlhfkit.api.given import Gathered
from rlhfkit.api.places import Place, closer
from rlhfkit.api.recipes import loaded_recipe
from rlhfkit.api.words import Words
from rlhfkit.config.recipe import Recipe
from rlhfkit.config.stages import Stage
from rlhfkit.distributed.ranks import ranks
from rlhfkit.machine.progress import Progress
from rlhfkit.models.loading import quiet_transformers
from rlhfkit.pipeline.context import RunContext
from rlhfkit.pipeline.opening import open_run
from rlhfkit.rundir.directory import RunDir

__all__ = ["Opened"]


class Opened:
    """A run with one stage, in the run directory that was given or in one that goes with it."""

    def __init__(
        self,
        stage: Stage,
        gathered: Gathered,
        *,
        by: str,
        words: Words,
        seed: int,
        run_dir: str | Path | None,
        progress: Progress | None,
        left: Sequence[Stage] | None = None,
        **sections: Any,
    ) -> None:
        """Check everything, and open the run.

        `by` is who asks, and hears of it in `words`; `left` is what is tried, by default the stage.
        Raises: RlhfkitError before anything is written.
        """
        progress = Progress(quiet=True) if not ranks().is_first else progress or Progress()
        self.stage, self.progress = stage, progress.in_words(words.said)
        self.held = gathered.held
        """What must live as long as the run."""
        settings = {"name": stage, "stages": (stage,), "seed": seed, **gathered.sections, **sections}
        self.recipe = Recipe(**settings)
        self.place = Place(run_dir)
        self.run_dir = RunDir(self.place.path)
        with ExitStack() as stack:
            loaded = loaded_recipe(self.recipe, by=by)
            with quiet_transformers():
                self.ctx: RunContext = stack.enter_context(
                    open_run(
                        loaded,
                        self.place.path,
                        progress=self.progress,
                        left=left,
                        given=gathered.given,
                        tensorboard=self.stays,
                    )
                )
            self.ctx.tells_paths = False  # what is switched off is warned of; the rest is for the manifest
            self.stack = stack.pop_all()
        self._close = closer(self, self.stack, self.place)

    @property
    def stays(self) -> bool:
        """Whether what is written stays."""
        return self.place.stays

    @property
    def is_finished(self) -> bool:
        """Whether an earlier start has finished the stage."""
        return self.stage in self.run_dir.finished_stages()

    def close(self) -> None:
        """Let go of the run directory, and remove it if it does not stay."""
        self._close()
