"""From a score per episode to the rewards per token that GAE eats, and penalties on the score."""

import torch
from torch import Tensor

from rlhfkit.errors import ConfigError, ShapeError
from rlhfkit.ppo.kl import KLKind, kl_estimate
from rlhfkit.ppo.masked import at_least_float32, check_bool, check_rows, check_shapes, where_masked

__all__ = ["brevity_penalty", "clip_scores", "length_penalty", "missing_eos_penalty", "token_rewards"]


def token_rewards(
    scores: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    *,
    kl_coef: float,
    kind: KLKind = "k1",
) -> Tensor:
    """Rewards (B, T): a KL penalty on every masked token, the score on the last one too; 0 outside the mask.

    rewards[t] = -kl_coef * (logprobs[t] - ref_logprobs[t]) + (score, if t is the last masked token of its row)

    `scores` (B,); `logprobs`, `ref_logprobs` (B, T) at the sampling temperature; `mask` (B, T) bool, True = sampled by
    the policy, EOS included. `kind` is k1: with it the policy gradient of the penalty is -kl_coef times the gradient of
    KL(policy || reference). That of k3 is grad KL(policy || reference) - grad KL(reference || policy), whose two parts
    cancel near the reference; that of k2 is of second order there. Neither holds the policy.
    Raises: ShapeError, also for a row without a masked token, whose score would be lost; ConfigError for another kind.
    Source: Ziegler et al. 2019, arXiv 1909.08593, eq. 2.
    """
    if kind != "k1":
        raise ConfigError(
            f"kind {kind!r} in a reward: expected 'k1', the only estimate whose policy gradient is that of the KL "
            "divergence; leave `kind` out, and use kl_estimate for what is only logged"
        )
    check_shapes(mask, logprobs=logprobs, ref_logprobs=ref_logprobs)
    check_rows(mask, scores=scores)
    empty = (~mask.any(1)).nonzero().flatten().tolist()
    if empty:
        raise ShapeError(f"mask has no True in rows {empty}: expected a token to carry the score; leave such rows out")
    kl = kl_estimate(where_masked(logprobs, mask), where_masked(ref_logprobs, mask), kind)  # 0 outside the mask
    num_remaining = mask.flip(1).cumsum(1).flip(1)  # masked tokens from here to the end of the row
    last = mask & (num_remaining == 1)
    return -kl_coef * kl + where_masked(scores[:, None].expand(mask.shape), last)


def missing_eos_penalty(
    scores: Tensor, finished: Tensor, *, replace: float | None = None, penalty: float | None = None
) -> Tensor:
    """Scores (B,), worse where the response did not finish; unchanged if neither `replace` nor `penalty` is given.

    `finished` (B,) bool: the response ended by itself (EOS or a stop token), not at the token limit.
    `replace`: the score of an unfinished response, whatever the reward model says of it; -1 in the source. Prefer this
    one: a reward model was not trained on unfinished responses, and what it says of them must not win.
    `penalty`: subtracted from its score instead, so a high enough score still pays.
    Raises: ShapeError; ConfigError if both are given, or a negative penalty.
    Source: Huang et al. 2024, arXiv 2403.17031 (replace).
    """
    check_bool(finished=finished)
    check_shapes(scores=scores, finished=finished)
    if replace is not None and penalty:
        raise ConfigError(f"replace {replace} and penalty {penalty}: expected one of the two; drop the other")
    if penalty is not None and penalty < 0:
        raise ConfigError(f"penalty {penalty}: expected 0 or more, since it is subtracted; drop the sign")
    scores = at_least_float32(scores)
    if replace is not None:
        return torch.where(finished, scores, replace)
    return torch.where(finished, scores, scores - (penalty or 0.0))


def length_penalty(scores: Tensor, lengths: Tensor, *, coef: float, target_tokens: int) -> Tensor:
    """Scores (B,) minus `coef` for every token beyond `target_tokens`.

    scores - coef * max(0, lengths - target_tokens)

    `lengths` (B,): masked tokens of each response. A response of `target_tokens` or fewer keeps its score.
    Raises: ShapeError.
    """
    check_shapes(scores=scores, lengths=lengths)
    return at_least_float32(scores) - coef * (lengths - target_tokens).clamp(min=0)


def brevity_penalty(scores: Tensor, lengths: Tensor, *, coef: float, target_tokens: int) -> Tensor:
    """Scores (B,) minus `coef` for every token that is missing to `target_tokens`.

    scores - coef * max(0, target_tokens - lengths)

    `lengths` (B,): masked tokens of each response. For rewards that say too much of a response with too little in it:
    a reward model never saw an empty one.
    Raises: ShapeError.
    """
    check_shapes(scores=scores, lengths=lengths)
    return at_least_float32(scores) - coef * (target_tokens - lengths).clamp(min=0)


def clip_scores(scores: Tensor, *, limit: float) -> tuple[Tensor, Tensor]:
    """Scores (B,) bounded to [-limit, limit], and the share of them that was out of bounds (a scalar).

    Report the share: a policy whose scores are all clipped has nothing left to learn from.
    Raises: ConfigError if limit is not above 0.
    """
    if not limit > 0:
        raise ConfigError(f"limit {limit}: expected more than 0; leave the clipping out instead")
    scores = at_least_float32(scores)
    return scores.clamp(-limit, limit), (scores.abs() > limit).to(scores.dtype).mean()
