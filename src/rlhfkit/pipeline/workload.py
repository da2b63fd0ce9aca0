"""How much of its work a stage does, and what else is done on the way."""

from collections.abc import Sequence
from typing import TypeVar

from rlhfkit.config.recipe import Recipe
from rlhfkit.config.stages import Stage
from rlhfkit.config.training import SupervisedConfig
from rlhfkit.pipeline.build import Builder
from rlhfkit.records import Preference
from rlhfkit.rollout.engine import Engine
from rlhfkit.training.memory import MemoryPlan

__all__ = ["Workload"]

T = TypeVar("T")
Supervised = TypeVar("Supervised", bound=SupervisedConfig)


class Workload:
    """All of it, as the recipe says. Who wants less, as the doctor's rehearsal, gives the stages another one."""

    def recipe(self, recipe: Recipe) -> Recipe:
        """The settings that a stage goes by."""
        return recipe

    def recipe_in_memory(self, recipe: Recipe) -> Recipe:
        """The settings that PPO's memory is planned for."""
        return recipe

    def lesson(
        self, stage: Stage, rows: Sequence[T], config: Supervised, *, minibatch_rows: int
    ) -> tuple[Sequence[T], Supervised]:
        """The rows that a supervised stage learns from, and its settings."""
        return rows, config

    def test_pairs(self, pairs: list[Preference]) -> list[Preference]:
        """The pairs that the reward model is measured on."""
        return pairs

    def engine(self, engine: Engine | None) -> Engine | None:
        """What samples in PPO; None is the own sampler."""
        return engine

    def check_memory(self, stage: Stage, plan: MemoryPlan, microbatch_tokens: int, builder: Builder) -> None:
        """Called before a stage trains; an error here ends the stage."""
