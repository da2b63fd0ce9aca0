"""Compilation of the parts in which the time goes: the trunk, the head with its logprobs, and a step of decoding.

One program serves all numbers of rows and all lengths, so nothing is padded for its sake, and the same shapes give the
same bits in a run that was continued. It takes about a minute to make, once; torch keeps it on disk for the next run.

Compiled code is a fast path: its first call, without and with gradient, is compared with the plain code. Where the
machine cannot compile, or what comes out is wrong, the plain code runs.
"""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from transformers import PreTrainedModel

from rlhfkit.machine.fast_paths import FastPaths, agree, is_about_memory, reason
from rlhfkit.models.layers import layers_of

__all__ = ["COMPILED", "compile_layers", "compiled", "uncompiled", "why_no_compiler"]

P = ParamSpec("P")
T = TypeVar("T")

COMPILED = "compiled code"

# Policy, reference, reward model and critic, with and without gradient, are programs of the same code; torch's own
# limit of 8 would leave the last of them uncompiled, without a word.
MOST_PROGRAMS = 64

_plain_only: ContextVar[bool] = ContextVar("plain_only", default=False)


class _Eager:
    """torch's stance "force_eager", which is one for all threads of a process.

    The first thread that asks for it sets it, and the last that needs it no more puts it back. If each put back what it
    had found, two threads that overlap would leave it set for ever, and nothing would be compiled any more.
    """

    def __init__(self) -> None:
        self._lock, self._num_inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if self._num_inside == 0:
                self._stance = torch.compiler.set_stance("force_eager")
            self._num_inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                self._stance.__exit__(None, None, None)


_eager = _Eager()


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, what was compiled runs as plain code."""
    token = _plain_only.set(True)
    try:
        with _eager:
            yield
    finally:
        _plain_only.reset(token)


def compiled(
    function: Callable[P, T], *, paths: FastPaths | None = None, same: Callable[[T, T], bool] = agree
) -> Callable[P, T]:
    """`function`, compiled at its first call; asking twice compiles once. `same` compares what the first calls give."""
    torch._dynamo.config.recompile_limit = MOST_PROGRAMS
    return _tried(
        torch.compile(function, dynamic=True), function, paths or FastPaths(), case=function, same=same, weights=()
    )


def compile_layers(model: PreTrainedModel | PeftModel, *, paths: FastPaths | None = None) -> None:
    """From now on the layers of `model` run compiled code; its weights and names stay as they are.

    All layers share one program, which takes a fraction of the time that one for the whole trunk would.
    """
    torch._dynamo.config.recompile_limit = MOST_PROGRAMS
    paths, case = paths or FastPaths(), object()
    for layer in layers_of(model):
        plain: Callable[..., Any] = layer._call_impl
        fast = torch.compile(plain, dynamic=True)
        # What torch's own nn.Module.compile sets.
        layer._compiled_call_impl = _tried(fast, plain, paths, case=case, same=agree, weights=tuple(layer.parameters()))


def _tried(
    fast: Callable[P, T],
    plain: Callable[P, T],
    paths: FastPaths,
    *,
    case: object,
    same: Callable[[T, T], bool],
    weights: tuple[nn.Parameter, ...],
) -> Callable[P, T]:
    """`fast`, or `plain` where that fails or differs at its first call without, or its first call with gradient."""

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling() or _plain_only.get():
            return plain(*args, **kwargs)
        with_gradient = torch.is_grad_enabled()
        if not paths.is_tried(COMPILED, (case, with_gradient)):
            try_it = _with_gradients if with_gradient else _without_gradients
            paths.attempt(
                COMPILED,
                lambda: try_it(fast, args, kwargs, weights),
                lambda: _in_plain(lambda: try_it(plain, args, kwargs, weights)),
                case=(case, with_gradient),
                same=lambda a, b: same(a[0], b[0]) and agree(a[1], b[1]),
            )
        if paths.is_off(COMPILED):
            return plain(*args, **kwargs)
        try:
            return fast(*args, **kwargs)
        except (torch._dynamo.exc.TorchDynamoException, OSError) as error:  # of a shape that needs another program
            if is_about_memory(error):
                raise
            paths.switch_off(COMPILED, reason(error))
            return plain(*args, **kwargs)

    return call


def _in_plain(function: Callable[[], T]) -> T:
    with uncompiled():
        return function()


def _without_gradients(
    function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any], weights: tuple[nn.Parameter, ...]
) -> tuple[T, list[Tensor]]:
    return function(*args, **kwargs), []


def _with_gradients(
    function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any], weights: tuple[nn.Parameter, ...]
) -> tuple[T, list[Tensor]]:
    """(what comes back, gradients of its sum): backward code is compiled too, and not before it is asked for."""
    flat, tree = tree_flatten((args, kwargs))
    leaves = [
        each.detach().requires_grad_(each.requires_grad)
        if isinstance(each, Tensor) and each.is_floating_point()
        else each
        for each in flat
    ]
    args, kwargs = tree_unflatten(leaves, tree)
    inputs = [each for each in leaves if isinstance(each, Tensor) and each.requires_grad]
    wanted = inputs or [weight for weight in weights if weight.requires_grad][:1]
    # Where layers are computed a second time, what is kept here must not count as theirs.
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        result = function(*args, **kwargs)
    outputs = [each for each in tree_flatten(result)[0] if isinstance(each, Tensor) and each.requires_grad]
    if not outputs or not wanted:
        return result, []
    total = torch.stack([each.float().sum() for each in outputs]).sum()
    gradients = torch.autograd.grad(total, wanted, allow_unused=True)
    return _detached(result), [torch.zeros(()) if each is None else each for each in gradients]


def _detached(result: T) -> T:
    """The numbers alone, so that what they were made from can go."""
    flat, tree = tree_flatten(result)
    return tree_unflatten([each.detach() if isinstance(each, Tensor) else each for each in flat], tree)  # type: ignore[no-any-return]


def why_no_compiler(device: torch.device) -> str:
    """What to say where a CPU's code would need a C++ compiler and there is none; empty where one is found."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    if device.type != "cpu" or any(shutil.which(name) for name in names):
        return ""
    return (
        f"model.compile = true needs a C++ compiler on a CPU, and there is no {' or '.join(names)} here; install one "
        "(on Debian: apt-get install g++)"
    )
