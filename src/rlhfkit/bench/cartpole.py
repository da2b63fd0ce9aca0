"""Seconds until CartPole-v1 is solved."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from rlhfkit.config.control import ControlRecipe
from rlhfkit.config.load import load_recipe
from rlhfkit.evaluation.control import episode_returns
from rlhfkit.models.control import ControlPolicy
from rlhfkit.pipeline.control import control_trainer
from rlhfkit.rollout.control import ControlRollout
from rlhfkit.training.ppo import run_iteration

__all__ = ["bench_cartpole"]

LOOK_EVERY_STEPS = 8192
SOLVED_RETURN, EPISODES_OF_LOOK = 475.0, 100
SEED_OF_LOOK = 9_999


def bench_cartpole(*, num_seeds: int = 5, tell: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Seconds and steps of training until CartPole-v1 is solved, by the recipe `cartpole`: medians over the seeds.

    Solved: the deterministic policy's mean return over 100 episodes is at least 475, looked at every 8,192 steps. The
    time of these looks is not counted. `tell` hears of each seed.
    """
    torch.set_num_threads(1)
    recipe = load_recipe("cartpole").recipe
    assert isinstance(recipe, ControlRecipe)
    solved: list[tuple[float, int]] = []
    steps, seconds = 0, 0.0
    for seed in range(num_seeds):
        has_solved, seed_seconds, seed_steps = _seconds_to_solve(recipe, seed)
        steps, seconds = steps + seed_steps, seconds + seed_seconds
        if has_solved:
            solved.append((seed_seconds, seed_steps))
        tell(
            f"seed {seed}: {'solved' if has_solved else 'NOT solved'} after {seed_seconds:.2f} s, {seed_steps:,} steps"
        )
    return {
        "bench": "cartpole",
        "solved": len(solved),
        "seeds": num_seeds,
        "seconds_to_solve": statistics.median(s for s, _ in solved) if solved else None,
        "steps_to_solve": statistics.median(n for _, n in solved) if solved else None,
        "env_steps_per_second": steps / seconds,
    }


def _seconds_to_solve(recipe: ControlRecipe, seed: int) -> tuple[bool, float, int]:
    """Whether the seed solved it, and its seconds and steps of training."""
    trainer = control_trainer(recipe, seed)
    policy, rollout = trainer.policy, trainer.rollout
    assert isinstance(policy, ControlPolicy) and isinstance(rollout, ControlRollout)
    seconds, next_look = 0.0, LOOK_EVERY_STEPS
    while trainer.iteration < recipe.ppo.iterations:
        start = time.perf_counter()
        run_iteration(trainer)
        seconds += time.perf_counter() - start
        if rollout.env_steps >= next_look:
            next_look += LOOK_EVERY_STEPS
            returns = episode_returns(policy, recipe.env, num_episodes=EPISODES_OF_LOOK, seed=SEED_OF_LOOK)
            if statistics.fmean(returns) >= SOLVED_RETURN:
                return True, seconds, rollout.env_steps
    return False, seconds, rollout.env_steps
