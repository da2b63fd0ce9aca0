"""Environments: their contract, and whether episodes differ."""

import time
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from gymnasium.spaces.utils import flatten

from rlhfkit.config.control import ControlRecipe
from rlhfkit.diagnosis.limits import LARGE_OBSERVATION
from rlhfkit.doctor.findings import Finding, ok, warning
from rlhfkit.envs.check import TRIAL_RESPONSES
from rlhfkit.envs.control import make_raw_env
from rlhfkit.envs.text import TextEnvFactory, begin, proceed
from rlhfkit.pipeline.control import check_control

__all__ = ["examine_control", "examine_text_episodes"]

BLIND_RESPONSES = (*TRIAL_RESPONSES, " 2\n", "4", "yes", "no", "a")
NUM_SEEDS, NUM_TEXT_SEEDS = 8, 16
MOST_SECONDS = 5.0
MOST_STEPS = 200

ALIKE = "set what differs by reset's seed; if every episode shall be the same, nothing has to be done"


def examine_text_episodes(factory: TextEnvFactory) -> Iterator[Finding]:
    """Whether different seeds begin different episodes."""
    played: list[Episode] = []
    # A seed may show only where the response happens to be right, as in a guessing game: other ones, and more seeds.
    start = time.monotonic()
    for shift in range(len(BLIND_RESPONSES)):
        responses = BLIND_RESPONSES[shift:] + BLIND_RESPONSES[:shift]
        episodes = [_play(factory, seed, responses) for seed in range(NUM_TEXT_SEEDS)]
        played += episodes
        if _differ(episodes) or time.monotonic() - start > MOST_SECONDS:
            break
    yield _differing(episodes, played, "blind responses")


Episode = tuple[list[Any], float]
"""All that an environment said, and the return."""


def _play(factory: TextEnvFactory, seed: int, responses: Sequence[str]) -> Episode:
    env, total = factory(), 0.0
    said: list[Any] = [begin(env, seed).content]
    for response, _ in zip(cycle(responses), range(MOST_STEPS), strict=False):
        step = proceed(env, response)
        total += step.reward
        said.append((step.observation, step.reward, step.terminated))
        if step.terminated or step.truncated:
            break
    return said, total


def _differ(episodes: Sequence[Episode]) -> bool:
    return any(repr(said) != repr(episodes[0][0]) for said, _ in episodes)


def _differing(episodes: Sequence[Episode], played: Sequence[Episode], by: str) -> Finding:
    name, num = "environment.episodes", len(episodes)
    if not _differ(episodes):
        return warning(name, f"{num} seeds gave the same episode {num} times: the environment ignores its seed", ALIKE)
    returns = [total for _, total in played]
    paid = f"; returns by {by}: {min(returns):.4g} to {max(returns):.4g}" if any(returns) else ""
    return ok(name, f"{num} seeds, different episodes{paid}")


def examine_control(recipe: ControlRecipe) -> Iterator[Finding]:
    """Whether the environment of a control task keeps Gymnasium's contract, and its episodes differ."""
    notes = check_control(recipe)
    for note in notes:
        yield warning("environment.contract", note)
    if not recipe.env.check:
        yield warning("environment.contract", "not checked, as env.check = false", "leave env.check out")
    elif not notes:
        yield ok("environment.contract", f"{recipe.env.id} keeps Gymnasium's contract, as far as a few episodes show")
    env = make_raw_env(recipe.env)
    try:
        episodes: list[Episode] = []
        largest = 0.0
        for seed in range(NUM_SEEDS):
            env.action_space.seed(0)  # the same actions in each
            observation, _ = env.reset(seed=seed)
            seen = np.asarray(flatten(env.observation_space, observation))
            said, total = [seen.tolist()], 0.0
            for _ in range(MOST_STEPS):
                observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
                total += float(reward)
                seen = np.asarray(flatten(env.observation_space, observation))
                said.append((seen.tolist(), float(reward)))
                if seen.dtype.kind == "f":
                    largest = max(largest, float(np.abs(seen).max()))
                if terminated or truncated:
                    break
            episodes.append((said, total))
    finally:
        env.close()
    yield _differing(episodes, episodes, f"random actions, in at most {MOST_STEPS} steps")
    if largest > LARGE_OBSERVATION and not recipe.env.normalize_observations:
        yield warning(
            "environment.scale",
            f"observations go up to {largest:.3g}, which networks read badly",
            "set env.normalize_observations = true",
        )
