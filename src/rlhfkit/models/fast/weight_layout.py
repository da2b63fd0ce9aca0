"""Weights laid out for the matrix products of a CPU, while a model samples.

A step of decoding multiplies every weight by a few rows. From the layout that transformers keeps, each product first
moves the weights into the layout that oneDNN computes with, every time anew. Moved once for all the steps, products of
64 rows take four fifths of the time, and those of one row half of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rlhfkit.machine.fast_paths import FastPaths

__all__ = ["REORDERED", "ReorderedWeights"]

REORDERED = "reordered weights"

# Below this a product is so short that its call is what it costs.
FEWEST_WEIGHTS = 2**14

# A graph cannot be handed tensors in oneDNN's own layouts, so the operator below finds them by a number.
_REORDERED: dict[int, Tensor] = {}
_NUMBERS = count()


# Declared by its schema: torch's decorator for operators would add 15 microseconds to each call.
_LIBRARY = torch.library.Library("rlhfkit", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "reordered_linear(Tensor x, Tensor? bias, int number, int width) -> Tensor"
)


@torch.library.impl(_LIBRARY, "reordered_linear", "CPU")
def _reordered_linear(x: Tensor, bias: Tensor | None, number: int, width: int) -> Tensor:
    """Product x Wᵀ + bias, (…, width), where W (width, x's last size) is what was reordered under `number`."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, _REORDERED[number], bias, "none", [], "")
    return product


@torch.library.impl(_LIBRARY, "reordered_linear", "Meta")
def _shape_of_product(x: Tensor, bias: Tensor | None, number: int, width: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], width))


@dataclass(frozen=True)
class _ReorderedLayer:
    """A linear layer, and the number of its reordered weights."""

    module: nn.Module
    number: int
    width: int

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.rlhfkit.reordered_linear(x, self.module.bias, self.number, self.width)
        return product


class ReorderedWeights:
    """A model's linear layers that can read their weights from a reordered copy."""

    def __init__(self, model: nn.Module, *, paths: FastPaths | None = None) -> None:
        """Find them: those of a size worth it, on a CPU with oneDNN."""
        self.paths = paths or FastPaths()
        self.layers = [
            _ReorderedLayer(module, next(_NUMBERS), _of_linear(module).shape[0])
            for module in model.modules()
            if type(module) in (nn.Linear, Conv1D) and _can_be_reordered(module.get_parameter("weight"))
        ]

    @property
    def nbytes(self) -> int:
        """What the copy takes."""
        if self.paths.is_off(REORDERED):
            return 0
        return sum(layer.module.get_parameter("weight").nbytes for layer in self.layers)

    @contextmanager
    def in_use(self, rows: int) -> Iterator[None]:
        """The layers compute from a copy of their weights as they are now, laid out for about `rows` rows."""
        try:
            for layer in self.layers if self._work(rows) else ():
                _REORDERED[layer.number] = mkldnn()._reorder_linear_weight(_of_linear(layer.module), rows)
                layer.module.forward = layer.forward
            yield
        finally:
            for layer in self.layers:
                layer.module.__dict__.pop("forward", None)
                _REORDERED.pop(layer.number, None)

    def _work(self, rows: int) -> bool:
        """Whether oneDNN gives the products of the plain weights, tried with the first layer of each type.

        Of bfloat16 it does not reorder anything on a CPU that has no instructions for it.
        """
        first = {layer.module.get_parameter("weight").dtype: layer for layer in reversed(self.layers)}
        return bool(first) and all(self._works(layer, dtype, rows) for dtype, layer in first.items())

    def _works(self, layer: _ReorderedLayer, dtype: torch.dtype, rows: int) -> bool:
        weight = _of_linear(layer.module)
        x = torch.linspace(-1, 1, 2 * weight.shape[1]).view(2, -1).to(dtype)

        def fast() -> Tensor:
            try:
                _REORDERED[layer.number] = mkldnn()._reorder_linear_weight(weight, rows)
                return layer.forward(x)
            finally:
                _REORDERED.pop(layer.number, None)

        with torch.no_grad():
            return self.paths.attempt(REORDERED, fast, lambda: layer.module(x), case=dtype)


def mkldnn() -> Any:
    """Torch's operators of oneDNN, which not every build has."""
    return torch.ops.mkldnn


def _can_be_reordered(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.bfloat16, torch.float32)
        and weight.numel() >= FEWEST_WEIGHTS
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )


def _of_linear(module: nn.Module) -> Tensor:
    """(out, in) weights; GPT-2 keeps them the other way round."""
    weight = module.get_parameter("weight").detach()
    return weight.t() if type(module) is Conv1D else weight
