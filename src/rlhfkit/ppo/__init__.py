"""The mathematics of PPO and RLHF: pure functions of tensors, without state, models or files."""

from rlhfkit.ppo.advantages import (
    gae,
    grpo_advantages,
    next_token_values,
    reinforce_advantages,
    rloo_advantages,
    spread_over_tokens,
    whiten,
)
from rlhfkit.ppo.aggregation import LossAggregation, loss_denominator, token_weights
from rlhfkit.ppo.constraint import Lagrangian, Multiplier, constrained_scores
from rlhfkit.ppo.entropy import AdaptiveEntropy
from rlhfkit.ppo.kl import AdaptiveKL, FixedKL, KLKind, kl_estimate
from rlhfkit.ppo.logprobs import logits_to_logprobs, token_logprobs
from rlhfkit.ppo.loss import (
    PolicyRatio,
    approx_kl,
    cispo_loss,
    clip_fraction,
    explained_variance,
    importance_weights,
    kl_loss,
    outside_clip,
    policy_loss,
    policy_ratio,
    ratio_max_deviation,
    value_loss,
)
from rlhfkit.ppo.masked import masked_mean, masked_sum, masked_var
from rlhfkit.ppo.shaping import brevity_penalty, clip_scores, length_penalty, missing_eos_penalty, token_rewards

__all__ = [
    "AdaptiveEntropy",
    "AdaptiveKL",
    "FixedKL",
    "KLKind",
    "Lagrangian",
    "LossAggregation",
    "Multiplier",
    "PolicyRatio",
    "approx_kl",
    "brevity_penalty",
    "cispo_loss",
    "clip_fraction",
    "clip_scores",
    "constrained_scores",
    "explained_variance",
    "gae",
    "grpo_advantages",
    "importance_weights",
    "kl_estimate",
    "kl_loss",
    "length_penalty",
    "logits_to_logprobs",
    "loss_denominator",
    "masked_mean",
    "masked_sum",
    "masked_var",
    "missing_eos_penalty",
    "next_token_values",
    "outside_clip",
    "policy_loss",
    "policy_ratio",
    "ratio_max_deviation",
    "reinforce_advantages",
    "rloo_advantages",
    "spread_over_tokens",
    "token_logprobs",
    "token_rewards",
    "token_weights",
    "value_loss",
    "whiten",
]
