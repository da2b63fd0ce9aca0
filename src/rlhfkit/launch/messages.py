"""What trainers and samplers send each other: a model to build, weights to pull, a chunk to sample, what came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlhfkit.config.model import PretrainedModelConfig
from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.config.recipe import Recipe
from rlhfkit.machine.dtype import DtypeChoice
from rlhfkit.rollout.generation import Response

__all__ = ["Blueprint", "Chunk", "Packed", "Probe", "Sampled", "Weights", "checksum", "packed", "put_into", "wrong"]


@dataclass(frozen=True)
class Blueprint:
    """The model that a sampler builds, before it gets weights."""

    recipe: Recipe
    run: str
    """The run's directory."""
    start: PretrainedModelConfig
    """What the policy starts from: its frozen weights are read there."""
    dtype: DtypeChoice
    directory: str
    """Where relative paths of the recipe begin."""


@dataclass(frozen=True)
class Probe:
    """A text, and its logprobs by the trainer's weights, for samplers to compute too."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Packed:
    """A tensor as bytes, which a store in shared memory holds without a copy for every reader."""

    bytes: NDArray[np.uint8]
    dtype: torch.dtype
    shape: tuple[int, ...]

    def tensor(self) -> Tensor:
        """It, in the memory where it lies; not to be written to."""
        return torch.from_numpy(self.bytes).view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class Weights:
    """A version of what is trained, and the place to pull it from."""

    id: str
    iteration: int | None
    """The iteration that learns from what they sample, where it is known."""
    blueprint: Sequence[Any]
    """Reference to a `Blueprint`; in a sequence, so that nobody pulls it who has it."""
    tensors: Sequence[Any]
    """Reference to `Packed` tensors by name."""
    checksum: int
    probe: Probe
    num_bytes: int


@dataclass(frozen=True)
class Chunk:
    """Prompts that are sampled together, whoever does it."""

    weights: Weights
    prompts: Sequence[Sequence[int]]
    seeds: Sequence[int]
    config: RolloutConfig
    offsets: Sequence[int] | None = None
    """Where responses go on: how many tokens at the end of each prompt are theirs already."""


@dataclass(frozen=True)
class Sampled:
    """What came of a chunk."""

    responses: list[Response]
    weights: str
    """The id of the weights that sampled."""
    checksum: int
    """That of the weights in the sampler's memory, after it had sampled."""
    probe: tuple[float, ...]
    seconds: float
    pulled_seconds: float
    """What it took to get new weights; 0 where it had them."""
    host: str = ""
    pid: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_units(self) -> int:
        """How many were sampled."""
        return sum(len(response.ids) for response in self.responses)


PROBE_TOLERANCE = {2: 0.1, 4: 0.01, 8: 0.01}
"""Bytes of a weight → nats a token by which logprobs may be off: what other hardware rounds otherwise."""


def wrong(sampled: Sampled, weights: Weights, *, itemsize: int) -> str | None:
    """Why what a sampler gave cannot be used; None where it can. `itemsize` is that of a weight."""
    if sampled.weights != weights.id or sampled.checksum != weights.checksum:
        return f"sampled with other weights than those for iteration {weights.iteration}"
    if len(sampled.probe) != len(weights.probe.logprobs):
        return f"computes {len(sampled.probe)} logprobs of a probe that has {len(weights.probe.logprobs)}"
    pairs = list(zip(weights.probe.logprobs, sampled.probe, strict=True))
    apart = sum(abs(own - other) for own, other in pairs) / max(len(pairs), 1)
    if not apart <= PROBE_TOLERANCE[itemsize]:  # NaN is apart too
        return f"computes other logprobs from the same weights, {apart:.3g} nats a token apart: a broken device?"
    return None


def packed(tensors: Mapping[str, Tensor]) -> dict[str, Packed]:
    """Tensors as bytes, on the CPU."""
    return {
        name: Packed(
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy(), tensor.dtype, tuple(tensor.shape)
        )
        for name, tensor in tensors.items()
    }


@torch.no_grad()
def put_into(module: nn.Module, tensors: Mapping[str, Packed]) -> None:
    """Put tensors in the place of the parameters that have their names."""
    places = dict(module.named_parameters())
    for name, tensor in tensors.items():
        places[name].copy_(tensor.tensor())


@torch.no_grad()
def checksum(tensors: Mapping[str, Tensor]) -> int:
    """A number that tells weights from those of another version, exact on every device."""
    total = 0
    for place, tensor in enumerate(tensors.values(), 1):
        bits = tensor.detach().contiguous().reshape(-1)
        whole = bits.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[bits.element_size()])
        total += place * int(whole.sum(dtype=torch.int64))
    return total % 2**63
