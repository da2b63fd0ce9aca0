"""What PPO asks of a policy, whatever it acts in."""

from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

__all__ = ["Policy", "PolicyOutput"]

Inputs = TypeVar("Inputs", contravariant=True)


@dataclass(frozen=True)
class PolicyOutput:
    """Current weights' opinion of recorded actions; float32, 0 outside the mask."""

    logprobs: Tensor
    """(B, T) log-probability of each recorded action, in nats, at the sampling temperature."""
    entropy: Tensor | None
    """(B, T) entropy of the distribution it was drawn from, in nats; None where nobody asked."""
    values: Tensor
    """(B, T) value of the state before the action; zeros for a policy without a critic."""


class Policy(Protocol[Inputs]):
    """An actor, and its critic if it has one."""

    def evaluate(self, inputs: Inputs, *, with_entropy: bool = True) -> PolicyOutput:
        """Logprobs, entropy and values (B, T) of recorded actions, with gradients.

        Entropy takes a good part of the time that the head needs, so an update without entropy bonus does not ask.
        """
        ...
