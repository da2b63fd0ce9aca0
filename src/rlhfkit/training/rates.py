"""What `optim.learning_rate = "auto"` and `optim.adam_eps = "auto"` stand for."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar, cast

from torch import nn

from rlhfkit.config.control import ControlPpoConfig
from rlhfkit.config.ppo import PpoConfig
from rlhfkit.config.stages import Role
from rlhfkit.config.training import LoopConfig, OptimConfig
from rlhfkit.machine.progress import Progress
from rlhfkit.rundir.manifest import Manifest
from rlhfkit.training.checkpoint import HasParameters

__all__ = ["announced_ppo", "announced_supervised", "auto_learning_rate", "decided", "decided_ppo"]

Supervised = TypeVar("Supervised", bound=LoopConfig)
Ppo = TypeVar("Ppo", bound=PpoConfig | ControlPpoConfig)


class _Rule(NamedTuple):
    at_7b: float
    """Rate of full training at 7 billion weights."""
    exponent: float
    """The rate falls with the number of weights to this power."""
    highest: float
    """Bound for the smallest models."""


# Each line passes near the published runs and those of the shipped recipes; docs/settings.md lists them.
RULES: dict[Role, _Rule] = {
    "pretrain": _Rule(3e-4, 0.25, 3e-3),
    "sft": _Rule(1e-5, 0.5, 5e-4),
    "reward_model": _Rule(5e-6, 0.5, 1e-3),
    "policy": _Rule(8e-7, 0.8, 3e-4),
    "value": _Rule(5e-6, 0.6, 1e-3),
    "dpo": _Rule(5e-7, 0.5, 3e-4),
    "raft": _Rule(1e-5, 0.5, 5e-4),  # as in SFT, which it is
}
CONTROL_RATE = 3e-4
"""For the small networks of control tasks, whatever their size (Schulman et al. 2017, arXiv 1707.06347, table 3)."""

LORA_FACTOR, HIGHEST_LORA = 10.0, 1e-3
"""Adapters want ten times the rate of full training (Schulman et al. 2025, "LoRA Without Regret"), within bounds."""

SUPERVISED_EPS, PPO_EPS = 1e-8, 1e-5
"""Adam's epsilon. PPO: Huang et al. 2024, arXiv 2403.17031. Where gradients are small, 1e-5 would cut supervised
steps to a part of what the rate says."""


def auto_learning_rate(role: Role, *, num_weights: int, lora: bool) -> float:
    """The learning rate that "auto" stands for, to two digits.

    rate = rate at 7 billion weights x (7e9 / num_weights)^exponent, ten times that with LoRA, bounded above.

    `num_weights` are those of the whole network, frozen ones too, without adapters.
    """
    if role == "control":
        return CONTROL_RATE
    rule = RULES[role]
    rate = min(rule.at_7b * (7e9 / num_weights) ** rule.exponent, rule.highest)
    if lora:
        rate = min(LORA_FACTOR * rate, HIGHEST_LORA)
    return float(f"{rate:.1e}")


def decided(optim: OptimConfig, module: nn.Module, role: Role) -> OptimConfig:
    """The settings with numbers in place of "auto", for an optimizer of `module`."""
    return _decided(optim, module.named_parameters(), role)


def decided_ppo(config: Ppo, policy: HasParameters) -> Ppo:
    """The settings with numbers in place of "auto", for policy and critic; the critic is `policy.critic`."""
    text = isinstance(config, PpoConfig)
    own = [(name, parameter) for name, parameter in policy.named_parameters() if not name.startswith("critic.")]
    update: dict[str, object] = {"optim": _decided(config.optim, own, "policy" if text else "control")}
    if config.value_optim is not None:
        critic = getattr(policy, "critic", None)  # asked itself, as it may share frozen layers with the policy
        named = critic.named_parameters() if isinstance(critic, nn.Module) else ()
        optim = _decided(config.value_optim, named, "value" if text else "control")
        update["value"] = config.value.model_copy(update={"optim": optim})
    return cast("Ppo", config.model_copy(update=update))


def announced_supervised(
    config: Supervised, module: nn.Module, role: Role, *, stage: str, progress: Progress, manifest: Manifest
) -> Supervised:
    """A stage's settings with numbers in place of "auto", shown to the user and recorded in the manifest."""
    optim = decided(config.optim, module, role)
    _announce(stage, {"optim": (config.optim, optim)}, progress, manifest)
    return config.model_copy(update={"optim": optim})


def announced_ppo(config: Ppo, policy: HasParameters, *, stage: str, progress: Progress, manifest: Manifest) -> Ppo:
    """The same for PPO."""
    made = decided_ppo(config, policy)
    settings = {"optim": (config.optim, made.optim)}
    if config.value_optim is not None and made.value_optim is not None:
        settings["value.optim"] = config.value_optim, made.value_optim
    _announce(stage, settings, progress, manifest)
    return made


def _announce(
    stage: str, settings: Mapping[str, tuple[OptimConfig, OptimConfig]], progress: Progress, manifest: Manifest
) -> None:
    """`settings` has, by the name of the section, what the recipe says and what came of it."""
    chosen = [
        f"{name}.learning_rate = {made.learning_rate:g}"
        for name, (given, made) in settings.items()
        if given.learning_rate == "auto"
    ]
    if chosen:
        progress.note(f"{stage}: {', '.join(chosen)}, by the model's size")
    numbers = {name: made.model_dump(include={"learning_rate", "adam_eps"}) for name, (_, made) in settings.items()}
    manifest.add_stage(stage, optimizers=numbers)


def _decided(optim: OptimConfig, named: Iterable[tuple[str, nn.Parameter]], role: Role) -> OptimConfig:
    rate, eps = optim.learning_rate, optim.adam_eps
    if rate == "auto":
        num_weights, lora = _count(named)
        rate = auto_learning_rate(role, num_weights=num_weights, lora=lora)
    if eps == "auto":
        eps = PPO_EPS if role in ("policy", "value", "control") else SUPERVISED_EPS
    return optim.model_copy(update={"learning_rate": rate, "adam_eps": eps})


def _count(named: Iterable[tuple[str, nn.Parameter]]) -> tuple[int, bool]:
    """(weights without adapters, tied ones once; whether there are adapters)."""
    by_id = {id(parameter): (name, parameter.numel()) for name, parameter in named}
    adapters = sum(size for name, size in by_id.values() if "lora_" in name)
    return sum(size for _, size in by_id.values()) - adapters, adapters > 0
