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

__all__ = ["advantage_std", "advantages_and_returns", "raw_advantages_and_returns", "whitened"]


def advantages_and_returns(experience: Experience, config: PpoConfig | ControlPpoConfig) -> tuple[Tensor, Tensor]:
    """Advantages (B, T) as the loss takes them, and returns (B, T); see the next two."""
    raw, returns = raw_advantages_and_returns(experience, config)
    return whitened(raw, experience.mask, config), returns


def whitened(raw: Tensor, mask: Tensor, config: PpoConfig | ControlPpoConfig) -> Tensor:
    """Advantages (B, T) whitened over the whole rollout; those that were compared within groups as they are."""
    return whiten(raw, mask) if config.whitens_advantages else raw


def raw_advantages_and_returns(experience: Experience, config: PpoConfig | ControlPpoConfig) -> tuple[Tensor, Tensor]:
    """Advantages (B, T) before whitening, and returns (B, T), which the critic learns: advantages + old values.

    With a lambda of the critic's own the returns are those of its advantages. Without a critic there are none to learn,
    and they are zero. By RLOO and GRPO the advantage of a response stands at each of its tokens.
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
        return advantages, torch.zeros_like(advantages)
    if config.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)

    def by(gae_lambda: float) -> Tensor:
        return gae(
            rewards,
            experience.old_values,
            experience.next_values,
            experience.terminated,
            experience.ended,
            gamma=config.gamma,
            gae_lambda=gae_lambda,
            mask=mask,
        )

    advantages, of_critic = by(config.gae_lambda), config.value.gae_lambda
    towards = advantages if of_critic in (None, config.gae_lambda) else by(of_critic)
    return advantages, towards + experience.old_values


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


def advantage_std(raw: Tensor, mask: Tensor) -> float:
    """Deviation over all tokens of the advantages before whitening, which would make any of them 1."""
    return math.sqrt(float(masked_var(raw, mask)))
