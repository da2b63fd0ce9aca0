"""Environments whose episodes depend on those before: made anew for each, so that an episode follows from its seed."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces.utils import flatten

__all__ = ["FreshEpisodes", "depends_on_episodes_before"]

PROBE_STEPS = 100

Make = Callable[[], gymnasium.Env[Any, Any]]


class FreshEpisodes(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment that `make` makes anew at each reset."""

    def __init__(self, make: Make) -> None:
        super().__init__(make())
        self._make, self._is_new = make, True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As a new environment's."""
        if not self._is_new:
            self.env.close()
            self.env = self._make()
        self._is_new = False
        return self.env.reset(seed=seed, options=options)


def depends_on_episodes_before(make: Make) -> bool:
    """Whether an episode in a used environment is another one than in a new one, for the same seed and actions.

    Box2D's BipedalWalker is such: its world keeps the order of bodies that are gone. Then the running episodes cannot
    be played again from their seeds alone. Where two new environments differ as well, making them anew helps nothing.
    """
    new, another, used = make(), make(), make()
    _observed(used, seed=1)
    first, again, later = (_observed(env, seed=0) for env in (new, another, used))
    for env in (new, another, used):
        env.close()
    return _equal(first, again) and not _equal(first, later)


def _observed(env: gymnasium.Env[Any, Any], *, seed: int) -> list[Any]:
    """What an episode of random actions shows, as far as some steps."""
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    seen = [np.asarray(flatten(env.observation_space, observation)).copy()]
    for _ in range(PROBE_STEPS):
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        seen.append(np.asarray(flatten(env.observation_space, observation)).copy())
        if terminated or truncated:
            break
    return seen


def _equal(first: list[Any], again: list[Any]) -> bool:
    return len(first) == len(again) and all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
