"""The mathematics of PPO and RLHF: pure functions of tensors, without state, models or files."""

from rlhfkit.ppo.advantages import gae, grpo_advantages, next_token_values, rloo_advantages, spread_over_tokens, whiten
from rlhfkit.ppo.constraint import Lagrangian, Multiplier, constrained_scores
from rlhfkit.ppo.kl import AdaptiveKL, FixedKL, KLKind, kl_estimate
from rlhfkit.ppo.logprobs import logits_to_logprobs, token_logprobs
from rlhfkit.ppo.loss import (
    approx_kl,
    clip_fraction,
    explained_variance,
    importance_weights,
    policy_loss,
    ratio_max_deviation,
    value_loss,
)
from rlhfkit.ppo.masked import masked_mean, masked_sum, masked_var
from rlhfkit.ppo.shaping import brevity_penalty, clip_scores, length_penalty, missing_eos_penalty, token_rewards

__all__ = [
    "AdaptiveKL",
    "FixedKL",
    "KLKind",
    "Lagrangian",
    "Multiplier",
    "approx_kl",
    "brevity_penalty",
    "clip_fraction",
    "clip_scores",
    "constrained_scores",
    "explained_variance",
    "gae",
    "grpo_advantages",
    "importance_weights",
    "kl_estimate",
    "length_penalty",
    "logits_to_logprobs",
    "masked_mean",
    "masked_sum",
    "masked_var",
    "missing_eos_penalty",
    "next_token_values",
    "policy_loss",
    "ratio_max_deviation",
    "rloo_advantages",
    "spread_over_tokens",
    "token_logprobs",
    "token_rewards",
    "value_loss",
    "whiten",
]
