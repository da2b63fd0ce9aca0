"""Every number of a plan that is neither counted from the recipe nor taken from a data sheet, with its reason.

A plan prints those that it used. A trial (`--measure`) replaces those of time.
"""

from dataclasses import dataclass, fields
from typing import Any

__all__ = ["CPU_ASSUMPTIONS", "GPU_ASSUMPTIONS", "Assumption", "Assumptions", "reasons_of"]

MIB = 2**20


@dataclass(frozen=True)
class Assumption:
    """A number, and why it is this one."""

    value: float
    why: str


@dataclass(frozen=True)
class Assumptions:
    """What holds for a kind of device."""

    program_bytes: Assumption
    """Held before any model is there."""
    earlier_bytes: Assumption
    """What earlier stages of a run leave behind in its process, where there are any."""
    library_bytes: Assumption
    """What libraries take while a stage runs."""
    backward_factor: Assumption
    """Memory of a backward pass, in what the forward pass keeps for it."""
    usable_share: Assumption
    """Of the memory that is free once models are loaded; the rest is the allocator's slack."""
    training_share: Assumption
    """Of the rate of matrix products that an update reaches."""
    forward_share: Assumption
    """The same of a pass without gradients."""
    reading_share: Assumption
    """Of the memory's rate that a step of sampling reaches."""
    layer_seconds: Assumption
    """What a layer costs beside that in each step of sampling: launching, small operations."""
    link_share: Assumption
    """Of the link's rate that an exchange reaches; nothing is taken to run beside it."""


MEMORY_SHARE = Assumption(0.8, 'what ppo.microbatch_tokens = "auto" allows itself; the rest is the allocator\'s slack')
BACKWARD = Assumption(1.5, "1.4 to 1.5 times were measured: gradients of what was kept, and holes")

GPU_ASSUMPTIONS = Assumptions(
    program_bytes=Assumption(600 * MIB, "CUDA context and the libraries' work space; not measured by us"),
    earlier_bytes=Assumption(0, "torch gives a GPU's memory back between stages"),
    library_bytes=Assumption(0, "part of program_bytes"),
    backward_factor=BACKWARD,
    usable_share=MEMORY_SHARE,
    training_share=Assumption(0.35, "dense training with eager layers is reported at 0.3 to 0.45; not measured by us"),
    forward_share=Assumption(0.45, "as above, without the backward pass; not measured by us"),
    reading_share=Assumption(0.5, "0.49 of the rate of reading was measured on a CPU; not measured by us on a GPU"),
    layer_seconds=Assumption(250e-6, "some 20 launches of 10 µs each, eager; captured steps have less"),
    link_share=Assumption(0.7, "collectives of large buffers are reported at 0.6 to 0.8; not measured by us"),
)
CPU_ASSUMPTIONS = Assumptions(
    program_bytes=Assumption(430 * MIB, "Python with torch and transformers, measured: 422 MiB"),
    earlier_bytes=Assumption(400 * MIB, "measured after SFT and a reward model of 17 million weights"),
    library_bytes=Assumption(100 * MIB, "programs and buffers for each shape of a product, measured"),
    backward_factor=BACKWARD,
    usable_share=MEMORY_SHARE,
    training_share=Assumption(0.6, "58 to 62 % of the products' rate was measured for whole iterations"),
    forward_share=Assumption(0.6, "as in training"),
    reading_share=Assumption(0.49, "of the machine's rate of reading, measured for one row of 124 million weights"),
    layer_seconds=Assumption(0.7e-3, "64 × 48 tokens of 6 layers took 0.44 s of sampling, nearly all beside products"),
    link_share=Assumption(0.1, "gloo summed at 1.7 GB/s beside a copy at 11, and buckets are copied twice; measured"),
)


def reasons_of(assumptions: Assumptions) -> dict[str, dict[str, Any]]:
    """Name → value and reason, for a plan to print."""
    return {
        field.name: {"value": getattr(assumptions, field.name).value, "why": getattr(assumptions, field.name).why}
        for field in fields(assumptions)
    }
