"""Changes that make a plan fit, each tried by planning again."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations

from rlhfkit.formulas.work import Work

__all__ = ["Change", "applied", "changes_for", "fitting_changes"]

MOST_TOGETHER = 5
LORA_RANK = 16


@dataclass(frozen=True)
class Change:
    """One setting that could be otherwise."""

    words: str
    """As on the command line."""
    apply: Callable[[Work], Work]
    keeps_result: bool
    """Whether only memory and time change, and not what is learnt."""


def changes_for(work: Work, ranks: int) -> Iterator[Change]:
    """What could be set otherwise for less memory, the changes that keep the result first."""
    if work.shard == "none" and ranks > 1:
        yield Change("parallel.shard=fsdp", lambda work: replace(work, shard="fsdp"), True)
    if work.microbatch_tokens != "auto":
        yield Change("ppo.microbatch_tokens=auto", lambda work: replace(work, microbatch_tokens="auto"), True)
    if work.recompute is False:
        yield Change("model.gradient_checkpointing=true", lambda work: replace(work, recompute=True), True)
    if work.slots > 8:
        slots = max(8, work.slots // 4)
        yield Change(f"rollout.slots={slots}", lambda work: replace(work, slots=min(slots, work.slots)), True)
    if work.critic == "separate":
        yield Change("ppo.value.network=shared", lambda work: replace(work, critic="shared"), False)
    if work.lora_rank is None and work.trained_layers is None:
        yield Change(f"model.lora.rank={LORA_RANK}", lambda work: replace(work, lora_rank=LORA_RANK), False)
        if (layers := max(1, work.policy.layers // 8)) < work.policy.layers:
            yield Change(f"model.num_trained_layers={layers}", lambda work: replace(work, trained_layers=layers), False)
    if work.itemsize == 4:
        yield Change("model.dtype=bfloat16", _in_bfloat16, False)
    if work.reward_models:
        yield Change(
            "reward.type=function reward.function=MODULE:NAME", lambda work: replace(work, reward_models=()), False
        )


def _in_bfloat16(work: Work) -> Work:
    return replace(work, itemsize=2, reward_models=tuple((shape, 2) for shape, _ in work.reward_models))


EXCLUSIVE = ("model.lora", "model.num_trained_layers")
"""A recipe refuses both."""


def fitting_changes(work: Work, fits: Callable[[Work], bool], *, ranks: int, most: int) -> list[tuple[Change, ...]]:
    """The smallest sets of changes with which `fits` is true, at most so many of them; of one change first.

    Of two sets, the one of which the other is a part is left out.
    """
    known, found = list(changes_for(work, ranks)), list[tuple[Change, ...]]()
    for size in range(1, min(MOST_TOGETHER, len(known)) + 1):
        for chosen in combinations(known, size):
            if any(set(smaller) <= set(chosen) for smaller in found):
                continue
            if sum(change.words.startswith(EXCLUSIVE) for change in chosen) > 1:
                continue
            if fits(applied(work, chosen)):
                found.append(chosen)
            if len(found) == most:
                return found
    return found


def applied(work: Work, changes: tuple[Change, ...]) -> Work:
    """The work with all of the changes."""
    for change in changes:
        work = change.apply(work)
    return work
