"""Where weights are parted among the ranks: which networks, in which pieces, and how a whole model comes back."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from rlhfkit.distributed.ranks import alone, ranks
from rlhfkit.distributed.sharding import copy_whole, shard
from rlhfkit.machine.fast_paths import FastPaths
from rlhfkit.models.hidden_states import PACKED
from rlhfkit.models.language import LanguageModel, TextPolicy
from rlhfkit.models.layers import layers_of
from rlhfkit.models.reward_model import RewardModel
from rlhfkit.models.value import ValueHead, ValueNetwork
from rlhfkit.training.optim import master_of

__all__ = ["PARTED", "part_frozen", "part_policy", "part_trained", "whole_of"]

Model = TypeVar("Model", LanguageModel, RewardModel)

PARTED = "weights are parted among the processes"
"""Why a fast path is not taken."""


def part_frozen(model: LanguageModel | RewardModel) -> None:
    """Part a network that only computes, as the reference or a reward model, where the run parts weights."""
    if ranks().shards:
        _part(model, master=None)


def part_trained(model: LanguageModel | RewardModel, *, what: str, seed: int) -> None:
    """Part a network that a supervised stage trains; its optimizer is of `what`, and has this seed."""
    if ranks().shards:
        _part(model, master=partial(master_of, what=what, seed=seed))


def part_policy(policy: TextPolicy, *, has_value_optimizer: bool, seed: int) -> None:
    """Part the policy that PPO trains, with its critic."""
    if not ranks().shards:
        return
    model, critic = policy.language_model, policy.critic
    dtype = model.dtype
    heads = [parameter for part in policy.modules() if isinstance(part, ValueHead) for parameter in part.parameters()]
    if isinstance(critic, ValueNetwork):
        _switch_off(critic.paths)
        what = "value network" if has_value_optimizer else "policy"
        shard(
            critic,
            layers_of(critic.classifier),
            dtype=dtype,
            kept_whole=[*heads, *_adapters(critic)],
            # By the names that the optimizer knows them by.
            master=lambda name, parameter: master_of(f"critic.{name}", parameter, what=what, seed=seed),
        )
    _switch_off(model.paths)
    model.computes_in = dtype
    shard(
        policy,
        layers_of(model.causal_lm),
        dtype=dtype,
        methods=("evaluate", "logprobs_without_adapters", "packed_logprobs"),
        kept_whole=[*heads, *_adapters(model)],
        master=partial(master_of, what="policy", seed=seed),
    )


def whole_of(parted: Model, build: Callable[[], Model]) -> Model | None:
    """The model with all its weights, in the one that `build` makes, on the first rank; the model where it is whole."""
    if not ranks().shards:
        return parted
    model = None
    if ranks().is_first:
        with alone():
            model = build()
    copy_whole(parted, model)
    return model


def _part(model: LanguageModel | RewardModel, *, master: Callable[[str, Tensor], Tensor] | None) -> None:
    dtype = _dtype_of(model)
    _switch_off(model.paths)
    methods: tuple[str, ...] = ()
    network = model.causal_lm if isinstance(model, LanguageModel) else model.classifier
    if isinstance(model, LanguageModel):
        model.computes_in, methods = dtype, ("logprobs", "packed_logprobs")
    shard(model, layers_of(network), dtype=dtype, methods=methods, kept_whole=_adapters(model), master=master)


def _dtype_of(model: LanguageModel | RewardModel) -> torch.dtype:
    return model.dtype if isinstance(model, LanguageModel) else next(model.classifier.parameters()).dtype


def _adapters(module: nn.Module) -> list[nn.Parameter]:
    """Small matrices beside frozen ones: every rank keeps them whole."""
    return [parameter for name, parameter in module.named_parameters() if ".lora_" in name]


def _switch_off(paths: FastPaths) -> None:
    """Leave out what a rank decides by its own rows: all must make the same passes."""
    paths.switch_off(PACKED, PARTED)
