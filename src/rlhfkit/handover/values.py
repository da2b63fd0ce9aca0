"""Ways to the value of a row that several tools have in common."""

from collections.abc import Callable
from typing import Any

from rlhfkit.handover.subject import Subject
from rlhfkit.handover.terms import HERE, OMITTED

__all__ = [
    "Value",
    "clipped_above",
    "constant",
    "given",
    "modules",
    "of_kl_loss",
    "penalised",
    "policy_path",
    "reward_path",
    "with_adapters",
    "with_critic",
    "with_reward_model",
    "with_vllm",
]

Value = Callable[[Subject], Any]


def constant(value: Any) -> Value:
    """The same whatever the recipe says."""
    return lambda s: value


def given(name: str) -> Value:
    """A setting of the recipe as it is."""
    return lambda s: s.setting(name)


def with_critic(value: Value) -> Value:
    """The value, where there is a critic."""
    return lambda s: value(s) if s.has_critic else OMITTED


def with_adapters(value: Value) -> Value:
    """The value, where adapters are trained."""
    return lambda s: value(s) if s.recipe.model.lora is not None else OMITTED


def with_reward_model(value: Value) -> Value:
    """The value, where a reward model scores."""
    return lambda s: value(s) if s.is_reward_model else OMITTED


def with_vllm(value: Value) -> Value:
    """The value, where vLLM samples here, too."""
    return lambda s: value(s) if s.recipe.rollout.engine == "vllm" else OMITTED


def modules(s: Subject) -> Any:
    """Names of the modules that get adapters, or the word for all of them."""
    targets = s.lora.targets
    return targets if isinstance(targets, str) else list(targets)


def policy_path(s: Subject) -> str:
    """The model that PPO starts from: the link beside the launch files, or a hub id."""
    return f"{HERE}/policy" if s.is_local else s.policy_path


def reward_path(s: Subject) -> str:
    """The reward model: what lies beside the launch files, or a hub id."""
    return f"{HERE}/reward_model" if s.reward_path.startswith("/") else s.reward_path


def clipped_above(s: Subject) -> float:
    """The clip range above 1, or its mean over the run where it would fall to zero."""
    ppo = s.recipe.ppo
    high = ppo.clip_range if ppo.clip_range_high is None else ppo.clip_range_high
    return high / 2 if ppo.clip_schedule == "linear" else high


def of_kl_loss(value: Value) -> Value:
    """The value, where the KL penalty is a term of the loss."""
    return lambda s: value(s) if s.kl_in_loss and penalised(s) else OMITTED


def penalised(s: Subject) -> bool:
    """Whether there is a KL penalty."""
    return s.kl_coef > 0 or s.is_adaptive
