"""Actor and critic for Gymnasium's spaces."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from rlhfkit.config.control import NetworkConfig
from rlhfkit.models.distributions import action_kind
from rlhfkit.models.observations import flat_rows
from rlhfkit.models.policy import PolicyOutput

__all__ = [
    "ControlPolicy",
    "ControlSteps",
]


OBSERVATION_LIMIT = 10.0
"""Normalised observations are clipped here, as in openai/baselines."""


@dataclass(frozen=True)
class ControlSteps:
    """Recorded observations and actions."""

    observations: Tensor
    """(B, T, D)"""
    actions: Tensor
    """(B, T), or (B, T, A) where an action has several parts; as the policy drew them."""

    def __len__(self) -> int:
        return len(self.observations)

    def __getitem__(self, rows: Tensor) -> "ControlSteps":
        return ControlSteps(self.observations[rows], self.actions[rows])

    def only(self, mask: Tensor) -> "ControlSteps":
        """The N steps where `mask` (B, T) is True, each a row of its own."""
        return ControlSteps(self.observations[mask][:, None], self.actions[mask][:, None])

    def lengths(self) -> Tensor:
        """(B,) steps of each row."""
        return torch.full((len(self),), self.observations.shape[1])


# ── the policy ───────────────────────────────────────────────────────────────────────────────────────────────────────


class ControlPolicy(nn.Module):
    """A small actor with its critic, which see one observation at a time."""

    def __init__(
        self,
        num_inputs: int,
        action_space: gymnasium.Space[Any],
        config: NetworkConfig,
        *,
        shared_trunk: bool = False,
        observation_space: gymnasium.Space[Any] | None = None,
    ) -> None:
        """Orthogonal weights from torch's global generator; the actor's last layer is small: it begins undecided.

        `observation_space` is the environment's, for `predict`; without it, a vector of `num_inputs` numbers.
        """
        super().__init__()
        vector = spaces.Box(-np.inf, np.inf, (num_inputs,), np.float32)
        self.observation_space = vector if observation_space is None else observation_space
        self.actions = action_kind(action_space, log_std=config.log_std)
        widths = (num_inputs, *config.hidden)
        self.trunk = _hidden_layers(widths, config)
        self.head = _linear(widths[-1], self.actions.num_outputs, gain=0.01)
        last = _linear(widths[-1], 1, gain=1.0)
        self.shared_trunk = shared_trunk
        self.critic = last if shared_trunk else nn.Sequential(_hidden_layers(widths, config), last)
        self.normalizes = False
        self.register_buffer("observation_mean", torch.zeros(num_inputs))
        self.register_buffer("observation_std", torch.ones(num_inputs))

    observation_mean: Tensor
    observation_std: Tensor

    def normalize_by(self, mean: NDArray[np.float64], std: NDArray[np.float64]) -> None:
        """Read observations in deviations from a mean from now on."""
        self.normalizes = True
        self.observation_mean.copy_(torch.from_numpy(mean))
        self.observation_std.copy_(torch.from_numpy(std))

    def _seen(self, observations: Tensor) -> Tensor:
        if not self.normalizes:
            return observations
        scaled = (observations - self.observation_mean) / self.observation_std
        return scaled.clamp(-OBSERVATION_LIMIT, OBSERVATION_LIMIT)

    @torch.inference_mode()
    def act(self, observations: Tensor, noise: Tensor | None) -> Tensor:
        """Actions (N,) or (N, A) for observations (N, D); the likeliest ones where there is no noise."""
        outputs = self.head(self.trunk(self._seen(observations)))
        return self.actions.mode(outputs) if noise is None else self.actions.sample(outputs, noise)

    def predict(self, observation: Any, *, deterministic: bool = True, generator: torch.Generator | None = None) -> Any:
        """The environment's own action for its own observation: what `env.step` takes for what `env.reset` returned.

        A batch of observations, as of a vector environment, gives a batch of actions. The likeliest action, or one
        drawn from the policy, by `generator` if it is given.
        Raises: ShapeError where the observation is not of the environment's space.
        """
        rows, is_batch = flat_rows(self.observation_space, observation)
        noise = None if deterministic else self.actions.noise((len(rows),), generator)
        actions = self.actions.to_env(self.act(torch.from_numpy(rows), noise))
        return actions if is_batch else actions[0]

    def values(self, observations: Tensor) -> Tensor:
        """Values (…) of observations (…, D)."""
        seen = self._seen(observations)
        return torch.as_tensor(self.critic(self.trunk(seen) if self.shared_trunk else seen)[..., 0])

    def evaluate(self, inputs: ControlSteps, *, with_entropy: bool = True) -> PolicyOutput:
        """Logprobs, entropy and values (B, T) of recorded actions, with gradients."""
        seen = self._seen(inputs.observations)
        features = self.trunk(seen)
        logprobs, entropy = self.actions.logprobs_and_entropy(self.head(features), inputs.actions)
        values = self.critic(features if self.shared_trunk else seen)[..., 0]
        return PolicyOutput(logprobs, entropy if with_entropy else None, values)


def _hidden_layers(widths: Sequence[int], config: NetworkConfig) -> nn.Sequential:
    activation = nn.Tanh if config.activation == "tanh" else nn.ReLU
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [_linear(inputs, outputs, gain=math.sqrt(2)), activation()]
    return nn.Sequential(*layers)


def _linear(inputs: int, outputs: int, *, gain: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer
