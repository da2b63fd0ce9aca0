"""Environments: their contract, and whether episodes differ."""

from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import Any

import numpy as np

from rlhfkit.config.control import ControlRecipe
from rlhfkit.control_pipeline import check_control
from rlhfkit.doctor.findings import Finding, ok, warning
from rlhfkit.envs.check import TRIAL_RESPONSES
from rlhfkit.envs.control import make_raw_env
from rlhfkit.envs.text import TextEnvFactory, begin, proceed

__all__ = ["examine_control", "examine_text_episodes"]

NUM_SEEDS = 8
MOST_STEPS = 200
LARGE_OBSERVATION = 1000.0

ALIKE = "set what differs by reset's seed; if every episode shall be the same, nothing has to be done"


def examine_text_episodes(factory: TextEnvFactory) -> Iterator[Finding]:
    """Whether different seeds begin different episodes."""
    told, returns = [], []
    for seed in range(NUM_SEEDS):
        env = factory()
        prompt = begin(env, seed)
        said: list[Any] = [prompt.content]
        total = 0.0
        for response, _ in zip(cycle(TRIAL_RESPONSES), range(MOST_STEPS), strict=False):
            step = proceed(env, response)
            total += step.reward
            said.append((step.observation, step.reward, step.terminated))
            if step.terminated or step.truncated:
                break
        told.append(said)
        returns.append(total)
    yield _differing(told, returns, "blind responses")


def _differing(told: Sequence[Any], returns: Sequence[float], by: str) -> Finding:
    name, num = "environment.episodes", len(told)
    words = f"returns of {num} episodes by {by}: {min(returns):.3g} to {max(returns):.3g}"
    if all(repr(each) == repr(told[0]) for each in told):
        return warning(name, f"{num} seeds gave the same episode {num} times: the environment ignores its seed", ALIKE)
    return ok(name, f"{num} seeds, different episodes; {words}")


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
        told, returns, largest = [], [], 0.0
        for seed in range(NUM_SEEDS):
            env.action_space.seed(0)  # the same actions in each
            observation, _ = env.reset(seed=seed)
            said, total = [np.array(observation).tolist()], 0.0
            for _ in range(MOST_STEPS):
                observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
                total += float(reward)
                said.append((np.array(observation).tolist(), float(reward)))
                if np.asarray(observation).dtype.kind == "f":
                    largest = max(largest, float(np.abs(observation).max()))
                if terminated or truncated:
                    break
            told.append(said)
            returns.append(total)
    finally:
        env.close()
    yield _differing(told, returns, f"random actions (of at most {MOST_STEPS} steps)")
    if largest > LARGE_OBSERVATION and not recipe.env.normalize_observations:
        yield warning(
            "environment.scale",
            f"observations go up to {largest:.3g}, which networks read badly",
            "set env.normalize_observations = true",
        )
