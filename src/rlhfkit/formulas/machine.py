"""Where a plan runs: what a rank has of memory and rates, and what stands between ranks."""

from dataclasses import dataclass, replace

from rlhfkit.formulas.accelerators import Accelerator
from rlhfkit.formulas.assumptions import CPU_ASSUMPTIONS, GPU_ASSUMPTIONS, Assumption, Assumptions

__all__ = ["Machine", "Measured", "cpu_machine", "machine_of"]


@dataclass(frozen=True)
class Measured:
    """What a short trial of this recipe on this machine gave: seconds of a rank's part of an iteration."""

    sampling_seconds: float
    other_seconds: float
    held_bytes: int
    """What a process held when PPO began: the models, the program, and what earlier stages have left behind."""
    longest_prompt: int
    mean_prompt: float
    mean_response: float
    words: str
    """What was tried, and for how long."""


@dataclass(frozen=True)
class Machine:
    """What each of the ranks has."""

    name: str
    on_cpu: bool
    ranks: int
    memory_bytes: int
    """Of a rank: an accelerator's own, or its share of the CPU's."""
    flops: float
    """Of dense matrix products."""
    bandwidth: float
    """Bytes per second that the memory gives."""
    link: float
    """Bytes per second to another rank, in one direction."""
    assumptions: Assumptions
    source: str
    sampling_factor: float = 1.0
    """What a trial took, in what the formulas say; 1 without a trial."""
    other_factor: float = 1.0

    def calibrated(self, *, sampling: float, other: float, program_bytes: int) -> "Machine":
        """The same with formulas that give what a trial took."""
        program = Assumption(
            program_bytes, "measured in the trial when PPO began, less its models; earlier stages leave some behind"
        )
        assumptions = replace(self.assumptions, program_bytes=program)
        return replace(self, sampling_factor=sampling, other_factor=other, assumptions=assumptions)


def machine_of(accelerator: Accelerator, ranks: int) -> Machine:
    """So many of an accelerator, by its data sheet."""
    between = accelerator.link if ranks <= accelerator.per_machine else min(accelerator.link, accelerator.network)
    return Machine(
        name=f"{ranks} x {accelerator.name}",
        on_cpu=False,
        ranks=ranks,
        memory_bytes=accelerator.memory_bytes,
        flops=accelerator.flops,
        bandwidth=accelerator.bandwidth,
        link=between,
        assumptions=GPU_ASSUMPTIONS,
        source=accelerator.source,
    )


def cpu_machine(ranks: int, *, memory_bytes: int, flops: float, bandwidth: float, threads: int) -> Machine:
    """This machine's CPU, of which each rank has a share; rates are those that were measured with its threads."""
    return Machine(
        name=f"this machine's CPU, {ranks} x {threads} thread{'s' * (threads > 1)}",
        on_cpu=True,
        ranks=ranks,
        memory_bytes=memory_bytes // ranks,
        flops=flops,
        bandwidth=bandwidth,
        link=bandwidth,
        assumptions=CPU_ASSUMPTIONS,
        source="measured",
    )
