"""Policy losses (PPO, GSPO, CISPO), the clipped value error, and the numbers that say how an update went."""

from typing import Literal

import torch
from torch import Tensor

from rlhfkit.errors import ConfigError
from rlhfkit.ppo.kl import KLKind, kl_estimate
from rlhfkit.ppo.masked import check_rows, check_shapes, masked_mean, masked_var, rounding_of_means, where_masked

__all__ = [
    "PolicyRatio",
    "approx_kl",
    "cispo_loss",
    "clip_fraction",
    "explained_variance",
    "importance_weights",
    "kl_loss",
    "outside_clip",
    "policy_loss",
    "policy_ratio",
    "ratio_max_deviation",
    "value_loss",
]

PolicyRatio = Literal["token", "sequence"]
"""What the ratio of the new to the old policy is taken of."""


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_range: float,
    clip_range_high: float | None = None,
    ratio: PolicyRatio = "token",
    denominator: float | Tensor | None = None,
    dual_clip: float | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Clipped surrogate loss, a scalar to minimise.

    sum over masked tokens of w * max(-A * r, -A * clip(r, 1 - clip_range, 1 + clip_range_high)) / denominator
    r = `policy_ratio`, of the token or of its whole row
    w = `weights`, by default 1

    All inputs of one shape, `mask` bool. `clip_range_high` is by default `clip_range`; a larger one lets rare tokens
    become likely faster than likely ones rare. `denominator` is by default the mask's count; a microbatch passes that
    of its whole minibatch, so that losses and gradients of the microbatches add up exactly. Only `logprobs` gets
    gradient. With `ratio` "sequence" (GSPO) all tokens of a row have one ratio, which is clipped as a whole; it wants a
    clip range of about 3e-4.
    `dual_clip` c > 1 bounds the loss at -c * A where A < 0 and r > c, so that one bad token cannot dominate a batch.
    `weights` are those of `importance_weights`, where another engine sampled, or of `token_weights`, or their product.
    Raises: ShapeError; ConfigError if dual_clip is not above 1.
    Source: Schulman et al. 2017, arXiv 1707.06347, eq. 7; clip_range_high: Yu et al. 2025 (DAPO), arXiv 2503.14476,
    section 3.1; "sequence": Zheng et al. 2025 (GSPO), arXiv 2507.18071, eq. 5; dual clip: Ye et al. 2020, arXiv
    1912.09729.
    """
    check_shapes(mask, logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    if dual_clip is not None and dual_clip <= 1:
        raise ConfigError(f"dual_clip {dual_clip}: expected more than 1, such as 3; or None to leave it out")
    advantages = where_masked(advantages.detach(), mask)
    r = policy_ratio(logprobs, old_logprobs.detach(), mask, of=ratio)
    loss = torch.maximum(-advantages * r, -advantages * _clipped(r, clip_range, clip_range_high))
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)
    return _weighted_mean(loss, mask, weights, denominator)


def cispo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_range: float,
    clip_range_high: float | None = None,
    denominator: float | Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """REINFORCE with a clipped importance weight, a scalar to minimise.

    sum over masked tokens of -w * stop_gradient(clip(r, 1 - clip_range, 1 + clip_range_high)) * A * logprobs /
    denominator,  r = exp(logprobs - old_logprobs)

    Arguments as in `policy_loss`. There a token beyond the clip range has no gradient at all; here it keeps one, of
    bounded weight, so that rare tokens that a response hangs on are learnt from in every epoch. `clip_range` 1 is no
    lower bound, as in the source. The loss's value means nothing; its gradient is what counts.
    Raises: ShapeError.
    Source: MiniMax 2025 (MiniMax-M1), arXiv 2506.13585, eq. 4 and 5.
    """
    check_shapes(mask, logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    ratio = policy_ratio(logprobs.detach(), old_logprobs.detach(), mask)
    weight = _clipped(ratio, clip_range, clip_range_high)
    loss = -weight * where_masked(advantages.detach(), mask) * where_masked(logprobs, mask)
    return _weighted_mean(loss, mask, weights, denominator)


def kl_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    *,
    kind: KLKind,
    denominator: float | Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """KL divergence from the reference as a term of the loss, in nats, a scalar whose *gradient* is that of the KL.

    k2: sum over masked tokens of w * d^2 / 2 / denominator               gradient of a token: d * grad logprobs
    k3: sum over masked tokens of w * r * (exp(-d) - 1 + d) / denominator                  r * d * grad logprobs
    d = logprobs - ref_logprobs,  r = exp(logprobs - old_logprobs)

    Of tokens that the policy itself sampled d * grad logprobs is on average the gradient of KL(policy || reference) at
    each state; so k2 is right in the first update of a rollout. The tokens are the old policy's, though: with r, which
    weighs them anew, k3 is right in all updates, and its value stays the KL too. k3 *without* r, as it is often taken,
    has the gradient of KL(reference || policy); k1 as a loss has none on average. Each token answers for the KL of its
    own state, and not, as in a reward, for that of the states which it leads to.
    `weights` and `denominator` as in `policy_loss`. Only `logprobs` gets gradient.
    Raises: ShapeError; ConfigError for another kind.
    Source: Liu et al. 2025, arXiv 2510.01555 (k2 as a loss is k1 in the reward; k3 as a loss is biased; weights off the
    policy); k3 with the ratio: DeepSeek-AI 2025 (V3.2), arXiv 2512.02556, section 3.1.
    """
    check_shapes(mask, logprobs=logprobs, old_logprobs=old_logprobs, ref_logprobs=ref_logprobs)
    if kind not in ("k2", "k3"):
        raise ConfigError(
            f"kind {kind!r} in a loss: expected 'k2' or 'k3', whose gradients are that of the KL divergence; name one"
        )
    now, ref = where_masked(logprobs, mask), where_masked(ref_logprobs.detach(), mask)
    half_square = kl_estimate(now, ref, "k2")
    if kind == "k2":
        return _weighted_mean(half_square, mask, weights, denominator)
    ratio = policy_ratio(logprobs.detach(), old_logprobs.detach(), mask)
    value = ratio * kl_estimate(now.detach(), ref, "k3")
    slope = ratio * half_square  # r * k3's own derivative is r * d too, but as a difference of numbers like exp(-d)
    return _weighted_mean(value + (slope - slope.detach()), mask, weights, denominator)


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
    return policy_ratio(old_logprobs, sampled_logprobs, mask).clamp(max=cap)


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
    clip_range_high: float | None = None,
    ratio: PolicyRatio = "token",
    denominator: float | Tensor | None = None,
) -> Tensor:
    """Share of masked tokens whose ratio has left [1 - clip_range, 1 + clip_range_high], a scalar; on either side.

    Whatever the advantage's sign, so about twice what code reports that counts only where the clip is the larger loss.
    Arguments as in `policy_loss`.
    Raises: ShapeError.
    """
    outside = outside_clip(
        logprobs, old_logprobs, mask, clip_range=clip_range, clip_range_high=clip_range_high, ratio=ratio
    )
    return masked_mean(outside, mask, denominator)


@torch.no_grad()
def outside_clip(
    logprobs: Tensor,
    old_logprobs: Tensor,
    mask: Tensor,
    *,
    clip_range: float,
    clip_range_high: float | None = None,
    ratio: PolicyRatio = "token",
) -> Tensor:
    """Whether the ratio of each token has left [1 - clip_range, 1 + clip_range_high]; False outside the mask.

    Arguments as in `policy_loss`. Raises: ShapeError.
    """
    deviation = policy_ratio(logprobs, old_logprobs, mask, of=ratio) - 1
    high = clip_range if clip_range_high is None else clip_range_high
    return (deviation > high) | (deviation < -clip_range)


@torch.no_grad()
def ratio_max_deviation(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Largest |r - 1| of the masked tokens, a scalar; before the first optimizer step anything but 0 is rounding.

    A large one there says that rollout and update do not compute the same policy (temperature, dropout, padding).
    Raises: ShapeError.
    """
    check_shapes(mask, logprobs=logprobs, old_logprobs=old_logprobs)
    return (policy_ratio(logprobs, old_logprobs, mask) - 1).abs().max()


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


def policy_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, *, of: PolicyRatio = "token") -> Tensor:
    """Probability of each token now over that at rollout; 1 outside the mask.

    exp(logprobs - old_logprobs)
    of a "sequence": exp(mean of logprobs - old_logprobs over the masked tokens of the row), at each of them

    All inputs of one shape; for "sequence" (B, T), with whole responses in rows.
    Raises: ShapeError.
    Source: "sequence": Zheng et al. 2025 (GSPO), arXiv 2507.18071, eq. 7.
    """
    check_shapes(mask, logprobs=logprobs, old_logprobs=old_logprobs)
    difference = where_masked(logprobs, mask) - where_masked(old_logprobs, mask)
    if of == "sequence":
        check_rows(mask)
        mean = difference.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        difference = where_masked(mean.expand(mask.shape), mask)
    elif of != "token":
        raise ConfigError(f"ratio of {of!r}: expected 'token' or 'sequence'; name one of them")
    return torch.exp(difference)


def _clipped(ratio: Tensor, clip_range: float, clip_range_high: float | None) -> Tensor:
    return ratio.clamp(1 - clip_range, 1 + (clip_range if clip_range_high is None else clip_range_high))


def _weighted_mean(loss: Tensor, mask: Tensor, weights: Tensor | None, denominator: float | Tensor | None) -> Tensor:
    if weights is not None:
        check_shapes(mask, weights=weights)
        loss = loss * where_masked(weights.detach(), mask)
    return masked_mean(loss, mask, denominator)
