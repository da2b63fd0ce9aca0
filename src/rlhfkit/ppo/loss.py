"""The PPO loss: clipped policy objective, clipped value error, and the numbers that say how an update went."""

import torch
from torch import Tensor

from rlhfkit.errors import ConfigError
from rlhfkit.ppo.kl import KLKind, kl_estimate
from rlhfkit.ppo.masked import check_shapes, masked_mean, masked_var, rounding_of_means, where_masked

__all__ = [
    "approx_kl",
    "clip_fraction",
    "explained_variance",
    "importance_weights",
    "policy_loss",
    "ratio_max_deviation",
    "value_loss",
]


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_range: float,
    denominator: float | Tensor | None = None,
    dual_clip: float | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Clipped surrogate loss, a scalar to minimise.

    sum over masked tokens of w * max(-A * r, -A * clip(r, 1 - clip_range, 1 + clip_range)) / denominator
    r = exp(logprobs - old_logprobs)
    w = `weights`, by default 1

    All inputs of one shape, `mask` bool. `denominator` is by default the mask's count; a microbatch passes the count of
    its whole minibatch, so that losses and gradients of the microbatches add up exactly. Only `logprobs` gets gradient.
    `dual_clip` c > 1 bounds the loss at -c * A where A < 0 and r > c, so that one bad token cannot dominate a batch.
    `weights` are those of `importance_weights`, where another engine sampled.
    Raises: ShapeError; ConfigError if dual_clip is not above 1.
    Source: Schulman et al. 2017, arXiv 1707.06347, eq. 7; dual clip: Ye et al. 2020, arXiv 1912.09729.
    """
    check_shapes(mask, logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    if dual_clip is not None and dual_clip <= 1:
        raise ConfigError(f"dual_clip {dual_clip}: expected more than 1, such as 3; or None to leave it out")
    advantages = where_masked(advantages.detach(), mask)
    ratio = _ratio(logprobs, old_logprobs.detach(), mask)
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_range, 1 + clip_range))
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)
    if weights is not None:
        check_shapes(mask, weights=weights)
        loss = loss * where_masked(weights.detach(), mask)
    return masked_mean(loss, mask, denominator)


@torch.no_grad()
def importance_weights(old_logprobs: Tensor, sampled_logprobs: Tensor, mask: Tensor, *, cap: float) -> Tensor:
    """Weight (B, T) of each token that another engine drew, which computes the policy a little differently.

    w = min(exp(old_logprobs - sampled_logprobs), cap)

    1 outside the mask. `sampled_logprobs` are the engine's, `old_logprobs` those of the same weights in the training
    pass. In expectation over what the engine draws, w times a token's loss is its loss under the training pass's
    policy; the cap bounds the variance, at the price of a bias where it bites.
    Raises: ShapeError; ConfigError if `cap` is below 1, as it would scale down all tokens.
    Source: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training",
    https://fengyao.notion.site/off-policy-rl (truncated importance sampling, per token, beside PPO's own ratio).
    """
    check_shapes(mask, old_logprobs=old_logprobs, sampled_logprobs=sampled_logprobs)
    if cap < 1:
        raise ConfigError(f"importance cap {cap:g}: expected at least 1, such as 2")
    return _ratio(old_logprobs, sampled_logprobs, mask).clamp(max=cap)


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    value_clip_range: float | None,
    denominator: float | Tensor | None = None,
) -> Tensor:
    """Half the squared error of the values, a scalar to minimise; the larger of clipped and unclipped, if clipped.

    sum over masked tokens of 1/2 max((values - returns)^2, (clipped - returns)^2) / denominator
    clipped = old_values + clip(values - old_values, -value_clip_range, value_clip_range)

    All inputs of one shape, `mask` bool. `value_clip_range` None = no clipping. `denominator` as in `policy_loss`. Only
    `values` gets gradient.
    Raises: ShapeError.
    Source: Ziegler et al. 2019, arXiv 1909.08593 (its code; the clipping is not in the PPO paper).
    """
    check_shapes(mask, values=values, old_values=old_values, returns=returns)
    values, old_values, returns = (where_masked(x, mask) for x in (values, old_values.detach(), returns.detach()))
    squares = (values - returns).square()
    if value_clip_range is not None:
        clipped = old_values + (values - old_values).clamp(-value_clip_range, value_clip_range)
        squares = torch.maximum(squares, (clipped - returns).square())
    return masked_mean(0.5 * squares, mask, denominator)


@torch.no_grad()
def approx_kl(
    logprobs: Tensor,
    old_logprobs: Tensor,
    mask: Tensor,
    *,
    kind: KLKind = "k3",
    denominator: float | Tensor | None = None,
) -> Tensor:
    """Mean estimate per masked token of KL(old policy || policy) in nats, a scalar: how far an update has moved.

    mean((r - 1) - log r), r = exp(logprobs - old_logprobs)        (k3; other kinds as in `kl_estimate`)

    The tokens were sampled from the old policy, so the old one comes first. `denominator` as in `policy_loss`.
    Raises: ShapeError, ConfigError.
    Source: Schulman 2020, http://joschu.net/blog/kl-approx.html.
    """
    check_shapes(mask, logprobs=logprobs, old_logprobs=old_logprobs)
    estimate = kl_estimate(where_masked(old_logprobs, mask), where_masked(logprobs, mask), kind)
    return masked_mean(estimate, mask, denominator)


@torch.no_grad()
def clip_fraction(
    logprobs: Tensor,
    old_logprobs: Tensor,
    mask: Tensor,
    *,
    clip_range: float,
    denominator: float | Tensor | None = None,
) -> Tensor:
    """Share of masked tokens whose ratio has left [1 - clip_range, 1 + clip_range], a scalar; on either side.

    Whatever the advantage's sign, so about twice what code reports that counts only where the clip is the larger loss.
    `denominator` as in `policy_loss`.
    Raises: ShapeError.
    """
    check_shapes(mask, logprobs=logprobs, old_logprobs=old_logprobs)
    outside = (_ratio(logprobs, old_logprobs, mask) - 1).abs() > clip_range
    return masked_mean(outside, mask, denominator)


@torch.no_grad()
def ratio_max_deviation(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Largest |r - 1| of the masked tokens, a scalar; before the first optimizer step anything but 0 is rounding.

    A large one there says that rollout and update do not compute the same policy (temperature, dropout, padding).
    Raises: ShapeError.
    """
    check_shapes(mask, logprobs=logprobs, old_logprobs=old_logprobs)
    return (_ratio(logprobs, old_logprobs, mask) - 1).abs().max()


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Share of the returns' variance that the values explain, a scalar: 1 perfect, 0 no better than a constant.

    1 - Var(returns - values) / Var(returns)

    0 where the returns do not vary by more than rounding, since then there is nothing to explain. Can be negative.
    Raises: ShapeError.
    """
    check_shapes(mask, values=values, returns=returns)
    values, returns = where_masked(values, mask), where_masked(returns, mask)
    total = masked_var(returns, mask)
    explained = 1 - masked_var(returns - values, mask) / total
    return torch.where(total <= rounding_of_means(returns, mask).square(), 0.0, explained)


def _ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Probability of each token now over that at rollout; 1 outside the mask."""
    return torch.exp(where_masked(logprobs, mask) - where_masked(old_logprobs, mask))
