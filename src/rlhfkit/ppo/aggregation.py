"""How the losses of tokens become the loss of a minibatch: by tokens, by responses, or by a constant length."""

from typing import Literal

import torch
from torch import Tensor

from rlhfkit.errors import ConfigError
from rlhfkit.ppo.masked import check_bool, check_rows

__all__ = ["LossAggregation", "loss_denominator", "token_weights"]

LossAggregation = Literal["token", "sequence", "constant"]
"""What the loss of a minibatch is a mean over."""


@torch.no_grad()
def token_weights(mask: Tensor, how: LossAggregation, *, dtype: torch.dtype = torch.float32) -> Tensor | None:
    """Weight (B, T) of each token's loss before `loss_denominator` divides the sum; None where all weigh 1.

    "sequence": 1 / (masked tokens of its row), so that a response counts once, however long it is; 0 outside the mask.
    "token", "constant": 1.

    A row's weights depend on that row alone, so that microbatches and ranks take them for their own rows.
    Raises: ShapeError.
    """
    check_bool(mask=mask)
    check_rows(mask)
    if how != "sequence":
        return None
    lengths = mask.sum(1, keepdim=True).clamp(min=1)
    return mask.to(dtype) / lengths


@torch.no_grad()
def loss_denominator(mask: Tensor, how: LossAggregation, *, constant_tokens: int | None = None) -> Tensor:
    """What the weighted sum of a minibatch's losses is divided by: a scalar of its whole `mask` (B, T).

    "token": its masked tokens.   loss = sum over tokens / tokens
    "sequence": its rows.         loss = mean over rows of (sum over the row's tokens / its tokens)
    "constant": rows x `constant_tokens`.   loss = mean over rows of (sum over the row's tokens / constant_tokens)

    Rows without a masked token do not count. By "sequence" a token of a long response weighs less than one of a short
    response, so that a long wrong answer is hardly punished; by "constant" all tokens weigh the same, as by "token",
    and no response's weight depends on how long the others of its minibatch are.
    Raises: ShapeError; ConfigError for "constant" without `constant_tokens`.
    Source: "sequence": Shao et al. 2024, arXiv 2402.03300, eq. 3; "token": Yu et al. 2025 (DAPO), arXiv 2503.14476, eq.
    12; "constant": Liu et al. 2025 (Dr. GRPO), arXiv 2503.20783, section 3.2.
    """
    check_bool(mask=mask)
    check_rows(mask)
    if how == "token":
        return mask.sum()
    rows = mask.any(1).sum()
    if how == "sequence":
        return rows
    if how != "constant":
        raise ConfigError(f"loss aggregation {how!r}: expected 'token', 'sequence' or 'constant'; name one of them")
    if constant_tokens is None or constant_tokens < 1:
        raise ConfigError(
            f"constant_tokens {constant_tokens}: expected a length for the aggregation 'constant'; set "
            "ppo.loss_tokens, such as to rollout.max_response_tokens"
        )
    return rows * constant_tokens
