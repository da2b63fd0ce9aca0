"""Where to compute, and how much memory there is."""

import ctypes
import gc
import os
import re
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from rlhfkit.errors import ConfigError

__all__ = [
    "PeakMeter",
    "available_bytes",
    "choose_device",
    "held_bytes",
    "is_out_of_memory",
    "keep_freed_memory",
    "release_memory",
    "wait_for",
]

# oneDNN keeps a program for each shape of a product that it has met, 1024 of them: 400 MB where sequences differ in
# length. With 128 runs are no slower. The variable is read when the first product is made.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

# torch has a class of its own for accelerators alone.
OUT_OF_MEMORY = re.compile(
    r"can(?:'t|not) allocate memory|not enough memory|out[ _]of[ _]memory|"
    r"(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED|std::bad_alloc",
    re.IGNORECASE,
)

# Names of glibc's settings, from its malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4

# Between two looks at this process, less than this comes and goes.
PEAK_SLACK_BYTES = 16 * 2**20


def choose_device(name: str) -> torch.device:
    """The device that `name` ("auto", "cpu", "cuda" or "mps") means on this machine.

    Raises: ConfigError where it is asked for by name and is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available[name]:
        there = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise ConfigError(
            f'model.device = "{name}" is not available here (there is: {there}); install the torch build for it, '
            'or set model.device = "auto"'
        )
    return torch.device(name)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is torch's or Python's way to say that there is no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None


def available_bytes(device: torch.device, *, shared_by: int = 1) -> int:
    """Memory that this process can still have on `device`: what is free, and what is cached and can be dropped.

    `shared_by`: processes that share the memory of this machine evenly; an accelerator is one's own.
    """
    _give_back_freed()
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min([min([_machine_available(), *_limits_of_groups()]) // shared_by, *_limits_of_process()])


def held_bytes(device: torch.device) -> int:
    """Memory that this process needs on `device` at this moment; what it has freed is given back first."""
    _give_back_freed()
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _of_status("VmRSS")


def keep_freed_memory() -> bool:
    """Whether from now on the C library keeps the memory of large tensors that are freed, for the next ones.

    By itself it hands each back to the system, which clears every page of it anew for the next: seven times as long as
    to fill it. `release_memory` and `held_bytes` give it back. What a variable of the environment says stays.
    """
    if any(name in os.environ for name in ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")):
        return False
    with suppress(OSError, AttributeError):  # another C library has no such function
        library = ctypes.CDLL(None)
        return bool(library.mallopt(M_MMAP_MAX, 0) and library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
    return False


def release_memory() -> None:
    """Give back what nobody uses: objects in cycles, what the C library keeps of what was freed, CUDA's cache."""
    gc.collect()
    _give_back_freed()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def wait_for(device: torch.device) -> None:
    """Return once `device` has done what it was given; without, a clock would stop when work is only asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _give_back_freed() -> None:
    with suppress(OSError, AttributeError):  # another C library has no such function
        ctypes.CDLL(None).malloc_trim(0)


class PeakMeter:
    """Most memory that this process holds on a device, from the meter's making on."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._before = 0 if _reset_peak(device) else _peak_bytes(device)

    def bytes(self) -> int | None:
        """The peak; None where it is an earlier one that this kernel cannot forget."""
        peak = _peak_bytes(self.device)
        return peak if peak > self._before else None


def _reset_peak(device: torch.device) -> bool:
    """Let the peak begin anew; whether it did, which some sandboxes do not allow."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak_bytes(device) - _of_status("VmRSS") < PEAK_SLACK_BYTES


def _peak_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _of_status("VmHWM")


def _of_status(name: str) -> int:
    """A line of /proc/self/status, in bytes; where there is no such file, the peak of the whole process."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on a Mac
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def _machine_available() -> int:
    info = Path("/proc/meminfo")
    if not info.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    line = next(line for line in info.read_text().splitlines() if line.startswith("MemAvailable:"))
    return int(line.split()[1]) * 1024


def _limits_of_process() -> Iterator[int]:
    """What `ulimit -v` and `ulimit -d` leave to this process, where they are set."""
    if not Path("/proc/self/status").exists():
        return
    for number, used in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        limit, _ = resource.getrlimit(number)
        if limit != resource.RLIM_INFINITY:
            yield max(0, limit - _of_status(used))


def _limits_of_groups() -> Iterator[int]:
    """What containers leave: the limit of this process's control group, less what the group cannot give up."""
    for root, limit, used, droppable in (
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError, StopIteration):  # no such group, or its limit is "max"
            total, in_use = (int(Path(root, name).read_text()) for name in (limit, used))
            lines = Path(root, "memory.stat").read_text().splitlines()
            cached = next(int(line.split()[1]) for line in lines if line.startswith(f"{droppable} "))
            yield total - (in_use - cached)
