"""Compilation of the parts in which the time goes: the trunk, the head with its logprobs, and a step of decoding.

One program serves all numbers of rows and all lengths, so nothing is padded for its sake, and the same shapes give the
same bits in a run that was continued. It takes about a minute to make, once; torch keeps it on disk for the next run.
"""

import os
import shutil
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from rlhfkit.errors import MissingDependencyError
from rlhfkit.models.layers import layers_of

__all__ = ["compile_layers", "compiled", "refuse_without_compiler"]

P = ParamSpec("P")
T = TypeVar("T")

# Policy, reference, reward model and critic, with and without gradient, are programs of the same code; torch's own
# limit of 8 would leave the last of them uncompiled, without a word.
MOST_PROGRAMS = 64


def compiled(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, compiled at its first call; asking twice compiles once."""
    torch._dynamo.config.recompile_limit = MOST_PROGRAMS
    result: Callable[P, T] = torch.compile(function, dynamic=True)
    return result


def compile_layers(model: PreTrainedModel | PeftModel) -> None:
    """From now on the layers of `model` run compiled code; its weights and names stay as they are.

    All layers share one program, which takes a fraction of the time that one for the whole trunk would.
    """
    torch._dynamo.config.recompile_limit = MOST_PROGRAMS
    for layer in layers_of(model):
        layer.compile(dynamic=True)


def refuse_without_compiler(device: torch.device) -> None:
    """Nothing where the machine can compile for `device`.

    Raises: MissingDependencyError where a CPU's code would need a C++ compiler and there is none.
    """
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    if device.type == "cpu" and not any(shutil.which(name) for name in names):
        raise MissingDependencyError(
            "model.compile = true needs a C++ compiler on a CPU, and there is no g++ or clang++ here; install one "
            "(on Debian: apt-get install g++), or set model.compile = false"
        )
