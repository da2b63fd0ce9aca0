"""Distributions of actions, for each kind of action space."""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from rlhfkit.errors import EnvError

__all__ = [
    "ActionKind",
    "action_kind",
]


class ActionKind(Protocol):
    """How numbers that a network puts out become a distribution over actions."""

    num_outputs: int
    num_noise: int

    def noise(self, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        """(*shape, num_noise) what randomness `sample` needs."""
        ...

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Actions drawn from the distribution."""
        ...

    def mode(self, outputs: Tensor) -> Tensor:
        """The likeliest actions."""
        ...

    def logprobs_and_entropy(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Of each action its log-probability, of each distribution its entropy, in nats."""
        ...

    def to_env(self, actions: Tensor) -> NDArray[Any]:
        """Actions as the environment wants them."""
        ...


def _gumbel(shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
    uniform = torch.rand(*shape, generator=generator).clamp_(min=torch.finfo(torch.float32).tiny)
    return -(-uniform.log()).log()


class Categorical(nn.Module):
    """One of n actions; outputs are logits."""

    def __init__(self, space: spaces.Discrete) -> None:
        super().__init__()
        self.num_outputs = self.num_noise = int(space.n)
        self.start = int(space.start)

    def noise(self, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        """Gumbel noise: the largest of logits plus noise is a draw from their softmax."""
        return _gumbel((*shape, self.num_noise), generator)

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Index of the action (…)."""
        return (outputs + noise).argmax(-1)

    def mode(self, outputs: Tensor) -> Tensor:
        """Index of the likeliest action (…)."""
        return outputs.argmax(-1)

    def logprobs_and_entropy(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Both (…)."""
        logprobs = functional.log_softmax(outputs, dim=-1)
        return logprobs.gather(-1, actions[..., None])[..., 0], -(logprobs.exp() * logprobs).sum(-1)

    def to_env(self, actions: Tensor) -> NDArray[Any]:
        """Counted as the space counts."""
        return actions.numpy() + self.start


class MultiCategorical(nn.Module):
    """Several independent choices."""

    def __init__(self, space: spaces.MultiDiscrete) -> None:
        super().__init__()
        self.parts = [int(n) for n in space.nvec.reshape(-1)]
        self.num_outputs = self.num_noise = sum(self.parts)
        self.shape, self.start = space.shape, space.start

    def noise(self, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        """As for one choice."""
        return _gumbel((*shape, self.num_noise), generator)

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Actions (…, A)."""
        return self.mode(outputs + noise)

    def mode(self, outputs: Tensor) -> Tensor:
        """Actions (…, A)."""
        return torch.stack([logits.argmax(-1) for logits in torch.split(outputs, self.parts, -1)], -1)

    def logprobs_and_entropy(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over the choices."""
        all_logprobs = [functional.log_softmax(logits, dim=-1) for logits in torch.split(outputs, self.parts, -1)]
        logprobs = [part.gather(-1, actions[..., i : i + 1])[..., 0] for i, part in enumerate(all_logprobs)]
        entropies = [-(part.exp() * part).sum(-1) for part in all_logprobs]
        return torch.stack(logprobs).sum(0), torch.stack(entropies).sum(0)

    def to_env(self, actions: Tensor) -> NDArray[Any]:
        """In the shape of the space."""
        return actions.numpy().reshape(-1, *self.shape) + self.start


class Bernoulli(nn.Module):
    """Independent switches; outputs are the logits of "on"."""

    def __init__(self, space: spaces.MultiBinary) -> None:
        super().__init__()
        self.shape = space.shape
        self.num_outputs = self.num_noise = math.prod(space.shape)

    def noise(self, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        """Logistic noise."""
        return torch.rand(*shape, self.num_noise, generator=generator).logit(eps=1e-7)

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Actions (…, A)."""
        return self.mode(outputs + noise)

    def mode(self, outputs: Tensor) -> Tensor:
        """Actions (…, A)."""
        return (outputs > 0).long()

    def logprobs_and_entropy(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over the switches."""
        on, off = functional.logsigmoid(outputs), functional.logsigmoid(-outputs)
        logprobs = torch.where(actions == 1, on, off)
        return logprobs.sum(-1), -(on.exp() * on + off.exp() * off).sum(-1)

    def to_env(self, actions: Tensor) -> NDArray[Any]:
        """In the shape of the space."""
        return actions.numpy().astype(np.int8).reshape(-1, *self.shape)


class Gaussian(nn.Module):
    """Real numbers, each from a normal distribution whose deviation does not depend on the state.

    The policy's -1 to 1 is the range of the space where that is bounded on both sides. What lies beyond is clipped for
    the environment alone: the log-probability is that of the number drawn.
    """

    def __init__(self, space: spaces.Box, log_std: float) -> None:
        super().__init__()
        self.shape = space.shape
        self.num_outputs = self.num_noise = math.prod(space.shape)
        # The largest number of its type is what some environments write for "no bound".
        largest = 0.99 * min(float(np.finfo(name).max) for name in (str(space.dtype), "float32"))
        bounded = (np.abs(space.low) < largest) & (np.abs(space.high) < largest)
        low, high = (
            np.where(bounded, bound, default).astype(np.float64)
            for bound, default in ((space.low, -1.0), (space.high, 1.0))
        )
        self.centre, self.scale = ((high + low) / 2).astype(space.dtype), ((high - low) / 2).astype(space.dtype)
        self.low, self.high = space.low, space.high
        self.log_std = nn.Parameter(torch.full((self.num_outputs,), log_std))

    def noise(self, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        """Standard normal noise."""
        return torch.randn(*shape, self.num_noise, generator=generator)

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Actions (…, A)."""
        return outputs + self.log_std.exp() * noise

    def mode(self, outputs: Tensor) -> Tensor:
        """Actions (…, A)."""
        return outputs

    def logprobs_and_entropy(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over the numbers."""
        constant = 0.5 * math.log(2 * math.pi)
        deviations = (actions - outputs) * (-self.log_std).exp()
        logprobs = (-0.5 * deviations.square() - self.log_std - constant).sum(-1)
        return logprobs, (self.log_std + 0.5 + constant).sum().expand(logprobs.shape)

    def to_env(self, actions: Tensor) -> NDArray[Any]:
        """Scaled to the space's range, and clipped to it."""
        numbers = actions.numpy().reshape(-1, *self.shape) * self.scale + self.centre
        clipped: NDArray[Any] = np.clip(numbers, self.low, self.high).astype(self.low.dtype)
        return clipped


def action_kind(
    space: gymnasium.Space[Any], *, log_std: float = 0.0
) -> Categorical | MultiCategorical | Bernoulli | Gaussian:
    """The distribution for a space of actions.

    Raises: EnvError where there is none.
    """
    match space:
        case spaces.Discrete():
            return Categorical(space)
        case spaces.MultiDiscrete():
            return MultiCategorical(space)
        case spaces.MultiBinary():
            return Bernoulli(space)
        case spaces.Box() if np.issubdtype(space.dtype, np.floating):
            return Gaussian(space, log_std)
        case _:
            raise EnvError(
                f"actions of {space} are not supported; expected Discrete, MultiDiscrete, MultiBinary or a Box of "
                "floats; wrap the environment so that its actions are one of them"
            )
