"""Log-probabilities of chosen tokens and the entropy at each, for rollout and update alike.

One function for both, so that the ratio of a token before the first optimizer step is 1 up to rounding.
"""

from collections.abc import Callable
from typing import Literal, overload

import torch
from torch import Tensor
from torch.nn.functional import nll_loss
from torch.utils.checkpoint import checkpoint

from rlhfkit.errors import ConfigError, ShapeError
from rlhfkit.ppo.masked import at_least_float32

__all__ = ["logits_to_logprobs", "token_logprobs"]

Head = Callable[[Tensor], Tensor]
Chunk = Callable[[Tensor, Head, Tensor, float, bool], tuple[Tensor, Tensor | None]]


@overload
def token_logprobs(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk_tokens: int = 1024,
    with_entropy: Literal[True] = True,
    prepared: Callable[[Chunk], Chunk] | None = None,
) -> tuple[Tensor, Tensor]: ...


@overload
def token_logprobs(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk_tokens: int = 1024,
    with_entropy: bool,
    prepared: Callable[[Chunk], Chunk] | None = None,
) -> tuple[Tensor, Tensor | None]: ...


def token_logprobs(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk_tokens: int = 1024,
    with_entropy: bool = True,
    prepared: Callable[[Chunk], Chunk] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each target (N,) and entropy of its distribution (N,) in nats, in float32.

    logprobs[n] = log_softmax(head(hidden[n]) / temperature)[targets[n]]

    `hidden` (N, H): last hidden states at the positions that predict `targets` (N,) int64; drop padding before, not
    after. `head`: hidden states (n, H) -> logits (n, V). The logits of only `chunk_tokens` positions exist at a time;
    for the gradient they are computed a second time, which is cheaper than to keep (N, V). Without `with_entropy` the
    second result is None. `prepared` may put a compiled function in place of the one that does a chunk.
    Raises: ShapeError, ConfigError.
    """
    if hidden.dim() != 2 or targets.shape != hidden.shape[:1]:
        raise ShapeError(
            f"hidden {tuple(hidden.shape)}, targets {tuple(targets.shape)}: expected (N, H) and (N,); "
            "flatten the batch, or select by the mask"
        )
    if chunk_tokens < 1:
        raise ConfigError(f"chunk_tokens {chunk_tokens}: expected at least 1; 1024 is a good start")

    run = _of_chunk if prepared is None else prepared(_of_chunk)

    def of_chunk(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        return run(hidden, head, targets, temperature, with_entropy)

    if len(hidden) <= chunk_tokens:
        return of_chunk(hidden, targets)
    logprobs: list[Tensor] = []
    entropies: list[Tensor] = []
    num_chunks = -(-len(hidden) // chunk_tokens)  # of one size, since a short one costs more than its share
    for chunk in zip(hidden.tensor_split(num_chunks), targets.tensor_split(num_chunks), strict=True):
        chunk_logprobs, entropy = (
            checkpoint(of_chunk, *chunk, use_reentrant=False) if torch.is_grad_enabled() else of_chunk(*chunk)
        )
        logprobs.append(chunk_logprobs)
        if entropy is not None:
            entropies.append(entropy)
    return torch.cat(logprobs), torch.cat(entropies) if with_entropy else None


def _of_chunk(
    hidden: Tensor, head: Head, targets: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    return _logprobs_and_entropy(head(hidden), targets, temperature, with_entropy)


def logits_to_logprobs(logits: Tensor, targets: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Log-probability of each target (...) under logits (..., V), in float32.

    Raises: ShapeError, ConfigError.
    """
    return _logprobs_and_entropy(logits, targets, temperature, with_entropy=False)[0]


def _logprobs_and_entropy(
    logits: Tensor, targets: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    if logits.shape[:-1] != targets.shape:
        raise ShapeError(
            f"logits {tuple(logits.shape)}, targets {tuple(targets.shape)}: expected (..., V) and (...); "
            "give each target the logits that predict it"
        )
    if not temperature > 0:
        raise ConfigError(
            f"temperature {temperature}: expected more than 0; greedy decoding has no logprobs to learn from"
        )
    logits = at_least_float32(logits)
    if temperature != 1:
        logits = logits / temperature
    log_distribution = logits.log_softmax(-1)
    # Not `gather`, whose gradient a compiler writes one number at a time into zeros.
    width = logits.shape[-1]
    logprobs = -nll_loss(log_distribution.view(-1, width), targets.reshape(-1), reduction="none").view(targets.shape)
    if not with_entropy:
        return logprobs, None
    # a forbidden token has logit -inf, and 0 * -inf would be NaN
    finite = log_distribution.clamp(min=torch.finfo(log_distribution.dtype).min)
    return logprobs, -(log_distribution.exp() * finite).sum(-1)
