"""What the machine could do at best: the matrix products of a workload, and the rate it reaches on such products.

limit_share = (operations of the work's matrix products / rate on such products, measured in the same run) / seconds
that the work took. 1 would be nothing but products, without attention, sampling, optimizer and everything between.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from rlhfkit.machine.dtype import product_seconds

__all__ = ["ModelShape", "Work", "decode_bytes", "generate_work", "limit_seconds", "ppo_work", "product_rate"]

REPEATS = 3


class ModelShape(Protocol):
    """A decoder of equal layers."""

    @property
    def layers(self) -> int:
        """Number of layers."""

    @property
    def width(self) -> int:
        """Size of a hidden state."""

    @property
    def vocabulary(self) -> int:
        """Number of logits."""

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of a layer's matrices."""

    @property
    def cache_numbers(self) -> int:
        """Numbers that the KV cache keeps of a token."""


@dataclass(frozen=True)
class Work:
    """Matrix products that are made together."""

    operations: float
    """Floating-point operations; a product of (m, k) and (k, n) has 2 m k n."""
    tokens: int
    """Rows of the activations in one product."""
    backward: bool
    """Whether gradients are computed too, which have two products for each one forward."""


def ppo_work(
    shape: ModelShape,
    *,
    episodes: int,
    prompt: int,
    response: int,
    epochs: int,
    num_minibatches: int,
    like_for_like: bool,
    most_tokens: int = sys.maxsize,
) -> list[Work]:
    """The matrix products of a PPO iteration on a decoder: sampling, and everything else.

    A pass has 2 operations per weight and token, a backward pass 4 more. All `prompt + response` tokens of an episode
    go through the trunk, response tokens alone through the head. Once each: sampling, reference, reward model, old
    logprobs; `epochs` times: update with its backward pass. `like_for_like` the critic is a second network, with old
    values and updates of its own and no head to speak of. Attention is left out. A pass has at most `most_tokens`.
    """
    networks = 2 if like_for_like else 1
    trunk, head = _weights(shape)
    through_trunk, through_head = episodes * (prompt + response), episodes * response
    once = 2.0 * (trunk * through_trunk + head * through_head)
    passes = {"trunk": 2 + networks + 3 * epochs * networks, "head": 2 + 3 * epochs}
    rest = 2.0 * (trunk * through_trunk * passes["trunk"] + head * through_head * passes["head"])
    return [
        Work(once, tokens=episodes, backward=False),
        Work(rest, tokens=min(most_tokens, episodes // num_minibatches * (prompt + response)), backward=True),
    ]


def generate_work(shape: ModelShape, *, rows: int, prompts: int, prompt: int, sampled_tokens: int) -> list[Work]:
    """The matrix products of sampling: prompts are read at once, then a token for each of `rows` at a time."""
    trunk, head = _weights(shape)
    return [
        Work(2.0 * trunk * prompts * prompt, tokens=max(1, rows) * prompt, backward=False),
        Work(2.0 * (trunk + head) * sampled_tokens, tokens=rows, backward=False),
    ]


def decode_bytes(shape: ModelShape, itemsize: int, *, rows: int, prompt: int, response: int) -> int:
    """Bytes that sampling has to read, prompts left out: each step all weights, and the cache of each row so far.

    The first of the `response` tokens follows from the prompt's pass; step t of the rest reads `prompt` + t places.
    """
    steps = range(1, response)
    weights = sum(_weights(shape)) * len(steps)
    cache = shape.cache_numbers * rows * sum(prompt + step for step in steps)
    return itemsize * (weights + cache)


def _weights(shape: ModelShape) -> tuple[int, int]:
    """Weights in the matrices of (all layers, the head)."""
    layer = sum(inputs * outputs for inputs, outputs in shape.matrices)
    return shape.layers * layer, shape.width * shape.vocabulary


def product_rate(
    shape: ModelShape, dtype: torch.dtype, device: torch.device, *, tokens: int, backward: bool, repeats: int = REPEATS
) -> float:
    """Operations per second of the products of one pass over `tokens` tokens, the fastest of `repeats` each."""
    seconds, operations = 0.0, 0.0
    head = (shape.width, shape.vocabulary)
    for times, matrices in ((shape.layers, shape.matrices), (1, [head])):
        for inputs, outputs in matrices:
            took = product_seconds(dtype, device, shape=(tokens, inputs, outputs), repeats=repeats, backward=backward)
            seconds += times * took
            operations += times * 2.0 * tokens * inputs * outputs * (3 if backward else 1)
    return operations / seconds


def limit_seconds(work: Sequence[Work], shape: ModelShape, dtype: torch.dtype, device: torch.device) -> float:
    """Seconds that nothing but the work's matrix products would take on this machine, as it is now."""
    return sum(
        part.operations / product_rate(shape, dtype, device, tokens=part.tokens, backward=part.backward)
        for part in work
    )
