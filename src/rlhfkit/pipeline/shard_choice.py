"""Whether weights are parted among the ranks of a run: as `parallel.shard` says, or as the formulas of a plan do."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rlhfkit.config.recipe import Recipe
from rlhfkit.distributed.ranks import on_first, ranks
from rlhfkit.errors import ConfigError, ModelError
from rlhfkit.formulas.assumptions import CPU_ASSUMPTIONS, GPU_ASSUMPTIONS
from rlhfkit.formulas.memory import Layout, MemoryOfRank, Sharding, memory_of, parting_helps
from rlhfkit.formulas.shapes import DecoderShape, shape_of_config, shape_of_recipe
from rlhfkit.formulas.work import Work, supervised_work_of, work_of
from rlhfkit.machine.device import available_bytes, choose_device, held_bytes
from rlhfkit.machine.dtype import choose_dtype
from rlhfkit.pipeline.build import Given
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.resume import recorded_dtype, recorded_shard
from rlhfkit.wording import binary

__all__ = ["ShardChoice", "choose_shard"]

WORDS: dict[Sharding, str] = {
    "none": "every process holds all weights",
    "fsdp": "weights, gradients and averages are parted among the processes (FSDP)",
}


@dataclass(frozen=True)
class ShardChoice:
    """How weights are shared among the ranks, and why."""

    asked: str
    """What the recipe says: "auto", "none" or "fsdp"."""
    taken: Sharding
    why: str

    def words(self) -> str:
        """One line for the user."""
        return f"{WORDS[self.taken]}: {self.why}"

    def as_facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {"asked": self.asked, "taken": self.taken, "why": self.why, "num_ranks": ranks().size}


def choose_shard(recipe: Recipe, run: RunDir, *, fresh: bool, given: Given) -> ShardChoice | None:
    """How the ranks share the weights of a run; None of one process alone, which has nothing to share.

    A run that goes on keeps what it took before, because other sums would change its numbers.
    """
    here, asked = ranks(), recipe.parallel.shard
    if here.size == 1:
        return None
    if asked != "auto":
        return ShardChoice(asked, asked, "the recipe says so")
    device = choose_device(recipe.model.device)
    # On a CPU what the program takes is counted, and held already.
    held = held_bytes(device) if device.type != "cuda" else 0
    memory_bytes = min(here.gather(available_bytes(device, shared_by=here.local_size) + held))

    def choose() -> ShardChoice:
        if not fresh and (before := recorded_shard(run)) is not None:
            return ShardChoice(asked, before, "the run began with it")
        dtype = choose_dtype(recipe.model.dtype, device, recorded=None if fresh else recorded_dtype(run)).dtype
        try:
            works = list(_works(recipe, _shape(recipe, given), dtype.itemsize))
        except (ConfigError, ModelError) as error:
            return ShardChoice(asked, "none", f"what a process needs is not known ({error})")
        return by_memory(works, here.size, on_cpu=device.type != "cuda", memory_bytes=memory_bytes)

    return on_first(choose)


def _shape(recipe: Recipe, given: Given) -> DecoderShape:
    """The shape of the model that the run begins with. Raises: ModelError, ConfigError where it is not known."""
    if given.model is None:
        return shape_of_recipe(recipe.model)
    return shape_of_config(given.model.config.to_dict(), name="the model that was given", source="its config")


def _works(recipe: Recipe, shape: DecoderShape, itemsize: int) -> Iterator[Work]:
    """What the stages have to do that may be at their fullest: PPO, which needs the most, or else those that learn."""
    if "ppo" in recipe.stages:
        yield work_of(recipe, shape, itemsize=itemsize)
        return
    sft, reward_model, dpo = recipe.sft, recipe.reward_model, recipe.dpo
    longest = recipe.rollout.max_response_tokens
    learning = {
        "sft": (sft, sft.minibatch_sequences, sft.max_tokens),
        "reward_model": (reward_model, 2 * reward_model.minibatch_pairs, reward_model.max_tokens),
        "dpo": (dpo, 2 * dpo.minibatch_pairs, dpo.max_tokens),
        "raft": (recipe.raft, recipe.raft.minibatch_prompts, recipe.data.prompt_limit + longest),
    }
    for stage, (config, rows, row_tokens) in learning.items():
        if stage in recipe.stages:
            yield supervised_work_of(recipe, config, shape, itemsize=itemsize, rows=rows, row_tokens=row_tokens)


def by_memory(works: list[Work], num_ranks: int, *, on_cpu: bool, memory_bytes: int) -> ShardChoice:
    """Whole weights where all of `works` fit into the memory of a rank, else parted ones if these need less."""
    assumptions = CPU_ASSUMPTIONS if on_cpu else GPU_ASSUMPTIONS

    def memory(work: Work, sharding: Sharding) -> MemoryOfRank:
        return memory_of(work, Layout(num_ranks, sharding, on_cpu), assumptions, memory_bytes)

    pairs = [(memory(work, "none"), memory(work, "fsdp")) for work in works]
    if not pairs:
        return ShardChoice("auto", "none", "no stage trains a pre-trained model")
    whole, parted = max(pairs, key=lambda pair: pair[0].peak_bytes)
    needs = f"about {binary(whole.peak_bytes)} of the {binary(memory_bytes)} that each has"
    if not parting_helps(whole, parted):
        fits = "" if whole.fits else ", which do not fit, and parting them does not help"
        return ShardChoice("auto", "none", f"they need {needs}{fits}")
    return ShardChoice("auto", "fsdp", f"whole, they need {needs}; parted, about {binary(parted.peak_bytes)}")
