"""Where memory runs out: which setting to lower, from what to what."""

from collections.abc import Iterator
from contextlib import contextmanager

from rlhfkit.config.control import ControlRecipe
from rlhfkit.config.recipe import Recipe
from rlhfkit.config.stages import role_of, section_of
from rlhfkit.distributed.ranks import ranks
from rlhfkit.errors import OutOfMemoryError
from rlhfkit.machine.device import choose_device, is_out_of_memory
from rlhfkit.machine.dtype import bfloat16_saves
from rlhfkit.machine.watchdog import failed_phases

__all__ = ["is_out_of_memory", "memory_told"]

FEW_SLOTS = 8


@contextmanager
def memory_told(stage: str, recipe: Recipe | ControlRecipe) -> Iterator[None]:
    """Where memory runs out in the block, raise an error that says what to lower, from what to what.

    Raises: OutOfMemoryError in the place of torch's, and of Python's own.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        phases = failed_phases()
        place = f"{phases[-1]} of the stage {stage}" if len(phases) > 1 else f"the stage {stage}"
        reason = " ".join(str(error).split())[:200]
        raise OutOfMemoryError(
            f"out of memory in {place}{f' ({reason})' if reason else ''}; {_advice(stage, phases, recipe)}{_parted()}. "
            "Then the same command goes on from the last checkpoint"
        ) from error


def _advice(stage: str, phases: tuple[str, ...], recipe: Recipe | ControlRecipe) -> str:
    if isinstance(recipe, ControlRecipe):
        return (
            f"ppo.rollout_steps x ppo.num_envs = {recipe.ppo.rollout_steps * recipe.ppo.num_envs} steps are held at a "
            f"time: lower ppo.num_envs (now {recipe.ppo.num_envs}), or close other programs"
        )
    if "reward" in phases:
        batch = getattr(recipe.reward, "batch_tokens", None)
        unknown = "see what the reward source allocates, or free memory"
        return _lower("reward.batch_tokens", batch, 1) if batch else unknown
    if "generation" in phases:
        slots = recipe.rollout.slots
        if slots > FEW_SLOTS:
            return _lower("rollout.slots", slots, FEW_SLOTS)
        longest = recipe.rollout.max_response_tokens
        return (
            f"rollout.slots is {slots} already, so lower rollout.max_response_tokens (now {longest}){_smaller(recipe)}"
        )
    section, longest = _section(stage, recipe)
    name, now = f"{section}.microbatch_tokens", getattr(recipe, section).microbatch_tokens
    if now == "auto":
        return f'{name} is "auto", which hoped for too much: try {name}={longest}, and then more'
    if now > longest:
        return _lower(name, now, longest)
    return (
        f"{name} is {now} already, and the longest sequences have {longest} tokens, so that one at a time does not "
        f"fit: shorten them{_smaller(recipe)}"
    )


def _section(stage: str, recipe: Recipe) -> tuple[str, int]:
    """(the section whose `microbatch_tokens` counts, tokens of the longest row)."""
    match role_of(stage):
        case "pretrain" | "sft":
            return stage, getattr(recipe, section_of(stage)).max_tokens
        case "reward_model":
            return "reward_model", 2 * recipe.reward_model.max_tokens
        case "dpo":
            return "dpo", 2 * recipe.dpo.max_tokens
        case "raft":
            return "raft", recipe.data.prompt_limit + recipe.rollout.max_response_tokens
        case _:
            return "ppo", recipe.data.prompt_limit + recipe.rollout.max_response_tokens


def _lower(name: str, now: int, least: int) -> str:
    return f"{name} is {now}: try {name}={max(least, now // 2)}, which changes memory and not what is learnt"


def _parted() -> str:
    """What several processes can do that hold all weights each."""
    return "" if ranks().size == 1 or ranks().shards else "; parallel.shard=fsdp parts the weights among the processes"


def _smaller(recipe: Recipe) -> str:
    may_help = recipe.model.dtype == "float32" and bfloat16_saves(choose_device(recipe.model.device))
    smaller_type = ', model.dtype="bfloat16"' if may_help else ""
    return f", or take model.lora={{rank=16}}{smaller_type} or a smaller model in a new run directory"
