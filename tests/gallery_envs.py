"""Control environments for the gallery, healthy and broken."""

import random
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

__all__ = ["Healthy", "Huge", "IgnoresItsSeed", "Unseeded"]


class Healthy(gymnasium.Env[Any, Any]):
    """A walk that ends at the border; pays for each step to the right."""

    scale = 1.0

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(-5.0 * self.scale, 5.0 * self.scale, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.place = 0.0

    def start(self) -> float:
        return float(self.np_random.uniform(-1, 1))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.start()
        return self.seen(), {}

    def seen(self):
        return np.array([self.scale * self.place], np.float32)

    def step(self, action):
        if action not in (0, 1):
            raise ValueError(action)
        self.place += 2 * int(action) - 1
        over = abs(self.place) > 4
        self.place = float(np.clip(self.place, -5, 5))
        return self.seen(), float(action), over, False, {}


class IgnoresItsSeed(Healthy):
    def start(self) -> float:
        return 0.0


class Unseeded(Healthy):
    def start(self) -> float:
        return random.uniform(-1, 1)


class Huge(Healthy):
    scale = 1e6
