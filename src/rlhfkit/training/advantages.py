"""The advantages of an experience, by the estimator that the recipe names."""

import math

import torch
from torch import Tensor

from rlhfkit.config.control import ControlPpoConfig
from rlhfkit.config.ppo import PpoConfig
from rlhfkit.ppo import (
    gae,
    grpo_advantages,
    masked_var,
    reinforce_advantages,
    rloo_advantages,
    spread_over_tokens,
    whiten,
)
from rlhfkit.rollout.experience import Experience

__all__ = ["advantage_std", "advantages_and_returns"]


def advantages_and_returns(experience: Experience, config: PpoConfig | ControlPpoConfig) -> tuple[Tensor, Tensor]:
    """Advantages (B, T), whitened over the whole rollout, and returns (B, T) = unwhitened advantages + old values.

    By RLOO and GRPO the advantage of a response, compared within its group, stands at each of its tokens, not whitened;
    the returns are then of no use and zero. By REINFORCE++, without a critic, the returns are those less the baseline.
    """
    mask, rewards = experience.mask, experience.rewards
    if config.estimator in ("rloo", "grpo"):
        advantages = spread_over_tokens(_advantages_within_groups(experience, config), mask)
        return advantages, torch.zeros_like(advantages)
    if config.estimator != "gae":
        scores = experience.scores if config.estimator == "reinforce++-baseline" else None
        advantages = reinforce_advantages(
            rewards, mask, gamma=config.gamma, scores=scores, group_size=config.group_size
        )
        return whiten(advantages, mask), advantages
    if config.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    advantages = gae(
        rewards,
        experience.old_values,
        experience.next_values,
        experience.terminated,
        experience.ended,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        mask=mask,
    )
    return whiten(advantages, mask), advantages + experience.old_values


def _advantages_within_groups(experience: Experience, config: PpoConfig | ControlPpoConfig) -> Tensor:
    """(B,) by RLOO of the total, score less KL penalty, or by GRPO, which divides the score alone."""
    totals = experience.rewards.sum(1)
    if config.estimator == "rloo":
        return rloo_advantages(totals, group_size=config.group_size)
    assert experience.scores is not None
    return grpo_advantages(
        experience.scores,
        experience.scores - totals,
        group_size=config.group_size,
        normalize_std=config.normalize_std,
    )


def advantage_std(
    experience: Experience, advantages: Tensor, returns: Tensor, config: PpoConfig | ControlPpoConfig
) -> float:
    """Deviation of the advantages over all tokens, before whitening, which would make any of them 1."""
    raw = returns if config.whitens_advantages else advantages
    if config.estimator == "gae":
        raw = returns - experience.old_values
    return math.sqrt(float(masked_var(raw, experience.mask)))
