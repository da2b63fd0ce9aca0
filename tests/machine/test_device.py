import mmap
import os
import platform
import subprocess
import sys

import pytest
import torch

from rlhfkit.machine import device
from rlhfkit.machine.device import PeakMeter, available_bytes, held_bytes, is_out_of_memory

CPU = torch.device("cpu")
SIZE = 200 * 2**20
PAGE = mmap.PAGESIZE


def test_peak_is_that_of_the_time_since_the_meter_was_made():
    meter = PeakMeter(CPU)
    before = held_bytes(CPU)
    with mmap.mmap(-1, SIZE) as memory:  # what is freed to the allocator may stay with the process
        memory[::PAGE] = b"x" * (SIZE // PAGE)
    peak = meter.bytes()
    assert SIZE * 0.9 < peak - before < SIZE * 1.5
    later = PeakMeter(CPU).bytes()
    assert later is None or later < peak - SIZE * 0.5


def test_an_earlier_peak_that_the_kernel_keeps_is_not_given_for_a_later_one(monkeypatch):
    peaks = [1000, 1000, 2000]
    monkeypatch.setattr(device, "_reset_peak", lambda _: False)
    monkeypatch.setattr(device, "_peak_bytes", lambda _: peaks.pop(0))
    meter = PeakMeter(CPU)
    assert meter.bytes() is None
    assert meter.bytes() == 2000


FAULTS_OF_ONE_MORE_TENSOR = """
import resource, sys, torch
from rlhfkit.machine.device import held_bytes, keep_freed_memory

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(32 * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(20):  # the first ones leave holes that do not fit
    page_faults()
held_bytes(torch.device("cpu")) if sys.argv[2] == "release" else None
print(page_faults())
"""


@pytest.mark.thorough
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's")
@pytest.mark.parametrize(
    ("setting", "few"), [(("keep", "go on"), True), (("keep", "release"), False), (("as it is", "go on"), False)]
)
def test_memory_of_a_freed_tensor_is_kept_for_the_next_one_until_it_is_released(setting, few):
    found = subprocess.run(
        [sys.executable, "-c", FAULTS_OF_ONE_MORE_TENSOR, *setting], capture_output=True, text=True, check=True
    )
    pages = 32 * 2**20 // PAGE
    assert int(found.stdout) < pages / 10 if few else int(found.stdout) > pages / 2


def test_what_is_available_is_some_of_what_the_machine_has():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert total / 1000 < available_bytes(CPU) < total


def test_the_limit_of_a_control_group_counts(monkeypatch):
    monkeypatch.setattr(device, "_limits_of_groups", lambda: iter([7 * 2**20, 9 * 2**20]))
    assert available_bytes(CPU) == 7 * 2**20


def test_processes_share_the_machine_but_not_the_limit_of_each(monkeypatch):
    monkeypatch.setattr(device, "_limits_of_groups", lambda: iter([8 * 2**20]))
    assert available_bytes(CPU, shared_by=2) == 4 * 2**20
    monkeypatch.setattr(device, "_limits_of_process", lambda: iter([3 * 2**20]))
    assert available_bytes(CPU, shared_by=2) == 3 * 2**20


LEFT_OF_A_LIMIT = """
import resource, sys, torch
from rlhfkit.machine.device import available_bytes
kind, used = getattr(resource, sys.argv[1]), sys.argv[2]
before = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(used)) * 1024
resource.setrlimit(kind, (before + 64 * 2**20, before + 64 * 2**20))
print(available_bytes(torch.device("cpu")))
"""


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")
@pytest.mark.parametrize(("kind", "used"), [("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")])
def test_what_a_limit_of_the_shell_leaves_counts(kind, used):
    """64 MiB, and a little of what is given back first."""
    found = subprocess.run([sys.executable, "-c", LEFT_OF_A_LIMIT, kind, used], capture_output=True, text=True)
    assert 56 * 2**20 < int(found.stdout) < 72 * 2**20, found.stderr


@pytest.mark.parametrize(
    ("words", "is_memory"),
    [
        ("CUDA out of memory. Tried to allocate 20.00 MiB", True),
        ("CUDA error: out of memory", True),
        ("unable to mmap 91277256 bytes from file <model.safetensors>: Cannot allocate memory (12)", True),
        ("CUDA driver error: CUDA_ERROR_OUT_OF_MEMORY", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        # Of a kernel that is too large for any GPU of this kind: no smaller batch would help.
        ("out of resource: shared memory, Required: 262144, Hardware limit: 232448", False),
        ("CUDA error: an illegal memory access was encountered", False),
        ("CUDA error: device-side assert triggered", False),
    ],
)
def test_what_cuda_says_is_known_for_lack_of_memory_or_not(words, is_memory):
    assert is_out_of_memory(RuntimeError(words)) is is_memory


def test_memory_is_known_without_control_groups(monkeypatch):
    """As in a network namespace, which has a view of /sys of its own."""
    monkeypatch.setattr(device, "_limits_of_groups", lambda: iter([]))
    assert available_bytes(CPU) > 0
