"""The section `cluster`: who works on a run on a Ray cluster, and on how much of a machine."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from rlhfkit.config.section import Section

if TYPE_CHECKING:
    from rlhfkit.config.load import LoadedRecipe

__all__ = ["ClusterConfig", "in_chunks"]

CHUNK_ROWS = 32
"""Responses of a chunk on a cluster where the recipe does not say."""


class ClusterConfig(Section):
    """Trainers and samplers of `rlhfkit run RECIPE --ray …`; a run without a cluster heeds none of it.

    Which tokens are sampled and what is learnt does not depend on it, but for the rounding of another number of
    trainers: how long it takes does.

    Example:
        >>> from rlhfkit.config.cluster import ClusterConfig
        >>> ClusterConfig(samplers=8).trainers
        1
    """

    trainers: PositiveInt = 1
    """Processes that train, as with `--processes`; they start together, and again together where one is lost."""
    samplers: PositiveInt = 1
    """Processes that sample PPO's responses with `rollout.engine`; any of them may be lost."""
    reward_workers: NonNegativeInt = 0
    """Processes that score responses while others are sampled; with 0 the trainers do it."""
    trainer_cpus: PositiveInt = 1
    """Cores of a trainer, which are its threads."""
    trainer_gpus: NonNegativeFloat = 0.0
    """GPUs of a trainer; a share lets others have the rest of the same one."""
    sampler_cpus: PositiveInt = 1
    """Cores of a sampler."""
    sampler_gpus: NonNegativeFloat = 0.0
    """GPUs of a sampler."""
    reward_worker_cpus: PositiveInt = 1
    """Cores of a reward worker."""
    reward_worker_gpus: NonNegativeFloat = 0.0
    """GPUs of a reward worker."""
    slow_factor: Annotated[float, Field(gt=1.0)] = 3.0
    """A chunk that takes so many times the median is given to another sampler too; the first answer counts."""
    silent_seconds: PositiveFloat = 60.0
    """A trainer that gives no sign of life for so long is taken for lost."""
    max_restarts: NonNegativeInt = 10
    """Losses of trainers in a row, without an iteration between them, after which the run ends."""


def in_chunks(load: "Callable[[Sequence[str]], LoadedRecipe]") -> "LoadedRecipe":
    """The recipe that `load` gives with further overrides: one that samples in chunks of a fixed size."""
    loaded = load([])
    rollout = getattr(loaded.recipe, "rollout", None)
    return loaded if rollout is None or rollout.chunk_rows else load([f"rollout.chunk_rows={CHUNK_ROWS}"])
