"""Processor, GPU and memory: what is there, and what torch makes of it."""

import math
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rlhfkit.doctor.findings import Finding, fault, ok, skipped, warning
from rlhfkit.wording import counted

__all__ = [
    "CpuFacts",
    "Driver",
    "Gpu",
    "MemoryFacts",
    "TorchFacts",
    "cpu_facts",
    "examine_cpu",
    "examine_dtypes",
    "examine_gpu",
    "examine_memory",
    "examine_threads",
    "examine_torch",
    "memory_facts",
    "nvidia_driver",
    "torch_facts",
]

GIB = 1 << 30
OLDEST_DRIVERS = {13: 580, 12: 525, 11: 450}
"""CUDA's major version → the oldest Linux driver that runs it.

Source: NVIDIA, CUDA Compatibility, table of minor version compatibility.
"""


# ── torch and the GPU ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as torch sees it."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True, slots=True)
class TorchFacts:
    """What torch was built for, and what it finds."""

    version: str
    cuda: str | None = None
    """CUDA version of the build, as "12.6"; None for a build without."""
    is_rocm: bool = False
    has_mps: bool = False
    gpus: tuple[Gpu, ...] = ()
    architectures: tuple[str, ...] = ()
    """What the build has code for, as "sm_90"."""
    works: str = ""
    """What the first computation on the GPU raised; empty where it gave the right number, or there is no GPU."""
    num_threads: int = 1


@dataclass(frozen=True, slots=True)
class Driver:
    """NVIDIA's driver, by nvidia-smi."""

    version: str
    gpus: tuple[str, ...]


def torch_facts() -> TorchFacts:
    """What this torch was built for, and what it finds; a GPU adds two numbers to show that it works."""
    import torch

    gpus, works = [], ""
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            gpus.append(Gpu(found.name, found.total_memory, (found.major, found.minor)))
        try:
            if float(torch.ones(2, device="cuda").sum()) != 2.0:
                works = "1 + 1 is not 2 there"
        except RuntimeError as error:
            works = str(error).splitlines()[0]
    return TorchFacts(
        version=torch.__version__,
        cuda=torch.version.cuda,
        is_rocm=torch.version.hip is not None,
        has_mps=torch.backends.mps.is_available(),
        gpus=tuple(gpus),
        architectures=tuple(torch.cuda.get_arch_list()) if gpus else (),
        works=works,
        num_threads=torch.get_num_threads(),
    )


def nvidia_driver() -> Driver | None:
    """NVIDIA's driver, where nvidia-smi is there and answers."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        answer = subprocess.run(
            [program, "--query-gpu=driver_version,name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    rows = [[part.strip() for part in line.split(",", 1)] for line in answer.splitlines() if "," in line]
    return Driver(rows[0][0], tuple(row[1] for row in rows)) if rows else None


def examine_torch(torch: TorchFacts, driver: Driver | None) -> Iterator[Finding]:
    """Whether torch was built for what is here."""
    name = "machine.torch"
    build = "ROCm" if torch.is_rocm else f"CUDA {torch.cuda}" if torch.cuda else "CPU"
    words = f"{torch.version}, built for {build}"
    if driver is None or torch.gpus:
        yield ok(name, words)
    elif torch.cuda is None:
        yield warning(
            name,
            f"{words}, beside {_gpus(driver.gpus)}, which stays idle",
            "install the torch build for CUDA, by the line that pytorch.org/get-started gives",
        )
    elif driver_is_old(torch.cuda, driver.version):
        oldest = OLDEST_DRIVERS[int(torch.cuda.partition(".")[0])]
        yield fault(
            name,
            f"{words}, but the driver is {driver.version}, and CUDA {torch.cuda} needs {oldest} or newer, so "
            f"{_gpus(driver.gpus)} cannot be used",
            "update the driver, or install a torch build for an older CUDA",
        )
    else:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = f" (CUDA_VISIBLE_DEVICES is {hidden!r})" if hidden is not None else ""
        yield warning(
            name,
            f"{words}, and driver {driver.version} is there, but torch finds no GPU{why}",
            "look at CUDA_VISIBLE_DEVICES, and whether this container may see the GPU",
        )


def driver_is_old(cuda: str, driver: str) -> bool:
    """Whether a driver is older than a CUDA version needs."""
    oldest = OLDEST_DRIVERS.get(int(cuda.partition(".")[0]), 0)
    return int(driver.partition(".")[0]) < oldest


def examine_gpu(torch: TorchFacts) -> Iterator[Finding]:
    """What each GPU is, and whether torch has code for it."""
    name = "machine.gpu"
    if not torch.gpus:
        yield skipped(name, "Apple's (mps)" if torch.has_mps else "none; everything runs on the CPU")
        return
    words = ", ".join(f"{gpu.name} with {gpu.memory_bytes / GIB:.0f} GiB" for gpu in torch.gpus)
    strange = [gpu for gpu in torch.gpus if not _has_code_for(gpu, torch.architectures)]
    if torch.works or strange:
        why = torch.works or f"torch {torch.version} has no code for it (only {', '.join(torch.architectures)})"
        yield fault(name, f"{words}: {why}", 'install a torch build for this GPU, or set model.device = "cpu"')
    elif len({gpu.name for gpu in torch.gpus}) > 1:
        yield warning(name, words, "choose one with CUDA_VISIBLE_DEVICES: the first is taken, whichever it is")
    else:
        yield ok(name, words + ("" if torch.gpus[0].capability >= (8, 0) else "; bfloat16 is slow on it"))


def _has_code_for(gpu: Gpu, architectures: tuple[str, ...]) -> bool:
    """Code of the same major version runs, if its minor one is not newer; PTX ("compute_…") of any older one."""
    found = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", each) for each in architectures]
    kinds = [(match[1], int(match[2]), int(match[3])) for match in found if match]
    major, minor = gpu.capability
    return not kinds or any(
        (kind == "sm" and own == major and small <= minor) or (kind == "compute" and (own, small) <= (major, minor))
        for kind, own, small in kinds
    )


# ── CPU and memory ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class CpuFacts:
    """The processor, and how much of it is ours."""

    name: str
    num_cores: int
    """Logical cores that this process may use."""
    quota_cores: float | None = None
    """What a container's limit leaves of them."""
    flags: frozenset[str] | None = None
    """As Linux names them; None where nothing tells."""


@dataclass(frozen=True, slots=True)
class MemoryFacts:
    """Memory, and how much of it is ours."""

    total_bytes: int
    available_bytes: int
    limit_bytes: int | None = None
    """A container's limit."""


def cpu_facts(root: Path = Path("/")) -> CpuFacts:
    """The processor, by what Linux tells below `root`."""
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    name = re.search(r"^(?:model name|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    num = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return CpuFacts(
        name[1].strip() if name else platform.processor() or platform.machine(),
        num,
        _quota_cores(root),
        frozenset(flags[1].split()) if flags else None,
    )


def _quota_cores(root: Path) -> float | None:
    try:
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def memory_facts(root: Path = Path("/")) -> MemoryFacts | None:
    """Memory, by what Linux tells below `root`, or else by what any Unix does."""
    try:
        text = (root / "proc/meminfo").read_text(encoding="utf-8")
        kib = {key: int(value.split()[0]) for key, _, value in (line.partition(":") for line in text.splitlines())}
        total, available = 1024 * kib["MemTotal"], 1024 * kib["MemAvailable"]
    except (OSError, ValueError, KeyError, IndexError):
        try:
            total = available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, AttributeError):
            return None
    try:
        limit = int((root / "sys/fs/cgroup/memory.max").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # "max" is no number
        limit = None
    return MemoryFacts(total, available, limit if limit is not None and limit < total else None)


def examine_cpu(cpu: CpuFacts) -> Iterator[Finding]:
    """What the processor can do that matters here."""
    name = "machine.cpu"
    cores = counted(cpu.num_cores, "core")
    flags = cpu.flags
    if flags is None or not flags & {"sse2", "asimd"}:
        yield ok(name, f"{cpu.name}, {cores}; nothing tells what it can do")
        return
    known = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "bfloat16 in AVX-512", "amx_bf16": "bfloat16 in AMX"}
    known |= {"asimd": "NEON", "sve": "SVE", "bf16": "bfloat16 in NEON"}
    there = ", ".join(words for flag, words in known.items() if flag in flags)
    words = f"{cpu.name}, {cores}: {there or 'no vector instructions to speak of'}"
    if not flags & {"avx2", "asimd"}:
        yield warning(name, words, "expect several times the stated times: torch is slow without AVX2")
    elif not flags & {"avx512_bf16", "amx_bf16", "bf16"}:
        yield ok(name, f"{words}; without instructions for bfloat16")
    else:
        yield ok(name, words)


def examine_dtypes(environment: Mapping[str, str]) -> Iterator[Finding]:
    """How fast matrix products are in float32 and in bfloat16, measured, and which type "auto" takes."""
    from rlhfkit.machine.device import choose_device
    from rlhfkit.machine.dtype import NO_BFLOAT16, SHAPE, choose_dtype, measured_products

    name, device = "machine.dtype", choose_device("auto")
    choice = choose_dtype("auto", device)
    taken = f'model.dtype = "auto" takes {choice.taken} ({choice.why})'
    if device.type != "cpu":
        yield ok(name, taken)
        return
    times = measured_products(device)
    operations = 3 * 2 * math.prod(SHAPE)
    rates = {"float32": operations / times.float32 / 1e9, "bfloat16": operations / times.bfloat16 / 1e9}
    words = ", ".join(f"{rate:.3g} in {kind}" for kind, rate in rates.items())
    switched = f"; {NO_BFLOAT16} is {environment[NO_BFLOAT16]!r}" if NO_BFLOAT16 in environment else ""
    yield ok(
        name,
        f"billions of operations a second of products on one core: {words}{switched}; {taken}",
        float32_gflops=rates["float32"],
        bfloat16_gflops=rates["bfloat16"],
        bfloat16_per_float32=times.factor,
    )


def examine_threads(torch: TorchFacts, cpu: CpuFacts, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Whether torch uses the cores that there are, and no more."""
    name, num = "machine.threads", torch.num_threads
    allowed = max(1, int(cpu.quota_cores)) if cpu.quota_cores else cpu.num_cores
    why = f" (OMP_NUM_THREADS is {environment['OMP_NUM_THREADS']})" if "OMP_NUM_THREADS" in environment else ""
    words = f"torch uses {counted(num, 'thread')}{why}"
    limit = f", as the container's limit is {cpu.quota_cores:g}" if cpu.quota_cores else ""
    if num > allowed:
        yield warning(
            name,
            f"{words}, and {counted(allowed, 'core')} may be used{limit}, so threads wait for each other",
            f"set OMP_NUM_THREADS={allowed}",
        )
    elif why and num < allowed // 2 + allowed % 2:
        yield warning(name, f"{words} of {allowed} cores", "unset OMP_NUM_THREADS, unless other work needs the rest")
    else:
        yield ok(name, f"{words} of {counted(allowed, 'core')}")


def examine_memory(memory: MemoryFacts | None) -> Iterator[Finding]:
    """Whether there is memory for a small run."""
    name = "machine.memory"
    if memory is None:
        yield skipped(name, "nothing tells how much there is")
        return
    available = min(memory.available_bytes, memory.limit_bytes or memory.available_bytes)
    words = f"{available / GIB:.1f} of {memory.total_bytes / GIB:.1f} GiB to be had"
    if memory.limit_bytes is not None:
        words += f", in a container of {memory.limit_bytes / GIB:.1f} GiB"
    if available < 2 * GIB:
        yield warning(name, words, "end other programs: the smallest recipe takes 1 GiB, one of 17 million weights 4")
    else:
        yield ok(name, words)


def _gpus(names: tuple[str, ...]) -> str:
    return f"{len(names)} x {names[0]}" if len(names) > 1 and len(set(names)) == 1 else ", ".join(names)
