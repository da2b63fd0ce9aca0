"""Experience: the one batch that PPO learns from, whatever the policy acted in."""

from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

from torch import Tensor

from rlhfkit.ppo import Multiplier

__all__ = ["Experience", "Rows", "Steps"]


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


class Steps(Rows, Protocol):
    """Rows that can be parted into single steps."""

    def only(self, mask: Tensor) -> Self:
        """The N steps where `mask` (B, T) is True, each a row of its own."""
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
    scores: Tensor | None = None
    """(B,) score of each episode, after penalties, before the KL; None where rewards come step by step."""
    ref_kl: Tensor | None = None
    """(B,) KL of policy to reference in nats summed per sequence, estimated by k1; None without a reference."""
    ref_logprobs: Tensor | None = None
    """Log-probability of each action under the reference, where the KL is a term of the loss; None elsewhere."""
    constraint_values: tuple[Tensor, ...] = ()
    """What each constraint says of every response, in its own unit."""
    multipliers: tuple[Multiplier, ...] = ()
    """Those of the constraints that the rewards were made with."""
    importance_weights: Tensor | None = None
    """Weight of each token's policy loss where another engine sampled; None where the policy itself did."""
    steps_are_independent: bool = False
    """Whether the policy sees one state at a time, so that a minibatch may take steps from anywhere."""
    headline: str = ""
    """How it goes, for the line of progress."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What the rollout has to tell."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """A few episodes for `samples.jsonl`."""

    def in_single_steps(self) -> "Experience":
        """The N steps in which the policy acted, each a row of its own: (N, 1) in place of (B, T)."""
        inputs: Steps = self.inputs
        by_step = ["old_logprobs", "old_values", "next_values", "terminated", "ended", "rewards"]
        if self.importance_weights is not None:
            by_step.append("importance_weights")
        parts = {name: getattr(self, name)[self.mask][:, None] for name in by_step}
        return replace(self, inputs=inputs.only(self.mask), mask=self.mask[self.mask][:, None], **parts)
