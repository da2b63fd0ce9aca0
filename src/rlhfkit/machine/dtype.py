"""The type that a run computes in: "auto" takes bfloat16 where its matrix products are faster than float32's.

Many CPUs have no instructions for bfloat16. Torch then computes its products number by number, 10 to 500 times slower
than in float32. Flags of the CPU say little about this, so a product is measured.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch

from rlhfkit.machine.device import wait_for

__all__ = [
    "NO_BFLOAT16",
    "DtypeChoice",
    "DtypeName",
    "ProductTimes",
    "bfloat16_saves",
    "choose_dtype",
    "measured_products",
    "product_seconds",
]

DtypeName = Literal["float32", "bfloat16"]

NO_BFLOAT16 = "RLHFKIT_NO_BFLOAT16"
"""Environment variable; set to 1, this machine counts as one without bfloat16, whatever was measured."""

# bfloat16 has to be clearly faster, so that noise does not decide, and a tie goes to the more exact type.
LEAST_GAIN = 1.25
# A type that is this much slower at its first product is not measured again.
CLEARLY_SLOWER = 3.0
REPEATS = 5
SHAPE = (256, 256, 256)
"""Tokens, inputs and outputs of a linear layer."""


@dataclass(frozen=True)
class ProductTimes:
    """Seconds of the same matrix products in both types."""

    float32: float
    bfloat16: float

    @property
    def factor(self) -> float:
        """How many times as long bfloat16 takes; below 1 it is the faster one."""
        return self.bfloat16 / self.float32


@dataclass(frozen=True)
class DtypeChoice:
    """The type that a run computes in, and why."""

    asked: str
    """What the recipe says: "auto", "float32" or "bfloat16"."""
    taken: DtypeName
    why: str
    is_slow: bool = False
    """Whether the other type would be clearly faster on this machine."""
    factor: float | None = None
    """Time of a product in bfloat16, in that of one in float32; None where nothing was measured."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of torch."""
        return getattr(torch, self.taken)  # type: ignore[no-any-return]

    @property
    def seen(self) -> str:
        """The type, and why."""
        return f"computing in {self.taken}{', which is slow here' if self.is_slow else ''}: {self.why}"

    @property
    def advice(self) -> str:
        """What to do where the type is slow here; empty where it is not."""
        if not self.is_slow:
            return ""
        if self.asked == "auto":
            return "the run began with it: continue it where it began, or start over with --fresh"
        return 'set model.dtype = "auto" in a new run directory'

    def words(self) -> str:
        """One line for the user."""
        return "; ".join(part for part in (self.seen, self.advice) if part)

    def as_facts(self) -> dict[str, Any]:
        """For the manifest."""
        factor = None if self.factor is None else float(f"{self.factor:.3g}")
        return {"asked": self.asked, "taken": self.taken, "bfloat16_per_float32": factor, "why": self.why}


def choose_dtype(
    asked: str,
    device: torch.device,
    *,
    recorded: DtypeName | None = None,
    measure: Callable[[torch.device], ProductTimes] | None = None,
) -> DtypeChoice:
    """The type that `asked` ("auto", "float32" or "bfloat16") means on `device`.

    A run that goes on keeps the `recorded` type that it began with, because another one would change its numbers.
    `measure` times the products, by default `measured_products`.
    """
    measure = measure or measured_products
    if asked == "float32" or (recorded == "float32" and asked == "auto"):
        return DtypeChoice(asked, "float32", "the recipe says so" if asked == "float32" else "the run began with it")
    quick, why, factor = _bfloat16_is_fast(device, measure)
    if asked == "bfloat16":
        return DtypeChoice(asked, "bfloat16", why, not quick, factor)
    if recorded is not None:
        return DtypeChoice(asked, recorded, why, not quick, factor)
    return DtypeChoice(asked, "bfloat16" if quick else "float32", why, False, factor)


def bfloat16_saves(device: torch.device) -> bool:
    """Whether bfloat16 is an advice for too little memory: on a device where it does not cost many times the time."""
    return _bfloat16_is_fast(device, measured_products)[0]


def _bfloat16_is_fast(
    device: torch.device, measure: Callable[[torch.device], ProductTimes]
) -> tuple[bool, str, float | None]:
    """(whether bfloat16 is the faster type, why in words, time of its product in that of float32's)."""
    if os.environ.get(NO_BFLOAT16, "0") not in ("", "0"):
        return False, f"{NO_BFLOAT16} is set", None
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return native, f"this GPU {'has' if native else 'has no'} bfloat16", None
    if device.type != "cpu":
        return False, f"bfloat16 on {device.type} was not tested", None
    times = measure(device)
    if times.factor > 1:
        words = f"products in bfloat16 take {times.factor:.3g} times as long as in float32 on this CPU"
    else:
        words = f"products in bfloat16 are {1 / times.factor:.2g} times as fast as in float32 on this CPU"
    return times.factor * LEAST_GAIN <= 1, words, times.factor


@cache
def measured_products(device: torch.device) -> ProductTimes:
    """Times of the products of a training step in both types, measured once in a process: a few milliseconds.

    With one thread, since a second one that has to wait for a busy core would measure the other programs.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        float32 = product_seconds(torch.float32, device, shape=SHAPE, repeats=REPEATS)
        first = product_seconds(torch.bfloat16, device, shape=SHAPE, repeats=1)
        if first > CLEARLY_SLOWER * float32:
            # Once more, in case another program had the core just then.
            return ProductTimes(float32, min(first, product_seconds(torch.bfloat16, device, shape=SHAPE, repeats=1)))
        return ProductTimes(float32, product_seconds(torch.bfloat16, device, shape=SHAPE, repeats=REPEATS))
    finally:
        torch.set_num_threads(threads)


def product_seconds(
    dtype: torch.dtype, device: torch.device, *, shape: tuple[int, int, int], repeats: int, backward: bool = True
) -> float:
    """Seconds of the products of a linear layer, `shape` = (tokens, inputs, outputs): forward, and `backward` as well.

    That is x Wᵀ, and for the gradients g W and gᵀ x; each the fastest of `repeats`, after one of few tokens that is not
    counted.
    """
    tokens, inputs, outputs = shape
    # The run's own random numbers stay where they are. Drawn on the device: a CPU would take minutes for a GPU's.
    generator = torch.Generator(device).manual_seed(0)

    def numbers(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, device=device, dtype=dtype)

    x, weight, gradient = numbers(tokens, inputs), numbers(outputs, inputs), numbers(tokens, outputs)
    few = slice(0, 8)
    products: list[tuple[Callable[[], Any], Callable[[], Any]]] = [
        (lambda: x @ weight.t(), lambda: x[few] @ weight.t()),
    ]
    if backward:
        products += [
            (lambda: gradient @ weight, lambda: gradient[few] @ weight),
            (lambda: gradient.t() @ x, lambda: gradient[few].t() @ x[few]),
        ]
    seconds = 0.0
    for product, warm_up in products:
        warm_up()
        seconds += min(_timed(product, device) for _ in range(repeats))
    return seconds


def _timed(product: Callable[[], Any], device: torch.device) -> float:
    wait_for(device)
    start = time.perf_counter()
    product()
    wait_for(device)
    return time.perf_counter() - start
