"""One run: what its stages share, and the small services that several of them need."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from rlhfkit.config.recipe import Recipe
from rlhfkit.config.stages import STAGE_SPECS, ModelName, Stage
from rlhfkit.data import Loaded, load_prompts
from rlhfkit.distributed.ranks import on_first, ranks
from rlhfkit.envs.text import TextEnvFactory
from rlhfkit.errors import DataError
from rlhfkit.machine.progress import Progress
from rlhfkit.machine.seeding import derive_seed
from rlhfkit.models.cutting import words_on_cut
from rlhfkit.models.encoder import EncodedPrompt, Encoder
from rlhfkit.models.language import LanguageModel
from rlhfkit.models.saving import save_model, try_saving
from rlhfkit.pipeline.build import Builder
from rlhfkit.pipeline.inputs import Inputs
from rlhfkit.pipeline.parted import whole_of
from rlhfkit.pipeline.workload import Workload
from rlhfkit.records import Prompt
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.log import RunLog
from rlhfkit.rundir.manifest import Manifest
from rlhfkit.training.checkpoint import Checkpoints

__all__ = ["RunContext"]

T = TypeVar("T")


@dataclass
class RunContext:
    """What every stage of a run is given."""

    inputs: Inputs
    run: RunDir
    log: RunLog
    progress: Progress
    workload: Workload = field(default_factory=Workload)
    tells_paths: bool = True
    """Whether the line about fast paths is shown; the manifest has them anyway."""
    builder: Builder = field(init=False)
    manifest: Manifest = field(init=False)
    _said: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.builder = self.inputs.builder
        self.builder.paths.tell = self.progress.warn
        self.manifest = Manifest(
            self.run,
            seed=self.recipe.seed,
            device=str(self.builder.device),
            num_threads=torch.get_num_threads(),
            dtype=self.builder.dtype_choice.as_facts(),
            date=self.builder.now.date().isoformat(),
            writes=self.writes,
            warn=self.progress.warn,
        )

    @property
    def writes(self) -> bool:
        """Whether this process is the one, of those that work on the run, that writes its files."""
        return ranks().is_first

    @property
    def recipe(self) -> Recipe:
        """The settings that the stages go by."""
        return self.workload.recipe(self.inputs.recipe)

    # ── what is read ─────────────────────────────────────────────────────────────────────────────────────────────────

    def load(self, table: str, load: Callable[..., Loaded[T]]) -> Loaded[T]:
        """Records of a table of `data`, whose files are noted in the manifest."""
        loaded = self.inputs.load(table, load)
        self._refuse_other_data(table, [file.sha256 for file in loaded.sources])
        self.manifest.add_data(
            {"use": table, "path": str(file.path), "sha256": file.sha256, "num_rows": file.num_rows}
            for file in loaded.sources
        )
        for words in loaded.warnings(table):
            self.once(self.progress.warn, words)
        if loaded.skipped:
            self.manifest.add_stage("data", **{f"{table}_skipped": len(loaded.skipped)})
        return loaded

    def _refuse_other_data(self, table: str, hashes: list[str]) -> None:
        """Raises: DataError where the machines of a run have read different files."""
        for rank, others in enumerate(ranks().gather(hashes)):
            if others != hashes:
                raise DataError(
                    f"data.{table} is not the same on all machines: the files of ranks {ranks().rank} and {rank} "
                    "differ in their SHA-256; give both the same files, or a directory that they share"
                )

    def prompts(self, table: str, encoder: Encoder) -> list[EncodedPrompt]:
        """The prompts of a table of `data`, as a model reads them."""
        return self.encoded(self.load(table, load_prompts).records, encoder, table)

    def encoded(self, prompts: Sequence[Prompt], encoder: Encoder, table: str) -> list[EncodedPrompt]:
        """Prompts out of a table of `data`, cut to what a model reads."""
        limit = self.recipe.data.prompt_limit
        encoded = [encoder.encode(prompt, max_tokens=limit) for prompt in prompts]
        lost = [prompt.share_lost for prompt in encoded if prompt.was_cut]
        if words := words_on_cut(lost, of=len(encoded), max_tokens=limit):
            self.once(self.progress.note, f"data.{table}: {words}")
        self.manifest.add_stage("data", **{f"{table}_num": len(encoded), f"{table}_cut": len(lost)})
        return encoded

    def env_factory(self, table: str) -> TextEnvFactory:
        """What makes the recipe's environment; one of recorded dialogues replays those of a table of `data`."""
        assert self.recipe.env is not None
        dialogues = self.load(table, load_prompts).records if self.recipe.uses_prompts else []
        return self.builder.env_factory(self.recipe.env, dialogues)

    # ── what is written ──────────────────────────────────────────────────────────────────────────────────────────────

    def checkpoints(self, stage: Stage) -> Checkpoints:
        """Where a stage keeps what it needs to go on."""
        return Checkpoints(self.run.checkpoints / stage, warn=self.progress.warn)

    def training(self, stage: Stage) -> dict[str, Any]:
        """The arguments that every supervised trainer takes."""
        return {
            "seed": derive_seed(self.recipe.seed, stage),
            "log": self.log,
            "checkpoints": self.checkpoints(stage),
            "progress": self.progress,
        }

    def try_saving(self, stage: Stage, save: Callable[[Path], object]) -> None:
        """Save what the stage will train and throw it away: what would fail after training fails before."""
        on_first(lambda: try_saving(self.run, _model_of(stage), save))

    def save_model(
        self,
        stage: Stage,
        model: LanguageModel,
        *,
        build: Callable[[], LanguageModel] | None = None,
        name: ModelName | None = None,
    ) -> None:
        """The language model that the stage has trained; of one that is parted among ranks, in the one of `build`.

        `name`: its directory, by default that of the stage.
        """
        whole = model if build is None else whole_of(model, build)
        path = self.save(stage, (whole or model).save, whole or model, name=name)
        self.manifest.add_model(name or _model_of(stage), str(path), template=model.encoder.template_hash)

    def save(
        self, stage: Stage, save: Callable[[Path], object], module: torch.nn.Module, *, name: ModelName | None = None
    ) -> Path:
        """Directory of the model that the stage has trained, as `save` fills it; noted in the manifest."""
        path = on_first(lambda: save_model(self.run, name or _model_of(stage), save, module))
        self.manifest.add_made(stage, path)
        return path

    # ── what is said ─────────────────────────────────────────────────────────────────────────────────────────────────

    def once(self, say: Callable[[str], None], text: str) -> None:
        """Say it, unless it was said before: several stages may read the same data."""
        if text not in self._said:
            say(text)
        self._said.add(text)

    def tell_notes(self) -> None:
        """Say what the builder changed on the way."""
        for note in self.builder.notes:
            self.once(self.progress.note, note)

    def tell_dtype(self) -> None:
        """Say in which type the run computes, where nobody has said it for the whole of which this is a part."""
        choice = self.builder.dtype_choice
        if self.builder.given_dtype is None and (choice.asked == "auto" or choice.is_slow):
            self.once(self.progress.warn if choice.is_slow else self.progress.note, choice.words())

    def tell_paths(self) -> None:
        """Say which fast paths the run takes, and why not the others, once all have been tried; of rounds the first."""
        is_first = self.builder.given_dtype is None or self.recipe.preferences.round == 1
        if self.tells_paths and is_first and (words := self.builder.paths.words()):
            self.progress.note(words)


def _model_of(stage: Stage) -> ModelName:
    name = STAGE_SPECS[stage].model
    assert name is not None, f"the stage {stage} makes no model"
    return name
