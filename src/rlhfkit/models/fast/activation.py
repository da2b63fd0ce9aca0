"""The activation of GPT-2 and Gemma, written so that a CPU is quick at it."""

import math

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import GELUTanh, NewGELUActivation

__all__ = ["TanhGELU", "use_fast_activations"]


class TanhGELU(nn.Module):
    """x σ(2u), with u = √(2/π) (x + 0.044715 x³): Hendrycks & Gimpel 2016, arXiv 1606.08415.

    Often written as x (1 + tanh u) / 2, which is the same number. A compiler's σ takes half the time of its tanh; not
    compiled, torch's own kernel is quickest, and keeps nothing but x for the backward pass.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The activation of each number, in the type of x."""
        if not torch.compiler.is_compiling():
            return nn.functional.gelu(x, approximate="tanh")
        wide = x.float()
        twice_u = 2 * math.sqrt(2 / math.pi) * (wide + 0.044715 * wide * wide * wide)
        return (wide * torch.sigmoid(twice_u)).to(x.dtype)


def use_fast_activations(model: PreTrainedModel, device: torch.device) -> None:
    """Put `TanhGELU` in place of transformers' modules for the same function, where `device` is a CPU."""
    if device.type != "cpu":
        return
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) in (NewGELUActivation, GELUTanh):
                setattr(module, name, TanhGELU())
