"""The next token: drawn from a distribution, of which a tail may be cut off, and its logprob."""

import torch
from torch import Tensor, nn

from rlhfkit.config.ppo import RolloutConfig

__all__ = ["draw", "next_token", "nucleus", "truncated"]

# Tokens in a block of the vocabulary, see `draw`.
BLOCK_TOKENS = 256
# Of a probability, see `nucleus`.
DIGIT_BITS = 10
NUM_DIGITS = 2**DIGIT_BITS
ONE = 2**40


def next_token(logits: Tensor, config: RolloutConfig, uniform: Tensor | None) -> tuple[Tensor, Tensor]:
    """(token, its logprob at the sampling temperature), each (B,); the likeliest token where `uniform` is None."""
    log_distribution = (logits.float() / config.temperature).log_softmax(-1)
    token = logits.argmax(-1) if uniform is None else draw(truncated(log_distribution, config), uniform)
    return token, log_distribution.gather(-1, token[:, None]).squeeze(-1)


def draw(log_distribution: Tensor, uniforms: Tensor) -> Tensor:
    """(B,) tokens by inversion: the first whose cumulative probability exceeds the row's uniform number.

    In two steps, the block of tokens and then the token in it: a running sum over the whole vocabulary is one long
    chain of additions, a sum by blocks is not.
    """
    rows, width = log_distribution.shape
    num_blocks = -(-width // BLOCK_TOKENS)
    padded = nn.functional.pad(log_distribution.exp(), (0, num_blocks * BLOCK_TOKENS - width))
    blocks = padded.view(rows, num_blocks, BLOCK_TOKENS)
    block, wanted = _first_above(blocks.sum(-1), uniforms)
    chosen = blocks[torch.arange(rows, device=blocks.device), block]
    token = block * BLOCK_TOKENS + _first_above(chosen, wanted)[0]
    return token.clamp(max=width - 1)


def _first_above(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """(index (B,) drawn in proportion to `weights` (B, N), how far into it the number fell, from 0 to 1)."""
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    wanted = uniforms.double()[:, None] * cumulative[:, -1:]
    # The last number below the whole: rounding may otherwise lead to an index without weight, or beyond the end.
    wanted = torch.minimum(wanted, cumulative[:, -1:] * (1 - 2**-50))
    # It leads beyond the end where the weights are NaN, and that is reported where the logprob is looked at.
    index = torch.searchsorted(cumulative, wanted, right=True).clamp(max=weights.shape[-1] - 1)
    weight = weights.gather(-1, index).double()
    inside = (wanted - (cumulative.gather(-1, index) - weight)) / weight
    return index.squeeze(-1), inside.squeeze(-1).clamp(0, 1)


def truncated(log_distribution: Tensor, config: RolloutConfig) -> Tensor:
    """The distribution without the tail that top-k, and of the rest top-p, cuts off; not renormalised."""
    if config.top_k:
        threshold = log_distribution.topk(min(config.top_k, log_distribution.shape[-1])).values[:, -1:]
        log_distribution = log_distribution.masked_fill(log_distribution < threshold, -torch.inf)
    if config.top_p < 1:
        log_distribution = log_distribution.masked_fill(~nucleus(log_distribution, config.top_p), -torch.inf)
    return log_distribution


def nucleus(log_distribution: Tensor, top_p: float) -> Tensor:
    """(B, V) whether a token is among the likeliest that have `top_p` of the probability together.

    A token is if all that are likelier have less than `top_p`; Holtzman et al. 2020, arXiv 1904.09751. The probability
    of the last one is found digit by digit: the bits of positive float32 are in the order of the numbers. That takes
    three sums by digit in place of a sort of the vocabulary. The sums are integers, so that their order is no matter.
    """
    probability = log_distribution.softmax(-1)
    bits, weight = probability.view(torch.int32), (probability * ONE).long()
    last = above = torch.zeros(len(bits), 1, dtype=torch.long, device=bits.device)
    for shift in (2 * DIGIT_BITS, DIGIT_BITS, 0):  # 30 bits: no probability is above 1, and that has no more
        digit = ((bits >> shift) % NUM_DIGITS).long()
        found = bits >> (shift + DIGIT_BITS) == last  # up to here
        sums = torch.zeros(len(bits), NUM_DIGITS, dtype=torch.long, device=bits.device)
        sums.scatter_add_(1, digit, weight * found)
        likelier = above + sums.flip(-1).cumsum(-1).flip(-1) - sums
        lowest = (likelier < max(1, int(top_p * ONE))).int().argmax(-1, keepdim=True)
        last, above = last * NUM_DIGITS + lowest, likelier.gather(-1, lowest)
    # The likeliest is there in any case: a compiler may compute the probabilities anew, a last bit otherwise.
    return (bits >= last) | (bits == bits.amax(-1, keepdim=True))
