"""Whether this machine is ready, whatever is to be run on it; torch is the heaviest that is imported for it."""

import os
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from rlhfkit.doctor.findings import Finding, checked, fault
from rlhfkit.doctor.hardware import (
    Driver,
    TorchFacts,
    cpu_facts,
    examine_cpu,
    examine_dtypes,
    examine_gpu,
    examine_memory,
    examine_threads,
    examine_torch,
    memory_facts,
    nvidia_driver,
    torch_facts,
)
from rlhfkit.doctor.packages import examine_extras, examine_packages, examine_python, here
from rlhfkit.doctor.system import examine_compiler, examine_disk, examine_hub, examine_port, examine_writing

__all__ = ["PAGE_PORT", "examine_machine"]

PAGE_PORT = 8571
OLDEST_PYTHON = ">=3.11"


def examine_machine(directory: Path) -> Iterator[Finding]:
    """What this machine is like for a run that would write to `directory`."""
    installed, environment, cpu = here(), os.environ, cpu_facts()
    yield from checked("machine.python", lambda: examine_python(installed, needed=_needed_python()))
    yield from checked("machine.packages", lambda: examine_packages(installed))
    yield from checked("machine.torch", _examine_torch)
    yield from checked("machine.cpu", lambda: examine_cpu(cpu))
    yield from checked("machine.memory", lambda: examine_memory(memory_facts()))
    yield from checked("machine.disk", lambda: examine_disk(directory))
    yield from checked("machine.writing", lambda: examine_writing(directory))
    yield from checked("machine.compiler", lambda: examine_compiler(environment))
    yield from checked("machine.hub", lambda: examine_hub(environment))
    yield from checked("machine.port", lambda: examine_port(PAGE_PORT))
    yield from checked("optional", lambda: examine_extras(installed))


def _needed_python() -> str:
    try:
        return metadata.metadata("rlhfkit")["Requires-Python"] or OLDEST_PYTHON
    except metadata.PackageNotFoundError:
        return OLDEST_PYTHON


def _examine_torch() -> Iterable[Finding]:
    try:
        found = torch_facts()
    except (ImportError, OSError, RuntimeError) as error:
        yield fault(
            "machine.torch",
            f"cannot be imported: {(str(error).splitlines() or [''])[0]}",
            "install it anew: pip install --force-reinstall torch",
        )
        return
    driver: Driver | None = None if found.gpus else nvidia_driver()
    yield from _with_torch(found, driver)


def _with_torch(found: TorchFacts, driver: Driver | None) -> Iterator[Finding]:
    yield from examine_torch(found, driver)
    yield from examine_gpu(found)
    yield from examine_threads(found, cpu_facts(), os.environ)
    yield from checked("machine.dtype", lambda: examine_dtypes(os.environ))
