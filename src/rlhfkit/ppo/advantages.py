"""How much better was it than expected: GAE with a critic; RLOO, GRPO, REINFORCE++ without one; whitening."""

import torch
from torch import Tensor

from rlhfkit.errors import ConfigError, ShapeError
from rlhfkit.ppo.masked import (
    at_least_float32,
    check_bool,
    check_rows,
    check_shapes,
    masked_mean,
    masked_var,
    rounding_of_means,
    where_masked,
)

__all__ = [
    "gae",
    "grpo_advantages",
    "next_token_values",
    "reinforce_advantages",
    "rloo_advantages",
    "spread_over_tokens",
    "whiten",
]


@torch.no_grad()
def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    ended: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
    mask: Tensor | None = None,
) -> Tensor:
    """Advantages (B, T) by generalized advantage estimation; not whitened, without gradient.

    A[t] = delta[t] + gamma * gae_lambda * A[t+1]                  (A[t+1] = 0 where `ended`)
    delta[t] = rewards[t] + gamma * next_values[t] - values[t]     (next_values[t] = 0 where `terminated`)

    All inputs (B, T); `terminated`, `ended` bool, ended = terminated | truncated. `next_values` is the value of the
    observation that really followed, so a truncated step still bootstraps. returns = advantages + values.
    `mask` (bool, True = sampled by the policy): the other tokens, which an environment wrote or which pad the row, are
    no steps. Values there are ignored, the advantage there is 0, and A is carried over them from the next sampled
    token, whose value `next_token_values` gives. Rewards there must be 0 or NaN.
    Raises: ShapeError, because (B, T) against (B, T, 1) would broadcast to (B, T, T) in silence; and for a reward
    outside `mask`, which would be lost in silence.
    Source: Schulman et al. 2016, arXiv 1506.02438, eq. 16; truncation: Pardo et al. 2018, arXiv 1712.00378.
    """
    check_bool(terminated=terminated, ended=ended)
    mask = torch.ones_like(ended) if mask is None else mask
    check_shapes(mask, rewards=rewards, values=values, next_values=next_values, terminated=terminated, ended=ended)
    check_rows(mask)
    _refuse_lost_rewards(rewards, mask)
    next_values = where_masked(next_values, mask & ~terminated)
    delta = where_masked(rewards, mask) + gamma * next_values - where_masked(values, mask)
    decay = torch.full_like(delta, gamma * gae_lambda)
    decay = decay.masked_fill(~mask, 1.0).masked_fill(ended | terminated, 0.0)  # a gap neither discounts nor forgets

    advantages = torch.empty_like(delta)
    following = delta.new_zeros(len(delta))
    for t in reversed(range(delta.shape[1])):
        following = delta[:, t] + decay[:, t] * following
        advantages[:, t] = following
    return where_masked(advantages, mask)


def _refuse_lost_rewards(rewards: Tensor, mask: Tensor) -> None:
    lost = ((rewards != 0) & ~rewards.isnan() & ~mask).nonzero()
    if len(lost):
        row, place = lost[0].tolist()
        raise ShapeError(
            f"rewards has {float(rewards[row, place]):g} at [{row}, {place}], outside the mask, where no advantage "
            "would see it; add it to the reward of the sampled token that earned it, or set it to 0"
        )


@torch.no_grad()
def next_token_values(values: Tensor, mask: Tensor) -> Tensor:
    """Value of the next token that `mask` selects (B, T), 0 after the last: the `next_values` of text for `gae`.

    `values` (B, T); `mask` (B, T) bool, True = sampled by the policy. Tokens of an environment are skipped. A response
    that was cut off, and shall bootstrap, needs the value of what followed written over the 0 at its last token.
    Raises: ShapeError.
    """
    check_shapes(mask, values=values)
    check_rows(mask)
    values = where_masked(values, mask)
    next_values = torch.empty_like(values)
    following = values.new_zeros(len(values))
    for t in reversed(range(values.shape[1])):
        next_values[:, t] = following
        following = torch.where(mask[:, t], values[:, t], following)
    return next_values


def whiten(x: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """`x` with biased variance 1 over the masked entries, and mean 0 unless `shift_mean` is False; 0 outside the mask.

    (x - mean) / sqrt(var + 1e-8)                                  (+ mean, if not shift_mean)

    `x` and `mask` (bool) of one shape. Entries that differ by no more than rounding, or a single one, become 0 (or
    stay, without the shift). Whiten advantages over the whole rollout, not per minibatch; rewards, if at all, with
    shift_mean=False, since moving their mean would pay for longer or for shorter responses.
    Raises: ShapeError.
    Source: Ziegler et al. 2019, arXiv 1909.08593 (its code scales by rsqrt(var + 1e-8)).
    """
    check_shapes(mask, x=x)
    x = where_masked(x, mask)
    mean, variance = masked_mean(x, mask), masked_var(x, mask)
    whitened = (x - mean) * torch.rsqrt(variance + 1e-8)
    # What is left of equal entries is the rounding of their mean, which the division would blow up. NaN stays NaN.
    is_rounding = variance <= rounding_of_means(x, mask).square()
    if not shift_mean:
        return where_masked(torch.where(is_rounding, x, whitened + mean), mask)
    return where_masked(torch.where(is_rounding, 0.0, whitened), mask)


def rloo_advantages(scores: Tensor, *, group_size: int) -> Tensor:
    """Advantages (B,): each score minus the mean score of the other responses to the same prompt (leave one out).

    A[i] = scores[i] - (sum of the group - scores[i]) / (group_size - 1)

    `scores` (B,): the `group_size` responses to a prompt are neighbours. Subtract a KL penalty from the scores before.
    Raises: ShapeError, ConfigError.
    Source: Ahmadian et al. 2024, arXiv 2402.14740.
    """
    groups = _groups(scores, group_size)
    others = (groups.sum(1, keepdim=True) - groups) / (group_size - 1)
    return (groups - others).flatten()


def grpo_advantages(
    scores: Tensor, penalties: Tensor | None = None, *, group_size: int, normalize_std: bool = True
) -> Tensor:
    """Advantages (B,): each score relative to all responses to the same prompt, and so its penalty.

    A[i] = (scores[i] - mean score) / (std of the scores + 1e-4) - (penalties[i] - mean penalty)

    `scores` (B,): the `group_size` responses to a prompt are neighbours. `penalties` (B,), if any, is the KL penalty
    kl_coef * KL of each response. It is centred, but not divided: else its weight would hang on how much the scores of
    a prompt agree, and where they are all equal kl_coef would have no effect at all. The deviation is the sample's
    (unbiased, divided by n - 1), as in TRL. With `normalize_std=False` it is left out (Dr. GRPO): dividing weighs a
    prompt by how much its scores agree.
    Raises: ShapeError, ConfigError.
    Source: Shao et al. 2024, arXiv 2402.03300, section 4.1, where the KL is a term of the loss beside the normalised
    score; without deviation: Liu et al. 2025, arXiv 2503.20783; the 1e-4: TRL.
    """
    groups = _groups(scores, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    if normalize_std:
        centred = centred / (groups.std(1, keepdim=True) + 1e-4)
    if penalties is not None:
        check_shapes(scores=scores, penalties=penalties)
        costs = _groups(penalties, group_size)
        centred = centred - (costs - costs.mean(1, keepdim=True))
    return centred.flatten()


def reinforce_advantages(
    rewards: Tensor,
    mask: Tensor,
    *,
    gamma: float,
    scores: Tensor | None = None,
    group_size: int = 1,
) -> Tensor:
    """Advantages (B, T) of REINFORCE++: what each token still earns, less the mean score of its group; not whitened.

    A[t] = rewards[t] + gamma * A[t+1]                             (over the masked tokens of a row)
    A[t] - mean of `scores` over the group                         (if `scores` are given)

    `rewards` (B, T) as `gae` takes them: the KL penalty of each token, the score at the last one. `scores` (B,) are
    those of the responses, the `group_size` to a prompt neighbours; with them the estimator has the group's baseline,
    without them none. Both are then whitened over all tokens of the rollout, by `whiten`: that the deviation is one of
    the whole rollout, and not of a group, keeps a group of nearly equal scores from being blown up.
    Raises: ShapeError; ConfigError for scores in groups of fewer than 2.
    Source: Hu et al. 2025, arXiv 2501.03262 (REINFORCE++, and REINFORCE++-baseline).
    """
    nothing = torch.zeros_like(rewards)
    never = torch.zeros_like(mask)
    returns = gae(rewards, nothing, nothing, never, never, gamma=gamma, gae_lambda=1.0, mask=mask)
    if scores is None:
        return returns
    check_rows(mask, scores=scores)
    groups = _groups(scores, group_size)
    centred = (groups - groups.mean(1, keepdim=True)).flatten()
    return returns + spread_over_tokens(centred - scores, mask)  # equal scores give exactly 0


def spread_over_tokens(advantages: Tensor, mask: Tensor) -> Tensor:
    """Advantages (B, T): that of the response (B,) on each of its masked tokens, 0 elsewhere.

    `mask` (B, T) bool, True = sampled by the policy.
    Raises: ShapeError.
    """
    check_bool(mask=mask)
    check_rows(mask, advantages=advantages)
    return where_masked(advantages[:, None].expand(mask.shape), mask)


def _groups(scores: Tensor, group_size: int) -> Tensor:
    """Scores (num_groups, group_size), counted from the first of each group, so that equal ones are exactly 0."""
    if group_size < 2:
        raise ConfigError(f"group_size {group_size}: expected at least 2 responses per prompt to compare; raise it")
    if scores.dim() != 1 or len(scores) % group_size:
        raise ShapeError(
            f"scores {tuple(scores.shape)}: expected (B,) with B a multiple of group_size {group_size}; "
            "score every response of a prompt, one number each"
        )
    groups = at_least_float32(scores).view(-1, group_size)
    return groups - groups[:, :1]
