"""Disk, compiler, hub and ports: what a run meets outside itself."""

import errno
import fcntl
import os
import re
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from rlhfkit.config.control import ControlRecipe
from rlhfkit.config.recipe import Recipe
from rlhfkit.doctor.findings import Finding, fault, ok, skipped, warning
from rlhfkit.errors import CheckpointError
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.resume import refuse_other_directories, refuse_other_settings

__all__ = [
    "examine_compiler",
    "examine_disk",
    "examine_hub",
    "examine_port",
    "examine_run_directory",
    "examine_writing",
    "nearest",
]

GIB = 1 << 30
HUB_SECONDS = 3.0
COMPILER_SECONDS = 20.0
PROGRAM = """
#include <Python.h>
#include <omp.h>
extern "C" int threads() { return omp_get_max_threads(); }
"""
"""What torch.compile's own programs include; without Python's headers, or OpenMP, none of them is compiled."""


def nearest(path: Path) -> Path:
    """The directory itself, or the nearest above it that exists."""
    path = path.absolute()
    return next(parent for parent in (path, *path.parents) if parent.exists())


def examine_disk(directory: Path) -> Iterator[Finding]:
    """Whether there is room for checkpoints."""
    name, place = "machine.disk", nearest(directory)
    usage = shutil.disk_usage(place)
    words = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free at {place}"
    if usage.free < GIB / 2:
        yield fault(name, words, "make room, or choose another --run-dir: a checkpoint needs several times the model")
    elif usage.free < 5 * GIB:
        yield warning(name, words, "make room: a checkpoint takes about 16 bytes for each weight of the model")
    else:
        yield ok(name, words)


def examine_writing(directory: Path) -> Iterator[Finding]:
    """Whether files can be written there, locked, and put in the place of others."""
    name, place = "machine.writing", nearest(directory)
    if not place.is_dir():
        yield fault(name, f"{place} is a file", "choose another --run-dir")
        return
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".rlhfkit-doctor.") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        what = "cannot be locked" if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS) else "cannot be written"
        yield fault(name, f"{place} {what} ({error.strerror})", "choose another --run-dir, or fix its permissions")
        return
    yield ok(name, f"{directory} can be written to" + ("" if place == directory.absolute() else ", once it is made"))


def examine_compiler(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Whether torch.compile could compile for the CPU."""
    name = "machine.compiler"
    names = [environment["CXX"]] if environment.get("CXX") else ["g++", "clang++", "c++"]
    program = next((path for each in names if (path := shutil.which(each))), None)
    remedy = "install g++ and Python's headers (build-essential and python3-dev on Debian); without, runs are slower"
    if program is None:
        yield warning(name, f"no C++ compiler ({', '.join(names)}), which torch.compile needs", remedy)
        return
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(PROGRAM, encoding="utf-8")
        command = [program, "-shared", "-fPIC", "-fopenmp", f"-I{sysconfig.get_paths()['include']}"]
        try:
            ended = subprocess.run(
                [*command, str(source), "-o", f"{folder}/probe.so"],
                capture_output=True,
                text=True,
                timeout=COMPILER_SECONDS,
            )
        except (OSError, subprocess.SubprocessError) as error:
            yield warning(name, f"{program} cannot be run ({error})", remedy)
            return
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if "error" in line] or ["no reason given"]
        reason = lines[0].rpartition("error: ")[2]
        yield warning(name, f"{program} compiles nothing for torch.compile ({reason})", remedy)
    else:
        yield ok(name, f"{program}, with Python's headers and OpenMP")


def examine_hub(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Whether models and data of the hub can be had; one short request, of which only the status is looked at."""
    name = "machine.hub"
    if environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        yield ok(name, "switched off (HF_HUB_OFFLINE); directories and what was downloaded before can be used")
        return
    address = environment.get("HF_ENDPOINT") or "https://huggingface.co"
    host = urlsplit(address).hostname or address
    answer: list[str] = []
    # Looking up a name has no time limit of its own, so it is left behind where it takes too long.
    thread = threading.Thread(target=_ask, args=(address, answer), daemon=True)
    thread.start()
    thread.join(HUB_SECONDS + 1)
    reason = answer[0] if answer else f"no answer in {HUB_SECONDS:g} s"
    if reason:
        yield warning(
            name,
            f"{host} cannot be reached ({reason})",
            "give models and data as directories; HF_HUB_OFFLINE=1 saves the waiting",
        )
    else:
        yield ok(name, f"{host} can be reached")


def _ask(address: str, answer: list[str]) -> None:
    """Add to `answer` what went wrong, or an empty text."""
    import httpx

    try:
        status = httpx.head(address, timeout=HUB_SECONDS).status_code
        answer.append(f"it answers {status}" if status >= 500 else "")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        words = re.sub(r"\[Errno -?\d+\] ", "", (str(error).splitlines() or [""])[0])
        answer.append(words or type(error).__name__)


def examine_port(port: int, *, host: str = "127.0.0.1", name: str = "machine.port") -> Iterator[Finding]:
    """Whether the page of `label` and `dashboard` finds its port free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as opened:
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                yield ok(name, f"{port} at {host} is taken, so pages take the next free one")
            else:
                yield skipped(name, f"{port} at {host}: {error.strerror}")
            return
    yield ok(name, f"{port} at {host} is free")


def examine_run_directory(run: RunDir, recipe: Recipe | ControlRecipe) -> Iterator[Finding]:
    """Whether a run may begin, or go on, in a directory. Raises: CheckpointError where it may not."""
    name, path = "recipe.run_directory", run.path
    refuse_other_directories(run)
    try:
        changes = refuse_other_settings(run, recipe)
    except CheckpointError as error:
        seen, _, remedy = str(error).rpartition("; ")
        yield warning(name, seen, remedy)
        return
    finished = [stage for stage in recipe.stages if stage in run.finished_stages()]
    if not run.is_run():
        yield ok(name, f"{path} is free; stages: {', '.join(recipe.stages)}")
    else:
        since = f"; changed since: {', '.join(changes)}" if changes else ""
        yield ok(name, f"{path} goes on after {', '.join(finished) or 'nothing yet'}{since}")
