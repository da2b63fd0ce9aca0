"""The recipe that is examined, what of it exists so far, and what has been read of it."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rlhfkit.config.model import PretrainedModelConfig
from rlhfkit.config.recipe import Recipe
from rlhfkit.config.stages import Stage
from rlhfkit.doctor.data import (
    plain_text,
    spaced,
)
from rlhfkit.doctor.reward import trial_texts
from rlhfkit.models.inspection import context_of, inspect_model
from rlhfkit.models.language import LanguageModel
from rlhfkit.pipeline.build import Builder
from rlhfkit.pipeline.inputs import Inputs
from rlhfkit.records import Demonstration, Preference, Prompt
from rlhfkit.rewards.source import ScoredText
from rlhfkit.rundir.directory import RunDir

__all__ = [
    "NUM_PROMPTS",
    "Subject",
    "context_tokens",
    "inspected",
    "texts_of",
    "texts_of_data",
]

NUM_PROMPTS = 16


@dataclass
class Subject:
    """A recipe, and what of it exists so far."""

    recipe: Recipe
    run: RunDir
    failed: set[str] = field(default_factory=set)
    """Names under which the check of the inputs has found a fault; what rests on them is skipped."""

    def __post_init__(self) -> None:
        self.builder = Builder(self.recipe, self.run)
        self.inputs = Inputs(self.recipe, self.builder)
        finished = self.run.finished_stages()
        self.stages: list[Stage] = [stage for stage in self.recipe.stages if stage not in finished]

    @cached_property
    def source(self) -> PretrainedModelConfig | None:
        """The model that can be looked at: what PPO starts from, or what that is made from; None if there is none."""
        if self.run.model("sft").exists() and "sft" in self.recipe.stages:
            return self.builder.starting_point()
        if self.recipe.model.type == "scratch" and not self.run.model("base").exists():
            return None
        return self.builder.source_of()

    @cached_property
    def model(self) -> LanguageModel:
        """Its weights, read once. Raises: RlhfkitError."""
        assert self.source is not None
        return self.builder.language_model(self.source)

    @property
    def why_no_model(self) -> str:
        """Why the model cannot be looked at; empty if it can."""
        if "model" in self.failed:
            return "the model is at fault, as shown above"
        return "there is no model yet: the stage pretrain makes it" if self.source is None else ""

    @property
    def is_before_sft(self) -> bool:
        """Whether SFT will still change the model that can be looked at."""
        return "sft" in self.recipe.stages and not self.run.model("sft").exists()

    def records(self, *tables: str) -> list[Any]:
        """Rows of the first of the tables that could be read."""
        loaded = self.inputs.loaded()
        return next((loaded[table].records for table in tables if table in loaded), [])

    def prompts(self) -> list[Prompt]:
        """Prompts of PPO, or other ones of the recipe."""
        rows = self.records("prompts", "test_prompts", "demonstrations")
        return [row.prompt if isinstance(row, Demonstration) else row for row in rows]


def context_tokens(subject: Subject) -> int | None:
    """Tokens of the context of the model that can be looked at; None where there is none, or no limit."""
    if subject.source is None or "model" in subject.failed:
        return None
    return context_of(inspected(subject))


def inspected(subject: Subject) -> Any:
    """Outline of the model that can be looked at, without its weights."""
    source = subject.source
    assert source is not None
    return inspect_model(
        source.path,
        subject=f'model.path = "{source.path}"',
        revision=source.revision,
        trust_remote_code=source.trust_remote_code,
    )


def texts_of(subject: Subject) -> list[str]:
    """What the recipe's rows say: texts that the model is to continue, or has to learn."""
    found: list[str] = []
    for rows in (subject.records(name) for name in ("demonstrations", "preferences", "prompts", "texts")):
        for row in spaced(rows, 2 * NUM_PROMPTS):
            match row:
                case str():
                    found.append(row)
                case Demonstration():
                    found.append(plain_text(row.prompt) + row.response)
                case Preference():
                    found.append(plain_text(row.prompt) + row.chosen)
                case Prompt():
                    found.append(plain_text(row) + (row.reference or ""))
        if found:
            break
    return found


def texts_of_data(subject: Subject) -> list[ScoredText]:
    """Texts of the data as a reward would see them."""
    return trial_texts(
        subject.records("prompts"),
        subject.records("demonstrations"),
        subject.records("preferences", "test_preferences"),
        subject.inputs.encoder,
    )
