"""What well-known accelerators can do, by their makers' data sheets, and how many of them are meant."""

import difflib
import re
from dataclasses import dataclass

from rlhfkit.errors import ConfigError

__all__ = ["ACCELERATORS", "CPU", "Accelerator", "accelerators_named"]

MIB, GIGA, TERA = 2**20, 1e9, 1e12
CPU = "cpu"


@dataclass(frozen=True)
class Accelerator:
    """One device; rates are the most that its maker promises."""

    name: str
    memory_bytes: int
    """As the driver shows it, a little less than the number in its name."""
    flops: float
    """Dense matrix products in bfloat16, operations per second."""
    bandwidth: float
    """Bytes per second that its memory gives."""
    link: float
    """Bytes per second, in one direction, to the others of the machine."""
    network: float
    """Bytes per second, in one direction, to other machines: its share of the machine's network."""
    source: str
    per_machine: int = 8


def _of(name: str, mib: int, tflops: float, gb: float, link: float, network: float, source: str) -> Accelerator:
    return Accelerator(name, mib * MIB, tflops * TERA, gb * GIGA, link * GIGA, network * GIGA, source)


ACCELERATORS: dict[str, Accelerator] = {
    found.name.lower(): found
    for found in (
        # The sheets' TFLOP/s of NVIDIA are with sparsity, where nothing else is said: half of that is dense.
        _of("H100", 81559, 989, 3350, 450, 50, "NVIDIA H100 SXM data sheet; NVLink 4, InfiniBand NDR"),
        _of("H200", 143771, 989, 4800, 450, 50, "NVIDIA H200 SXM data sheet; NVLink 4, InfiniBand NDR"),
        _of("B200", 183359, 2250, 7700, 900, 50, "NVIDIA HGX B200 data sheet; NVLink 5, InfiniBand NDR"),
        _of("A100-80", 81920, 312, 2039, 300, 25, "NVIDIA A100 80 GB SXM data sheet; NVLink 3, InfiniBand HDR"),
        _of("A100-40", 40960, 312, 1555, 300, 25, "NVIDIA A100 40 GB SXM data sheet; NVLink 3, InfiniBand HDR"),
        _of("L40S", 46068, 362, 864, 32, 3, "NVIDIA L40S data sheet; PCIe 4, 200 Gbit/s a machine"),
        _of("L4", 23034, 121, 300, 32, 3, "NVIDIA L4 data sheet; PCIe 4, 200 Gbit/s a machine"),
        _of("RTX4090", 24564, 165, 1008, 32, 3, "NVIDIA Ada whitepaper; PCIe 4, 200 Gbit/s a machine"),
    )
}
"""Name in small letters → what it is."""
OTHER_NAMES = {"a100": "a100-80", "4090": "rtx4090", "rtx-4090": "rtx4090", "h100-sxm": "h100", "h200-sxm": "h200"}
COUNT = re.compile(r"(?:(\d+)\s*[x×*]\s*)?(\S+)", re.IGNORECASE)


def accelerators_named(text: str) -> tuple[int, Accelerator | None]:
    """(how many, which) of "8xH100" or "L4"; None stands for this machine's CPU.

    Raises: ConfigError with the names that are known.
    """
    found = COUNT.fullmatch(text.strip())
    number, given = (found[1], found[2]) if found else (None, text.strip())
    name: str = OTHER_NAMES.get(given.lower(), given.lower())
    if number is not None and int(number) < 1:
        raise ConfigError(f"--gpus {text}: expected at least one, as 1x{name}")
    if name == CPU and number is None:
        return 1, None
    if name == CPU:
        raise ConfigError(f"--gpus {text}: this machine is one; give --gpus cpu, and --processes {number}")
    if name not in ACCELERATORS:
        near = difflib.get_close_matches(name, [*ACCELERATORS, *OTHER_NAMES], n=1)
        meant = f" (did you mean {ACCELERATORS[OTHER_NAMES.get(near[0], near[0])].name}?)" if near else ""
        known = ", ".join(accelerator.name for accelerator in ACCELERATORS.values())
        raise ConfigError(
            f"--gpus {text}: no such accelerator is known{meant}; there are {known} and cpu, with a number before it, "
            "as in 8xH100"
        )
    return int(number or 1), ACCELERATORS[name]
