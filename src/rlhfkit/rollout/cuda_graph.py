"""A step of decoding as one CUDA graph: hundreds of kernels that a GPU is given once, and then launches together.

A step multiplies every weight by a few rows, which takes a GPU less time than a CPU needs to launch its kernels one by
one. A captured step is launched as a whole.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlhfkit.machine.fast_paths import FastPaths, agree

__all__ = ["CAPTURED", "CapturedSteps"]

CAPTURED = "captured steps"

Step = Callable[[Tensor, Tensor, int, Tensor | None], tuple[Tensor, Tensor]]
"""(token (B,), position (B,), places to look at, random number (B,) or None) -> (next token (B,), logprob (B,))."""

# A graph has fixed shapes. Looking at up to this many places more, which the mask covers, makes one do for as many
# steps.
WIDTH_STEP = 64


class CapturedSteps:
    """`step`, captured for each number of rows and places that comes again.

    The first step of a shape runs as it is, which also makes all that must be there before a capture. Nothing is
    captured of a model whose step waits for the CPU: some mixtures of experts count tokens there, some rotary positions
    grow with the text. A step may run a second time with the same numbers, since it writes the same keys and values to
    the same places. A graph that cannot be made, or gives other numbers, is not taken.
    """

    def __init__(
        self, step: Step, *, max_tokens: int, paths: FastPaths | None = None, same: Callable[[Any, Any], bool] = agree
    ) -> None:
        """Capture `step`; no row has more than `max_tokens` places. `same` compares a first replay with the step."""
        self.paths = paths or FastPaths()
        self.paths.forget(CAPTURED)  # the graphs of an earlier call are gone, and these are made anew
        self.step, self.max_tokens, self.same = step, max_tokens, same
        self.pool = torch.cuda.graph_pool_handle()
        self.graphs: dict[tuple[int, int], _Graph | None] = {}
        self.waits: bool | None = None
        """Whether a step waits for the CPU; None until one was watched."""

    def __call__(self, token: Tensor, position: Tensor, width: int, uniform: Tensor | None) -> tuple[Tensor, Tensor]:
        """What `step` returns."""
        width = min(-(-width // WIDTH_STEP) * WIDTH_STEP, self.max_tokens)
        inputs = [token, position] if uniform is None else [token, position, uniform]
        shape = len(token), width
        if shape not in self.graphs:
            self.graphs[shape] = None
            return self._run(width, *inputs)
        if self.waits is None:
            self.waits = _waits_for_the_cpu(lambda: self._run(width, *inputs))
        if self.waits or self.paths.is_off(CAPTURED):
            return self._run(width, *inputs)
        graph = self.graphs[shape]
        if graph is None:
            return self._first_replay(shape, inputs)
        return graph(inputs)

    def _first_replay(self, shape: tuple[int, int], inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Capture the step for `shape`; what its first replay gives, or the plain step where that will not do."""
        results: list[tuple[Tensor, Tensor]] = []

        def plain() -> tuple[Tensor, Tensor]:
            return self._run(shape[1], *inputs)

        def replayed() -> tuple[Tensor, Tensor]:
            graph = self.graphs[shape] = _Graph(partial(self._run, shape[1]), inputs, self.pool)
            results.append(graph(inputs))
            return results[0]

        is_taken = self.paths.attempt(CAPTURED, replayed, plain, case=shape, same=self.same)
        return results[0] if is_taken and results else plain()

    def _run(self, width: int, token: Tensor, position: Tensor, uniform: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.step(token, position, width, uniform)


def _waits_for_the_cpu(run: Callable[[], object]) -> bool:
    """Whether the CPU has to know a number of the GPU's while `run` launches its kernels."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():  # torch says once that the mode does not see everything; a capture does
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    except RuntimeError as error:
        if "synchronizing CUDA operation" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return False


class _Graph:
    """What `function` launches for tensors of the shapes of `inputs`."""

    def __init__(self, function: Callable[..., tuple[Tensor, Tensor]], inputs: list[Tensor], pool: Any) -> None:
        self.inputs, self.graph = [tensor.clone() for tensor in inputs], torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            self.outputs = function(*self.inputs)

    def __call__(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """`function(*inputs)`."""
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.graph.replay()
        # The graphs share their memory, and the next one to run writes over it.
        token, logprob = self.outputs
        return token.clone(), logprob.clone()
