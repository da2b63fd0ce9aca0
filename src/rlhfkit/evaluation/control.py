"""What a control policy is worth: its likeliest actions in episodes of its own, and one of them to look at."""

import io
import os
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from PIL import Image

from rlhfkit.config.control import EnvConfig
from rlhfkit.envs.control import episode_limit, make_env, make_envs
from rlhfkit.envs.text import guarded, shown
from rlhfkit.errors import EnvError
from rlhfkit.machine.seeding import capture_rng, derive_seed, restore_rng
from rlhfkit.models.control import ControlPolicy
from rlhfkit.rundir.results import Estimate, SeedResult
from rlhfkit.stats.intervals import mean_interval

__all__ = ["episode_returns", "quick_return", "record_episode", "summarize"]

MOST_STEPS = 10_000
"""Of an episode in an environment that names no limit: one that has not ended by then may never end."""
RANKING_EPISODES, RANKING_STEPS = 10, 10_000
MOST_FRAMES, FRAME_WIDTH = 200, 300
"""Of a recording, which shall not weigh more than the rest of the report, nor fill the memory while it is made."""


def episode_returns(
    policy: ControlPolicy,
    env: EnvConfig,
    *,
    num_episodes: int,
    seed: int,
    warn: Callable[[str], None] | None = None,
) -> list[float]:
    """Undiscounted return of episode 0 … num_episodes - 1, each from a seed of its own, by the likeliest actions.

    Where neither the recipe nor the environment limits an episode, it is cut after `MOST_STEPS` steps, and `warn` is
    given a sentence that says how many were.
    Raises: EnvError where an episode would have to be cut, and nobody can be warned.
    """
    seeds = [derive_seed(seed, "evaluation", n) for n in range(num_episodes)]
    most_steps = episode_limit(env) or MOST_STEPS
    returns, num_left = _play(policy, env, seeds, most_steps)
    if not num_left:
        return returns
    seen = f'env.id = "{env.id}": {num_left} of {num_episodes} episodes did not end within {most_steps:,} steps'
    if warn is None:
        raise EnvError(f"{seen}; set env.max_episode_steps")
    warn(f"{seen} and were cut there, so their returns are of these steps alone; set env.max_episode_steps")
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
        frames, stride = guarded(
            lambda: _frames(policy, drawn, derive_seed(seed, "evaluation", index), episode_limit(env) or MOST_STEPS),
            env.id,
            must="its render must draw what it says in metadata",
        )
    finally:
        drawn.close()
    return _gif(frames, frames_per_second / stride)


def _frames(
    policy: ControlPolicy, drawn: gymnasium.Env[Any, Any], seed: int, most_steps: int
) -> tuple[list[np.ndarray], int]:
    """Pictures of the episode, as far as so many steps; and of how many steps one is kept, so that memory holds all."""
    observation, _ = drawn.reset(seed=seed)
    frames, stride = [_picture(drawn)], 1
    for t in range(1, most_steps + 1):
        action = policy.act(torch.from_numpy(np.asarray(observation))[None].float(), None)
        observation, _, terminated, truncated, _ = drawn.step(policy.actions.to_env(action)[0])
        if t % stride == 0:
            frames.append(_picture(drawn))
        if len(frames) > 2 * MOST_FRAMES:
            frames, stride = frames[::2], 2 * stride
        if terminated or truncated:
            break
    return frames, stride


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
