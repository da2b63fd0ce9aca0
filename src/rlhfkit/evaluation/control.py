"""What a control policy is worth: its likeliest actions in episodes of its own, and one of them to look at."""

import io
import os
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from PIL import Image

from rlhfkit.config.control import EnvConfig
from rlhfkit.envs.control import make_env, make_envs
from rlhfkit.envs.text import guarded, shown
from rlhfkit.errors import EnvError
from rlhfkit.machine.seeding import capture_rng, derive_seed, restore_rng
from rlhfkit.models.control import ControlPolicy
from rlhfkit.rundir.results import Estimate, SeedResult
from rlhfkit.stats.intervals import mean_interval

__all__ = ["episode_returns", "quick_return", "record_episode", "summarize"]

MOST_STEPS = 100_000
"""An episode that has not ended by then never will."""
RANKING_EPISODES, RANKING_STEPS = 10, 10_000
MOST_FRAMES, FRAME_WIDTH = 200, 300
"""Of a recording, which shall not weigh more than the rest of the report."""


def episode_returns(policy: ControlPolicy, env: EnvConfig, *, num_episodes: int, seed: int) -> list[float]:
    """Undiscounted return of episode 0 … num_episodes - 1, each from a seed of its own, by the likeliest actions.

    Raises: EnvError where an episode does not end.
    """
    seeds = [derive_seed(seed, "evaluation", n) for n in range(num_episodes)]
    returns, num_left = _play(policy, env, seeds, MOST_STEPS)
    if num_left:
        raise EnvError(
            f'env.id = "{env.id}": {num_left} episodes did not end within {MOST_STEPS:,} steps; set '
            "env.max_episode_steps"
        )
    return returns


def quick_return(policy: ControlPolicy, env: EnvConfig, *, seed: int) -> float:
    """Mean return of a few episodes by the likeliest actions, cut after many steps, to rank weights in training.

    Its seeds are neither those of training nor those of `episode_returns`. The global random generators stay as they
    are.
    """
    before = capture_rng()
    seeds = [derive_seed(seed, "ranking", n) for n in range(RANKING_EPISODES)]
    returns, _ = _play(policy, env, seeds, RANKING_STEPS)
    restore_rng(before)
    return float(np.mean(returns))


def _play(policy: ControlPolicy, env: EnvConfig, seeds: Sequence[int], most_steps: int) -> tuple[list[float], int]:
    """Returns of an episode from each of the seeds, and how many did not end in so many steps."""
    one_by_one = env.model_copy(update={"vectorization": "sync"})
    envs = make_envs(one_by_one, len(seeds), lambda n, _: seeds[n])
    returns, runs = np.zeros(len(seeds)), np.ones(len(seeds), dtype=bool)
    for _ in range(most_steps):
        actions = policy.act(torch.from_numpy(envs.observations).float(), None)
        step = envs.step(policy.actions.to_env(actions))
        returns += np.where(runs, step.rewards, 0.0)
        runs &= ~(step.terminated | step.truncated)
        if not runs.any():
            break
    envs.close()
    return [float(episode_return) for episode_return in returns], int(runs.sum())


def summarize(seed: int, returns: Sequence[float], *, env_steps: int, training_seconds: float) -> SeedResult:
    """The result of one training."""
    mean, low, high, std = mean_interval(returns)
    return SeedResult(
        seed=seed,
        episode_return=Estimate(mean=mean, low=low, high=high, std=std),
        lowest=min(returns),
        highest=max(returns),
        num_episodes=len(returns),
        env_steps=env_steps,
        training_seconds=training_seconds,
    )


def record_episode(policy: ControlPolicy, env: EnvConfig, *, seed: int, index: int) -> bytes | None:
    """Episode `index` of `episode_returns` as an animated GIF; None where the environment cannot be drawn.

    Raises: EnvError where it says that it can, and fails, or draws nothing.
    """
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws into memory; no screen is needed
    plain = make_env(env)
    plain.close()
    if "rgb_array" not in plain.metadata.get("render_modes", []):
        return None
    try:
        drawn = make_env(env, render_mode="rgb_array")
    except EnvError:  # it says that it can be drawn, but its constructor takes no render_mode
        return None
    frames_per_second = float(drawn.metadata.get("render_fps") or 30)
    try:
        frames = guarded(
            lambda: _frames(policy, drawn, derive_seed(seed, "evaluation", index)),
            env.id,
            must="its render must draw what it says in metadata",
        )
    finally:
        drawn.close()
    return _gif(frames, frames_per_second)


def _frames(policy: ControlPolicy, drawn: gymnasium.Env[Any, Any], seed: int) -> list[np.ndarray]:
    """Every picture of the episode."""
    observation, _ = drawn.reset(seed=seed)
    frames = [_picture(drawn)]
    ended = False
    while not ended and len(frames) < MOST_STEPS:
        action = policy.act(torch.from_numpy(np.asarray(observation))[None].float(), None)
        observation, _, terminated, truncated, _ = drawn.step(policy.actions.to_env(action)[0])
        frames.append(_picture(drawn))
        ended = bool(terminated or truncated)
    return frames


def _picture(drawn: gymnasium.Env[Any, Any]) -> np.ndarray:
    picture = drawn.render()
    if not isinstance(picture, np.ndarray) or picture.ndim != 3:
        raise EnvError(
            f'render returned {shown(picture)} where render_mode is "rgb_array"; expected an array of height, width '
            "and 3; hand render_mode on to what is wrapped"
        )
    return picture


def _gif(frames: Sequence[np.ndarray], frames_per_second: float) -> bytes:
    """At most `MOST_FRAMES` of the frames, evenly taken, at the speed of life (or as fast as viewers show it)."""
    stride = -(-len(frames) // MOST_FRAMES)
    height = round(frames[0].shape[0] * FRAME_WIDTH / frames[0].shape[1])
    images = [Image.fromarray(frame).resize((FRAME_WIDTH, height)) for frame in frames[::stride]]
    first = images[-1].quantize(64)  # one palette for all, or each frame has its own
    images = [image.quantize(64, palette=first, dither=Image.Dither.NONE) for image in images]
    content = io.BytesIO()
    images[0].save(
        content,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=max(20, round(1000 * stride / frames_per_second)),
        loop=0,
        optimize=True,
    )
    return content.getvalue()
