"""How much of its work a stage does, and what else is done on the way."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from rlhfkit.config.recipe import Recipe
from rlhfkit.config.stages import Stage
from rlhfkit.config.training import LoopConfig
from rlhfkit.pipeline.build import Builder
from rlhfkit.records import Preference
from rlhfkit.rewards.source import RewardSource
from rlhfkit.rollout.engine import Engine
from rlhfkit.training.memory import MemoryPlan
from rlhfkit.training.observers import Observer

__all__ = ["Workload"]

T = TypeVar("T")
Supervised = TypeVar("Supervised", bound=LoopConfig)


class Workload:
    """All of it, as the recipe says. Who wants less, as the doctor's rehearsal, gives the stages another one."""

    until: int | None = None
    """After so many iterations PPO pauses, if there are more, and nothing follows; see `pausing`."""

    @classmethod
    def pausing(cls, until: int | None) -> "Workload":
        """All of it, up to where PPO has `until` iterations."""
        workload = cls()
        workload.until = until
        return workload

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

    def engine(self, engine: Engine | None, builder: Builder) -> Engine | None:
        """What samples in PPO; None is the own sampler."""
        return engine

    def reward(self, build: Callable[[], RewardSource], builder: Builder) -> RewardSource:
        """What scores in PPO; `build` makes the recipe's own."""
        return build()

    def observers(self, observers: list[Observer]) -> list[Observer]:
        """What looks at PPO while it runs."""
        return observers

    def check_memory(self, stage: Stage, plan: MemoryPlan, microbatch_tokens: int, builder: Builder) -> None:
        """Called before a stage trains; an error here ends the stage."""
