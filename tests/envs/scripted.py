"""Environments of Gymnasium's kind whose every step is known by heart."""

import itertools

import gymnasium
import numpy as np
from gymnasium import spaces


class Counter(gymnasium.Env):
    """Observation [seed mod 7, steps so far]; reward steps so far + action; terminates after `ends` steps, if set."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, ends=None, render_mode=None):
        self.render_mode = render_mode
        self.ends = ends
        self.observation_space = spaces.Box(-1e4, 1e4, (2,), dtype=np.float32)
        self.action_space = spaces.Discrete(2)

    def _observation(self):
        return np.array([self.start, self.steps], dtype=np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.start, self.steps = 0.0 if seed is None else seed % 7, 0
        return self._observation(), {}

    def step(self, action):
        self.steps += 1
        terminated = self.ends is not None and self.steps >= self.ends
        return self._observation(), float(self.steps + action), terminated, False, {}


class Drifting(Counter):
    """The same, but never twice the same."""

    calls = itertools.count()

    def _observation(self):
        return super()._observation() + 1e-3 * next(self.calls)


class Poisoned(Counter):
    """Its third reward is no number."""

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, float("nan") if self.steps == 3 else reward, *rest


def register(name, make, *, max_episode_steps=None, **kwargs):
    """Id of the environment, registered."""
    env_id = f"test/{name}-v0"
    if env_id not in gymnasium.registry:
        gymnasium.register(env_id, entry_point=make, max_episode_steps=max_episode_steps, kwargs=kwargs)
    return env_id


TERMINATING = register("Terminating", Counter, ends=3)
TRUNCATING = register("Truncating", Counter, max_episode_steps=4)
DRIFTING = register("Drifting", Drifting, ends=3)
POISONED = register("Poisoned", Poisoned, ends=5)
