"""Experience: the one batch that PPO learns from, whatever the policy acted in."""

from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from torch import Tensor

__all__ = ["Experience", "Rows"]


class Rows(Protocol):
    """Recorded states and actions, a row an episode (or a part of one)."""

    def __len__(self) -> int:
        """How many rows there are."""
        ...

    def __getitem__(self, rows: Tensor) -> Self:
        """The rows with these indices."""
        ...

    def lengths(self) -> Tensor:
        """(B,) what each row costs to evaluate, in tokens or steps."""
        ...


@dataclass(frozen=True)
class Experience:
    """What happened in one rollout; (B, T) unless said otherwise, float32, nothing carries a gradient."""

    inputs: Any
    """What the policy evaluates (a `Rows`): states and actions."""
    mask: Tensor
    """bool, True = the policy acted here."""
    old_logprobs: Tensor
    """Log-probability of each action under the policy that acted, in nats."""
    old_values: Tensor
    """Value of each state, by the critic of that time."""
    next_values: Tensor
    """Value of the state that really followed each action."""
    terminated: Tensor
    """bool, True where the episode came to its end."""
    ended: Tensor
    """bool, True where it came to its end or was cut off."""
    rewards: Tensor
    """What GAE eats: the environment's rewards, or score at the last token minus the KL penalty of each token."""
    scores: Tensor
    """(B,) score of each episode, after penalties, before the KL."""
    ref_kl: Tensor
    """(B,) KL of policy to reference in nats summed per sequence, estimated by k1; zeros without a reference."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What the rollout has to tell."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """A few episodes for `samples.jsonl`."""
