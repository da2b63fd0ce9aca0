"""Checkpoints: whole or not there, checked when read, and the one before stands in for a damaged one."""

import copy
import hashlib
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhfkit.distributed.ranks import ranks
from rlhfkit.errors import CheckpointError, RlhfkitError, TrainingError
from rlhfkit.machine.seeding import capture_rng, restore_rng
from rlhfkit.machine.watchdog import phase
from rlhfkit.rundir.atomic import read_json, write_atomically, write_directory_atomically, write_json

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "HasParameters",
    "Taken",
    "load_trainable",
    "prefixed",
    "subset",
    "trainable_tensors",
]

TENSORS, STATE = "tensors.safetensors", "state.json"
CHECKSUMS = "SHA256SUMS"
"""Of the two, in the format of `sha256sum --check`."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a stage needs to go on."""

    iteration: int
    """Iterations that are complete."""
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    best: float | None = None
    """The value of the metric by which checkpoints are ranked, of these weights, if there is one; higher is better."""


@dataclass(frozen=True)
class Taken:
    """The copy of a moment that may become a checkpoint."""

    iteration: int
    """Iterations that are complete."""
    tensors: dict[str, Tensor]
    record: dict[str, Any]


class Checkpoints:
    """The checkpoints of one stage, in a directory: the last few are kept, and the best.

    Training waits for the copy in memory alone: another thread writes it. Used as `with checkpoints:` around the
    loop, the block ends when the last one is written, and with an error if it could not be.
    """

    def __init__(self, directory: Path, *, warn: Callable[[str], None], keep: int = 2, keep_best: int = 1) -> None:
        """Keep the last `keep` in `directory`, and the `keep_best` best; `warn` hears of damaged ones.

        Of several ranks, which hold the same, the first writes, and all read.
        """
        self.directory, self.warn, self.keep, self.keep_best = directory, warn, keep, keep_best
        self._writes = ranks().is_first
        self._writer: Thread | None = None
        self._fault: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except RlhfkitError as fault:
            if error is None:
                raise
            self.warn(str(fault))  # what ended the loop is the news

    def save(
        self, iteration: int, tensors: dict[str, Tensor], state: dict[str, Any], *, best: float | None = None
    ) -> None:
        """`take` and `write` in one.

        Raises: CheckpointError where the one before could not be written.
        """
        self.write(self.take(iteration, tensors, state), best=best)

    def take(self, iteration: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> Taken:
        """A copy of everything, with the state of the global random generators, that later updates do not reach.

        Raises: CheckpointError where the checkpoint before could not be written.
        """
        if not self._writes:
            return Taken(iteration, {}, {})
        self.wait()
        rng = capture_rng()
        stored = {f"stage/{name}": tensor for name, tensor in tensors.items()}
        stored |= {"rng/numpy": rng["numpy"][1], "rng/torch": rng["torch"]}
        stored |= {f"rng/cuda{index}": tensor for index, tensor in enumerate(rng["cuda"])}
        record = {
            "iteration": iteration,
            "state": copy.deepcopy(state),
            "rng": {"python": rng["python"], "numpy": [rng["numpy"][0], *rng["numpy"][2:]]},
        }
        # Tied tensors are copied apart too, since they may not share memory in the file.
        return Taken(iteration, {name: _copied(tensor) for name, tensor in stored.items()}, record)

    def write(self, taken: Taken, *, best: float | None = None) -> None:
        """Have a thread write what was taken; what it replaces is removed once it is written.

        `best` is the value of the metric by which checkpoints are ranked, of the weights in it; higher is better.
        Raises: CheckpointError where the one before could not be written.
        """
        if not self._writes:
            return
        self.wait()
        record = {**taken.record, "best": best if best is not None and math.isfinite(best) else None}
        # No daemon, so that the process does not end before the checkpoint is written.
        self._writer = Thread(
            target=self._write, args=(taken.iteration, taken.tensors, record), name="checkpoint writer"
        )
        self._writer.start()

    def rank(self, iteration: int, best: float) -> None:
        """Have a thread note what the weights of a checkpoint turned out to be worth, once it is written.

        Only the next rollout says so, and by then the checkpoint is saved. Nothing happens if it is not there.
        """
        if not self._writes:
            return
        self._writer = Thread(target=self._note_rank, args=(self._writer, iteration, best), name="checkpoint writer")
        self._writer.start()

    def wait(self) -> None:
        """Return once the last checkpoint is on the disk.

        Raises: CheckpointError where it could not be written; the ones before it are still there.
        """
        if self._writer is not None:
            with phase("checkpoint"):
                self._writer.join()
            self._writer = None
        self.check()

    def check(self) -> None:
        """Raise the writer's error if it has one; return at once, whether or not it is done.

        Raises: CheckpointError where a checkpoint could not be written.
        """
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault

    def _write(self, iteration: int, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Write a checkpoint, then remove what it replaces; runs in a thread, which leaves its error behind."""
        try:
            _refuse_not_finite(iteration, tensors)
            newest = self.directory / f"{iteration:08d}"
            num_bytes = sum(tensor.nbytes for tensor in tensors.values())
            with write_directory_atomically(newest, num_bytes=num_bytes) as temporary:
                save_file(tensors, temporary / TENSORS)
                write_json(temporary / STATE, record)
                write_atomically(temporary / CHECKSUMS, _checksums(temporary))
            self._prune(newest)
        except BaseException as error:
            self._fault = error

    def _note_rank(self, before: Thread | None, iteration: int, best: float) -> None:
        """Write the state of a checkpoint again, with its rank; runs in a thread, which leaves its error behind."""
        try:
            if before is not None:
                before.join()
            directory = self.directory / f"{iteration:08d}"
            if self._fault is not None or not directory.exists():
                return
            record = {**read_json(directory / STATE), "best": best if math.isfinite(best) else None}
            with write_directory_atomically(directory) as temporary:
                os.link(directory / TENSORS, temporary / TENSORS)
                write_json(temporary / STATE, record)
                write_atomically(temporary / CHECKSUMS, _checksums(temporary))
            self._prune(directory)
        except BaseException as error:
            self._fault = error

    def _prune(self, newest: Path) -> None:
        # Later ones are of a future that a damaged checkpoint or a roll-back took back; they rank no more.
        past = [path for path in self._all() if path <= newest]
        kept = {*past[-self.keep :], *self._ranked(past)[: self.keep_best]}
        for path in self.directory.iterdir():
            if path not in kept and re.fullmatch(r"\d{8}|\.\d{8}\..*", path.name):
                shutil.rmtree(path)

    def load_newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, with the global random generators put back to it; None if there is none.

        Raises: CheckpointError where there are checkpoints, but all are damaged.
        """
        self._wait_for_all()
        return self._first_whole(list(reversed(self._all())))

    def load_best(self) -> Checkpoint | None:
        """The checkpoint with the highest `best` that is whole, of several the newest; None if none was ranked.

        The global random generators are put back to it. Whoever goes on from it calls `drop_after` first.
        Raises: CheckpointError where some were ranked, but all of those are damaged.
        """
        self._wait_for_all()
        return self._first_whole(self._ranked(self._all()))

    def drop_after(self, iteration: int) -> None:
        """Remove the checkpoints of a future that the run has gone back from, so that no later start finds them."""
        self._wait_for_all()  # to have read
        for path in reversed(self._all()) if self._writes else ():
            if int(path.name) > iteration:
                shutil.rmtree(path)

    def _wait_for_all(self) -> None:
        """Return once the last checkpoint is on the disk, whichever rank has written it."""
        self.wait()
        ranks().wait()

    def _first_whole(self, candidates: list[Path]) -> Checkpoint | None:
        for directory in candidates:
            try:
                return self._load(directory)
            except (CheckpointError, OSError) as error:
                self.warn(f"checkpoint {directory} is damaged ({error}); trying the one before")
        if candidates:
            raise CheckpointError(
                f"all checkpoints in {self.directory} are damaged; start the stage over by removing that directory"
            )
        return None

    def _load(self, directory: Path) -> Checkpoint:
        if (directory / CHECKSUMS).read_bytes() != _checksums(directory).encode():
            raise CheckpointError("its files do not match their checksums")
        record = read_json(directory / STATE)
        stored = load_file(directory / TENSORS)
        name, *rest = record["rng"]["numpy"]
        cuda = sorted((key for key in stored if key.startswith("rng/cuda")), key=lambda key: int(key[8:]))
        restore_rng(
            {
                "python": record["rng"]["python"],
                "numpy": (name, stored["rng/numpy"], *rest),
                "torch": stored["rng/torch"],
                "cuda": [stored[key] for key in cuda],
            }
        )
        tensors = {key.removeprefix("stage/"): value for key, value in stored.items() if key.startswith("stage/")}
        return Checkpoint(record["iteration"], tensors, record["state"], record.get("best"))

    def _all(self) -> list[Path]:
        if not self.directory.is_dir():
            return []
        return sorted(path for path in self.directory.iterdir() if re.fullmatch(r"\d{8}", path.name))

    def _ranked(self, directories: Iterable[Path]) -> list[Path]:
        """Those that have a rank, the best first, of equals the newest first."""
        ranks = {path: rank for path in directories if (rank := _rank(path)) is not None}
        return sorted(ranks, key=lambda path: (ranks[path], path), reverse=True)


def _copied(tensor: Tensor) -> Tensor:
    """A copy on the CPU that later updates do not reach."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _refuse_not_finite(iteration: int, tensors: dict[str, Tensor]) -> None:
    """Refuse weights that no later start could go on from, before they replace good ones.

    Raises: TrainingError.
    """
    for name, tensor in tensors.items():
        # What a rollout remembers is its own affair: an environment may know infinite bounds.
        if not name.startswith("stage/rollout/") and tensor.is_floating_point() and not tensor.isfinite().all():
            raise TrainingError(
                f"{name.removeprefix('stage/')} is not finite after iteration {iteration}, so it was not saved; the "
                "checkpoint before it is good: lower the learning rate, in another --run-dir"
            )


def _rank(directory: Path) -> float | None:
    """What `best` was; None where it was not given or cannot be read."""
    try:
        rank = read_json(directory / STATE)["best"]
    except (CheckpointError, OSError, KeyError, TypeError):
        return None
    return float(rank) if isinstance(rank, int | float) else None


def _checksums(directory: Path) -> str:
    lines = []
    for name in (STATE, TENSORS):
        with (directory / name).open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return "".join(lines)


class HasParameters(Protocol):
    """What a module is to a checkpoint."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters by name."""
        ...


def trainable_tensors(module: HasParameters) -> dict[str, Tensor]:
    """Parameters that training changes, by name."""
    return {name: parameter.detach() for name, parameter in module.named_parameters() if parameter.requires_grad}


def load_trainable(module: HasParameters, tensors: dict[str, Tensor]) -> None:
    """Put back what `trainable_tensors` gave.

    Raises: CheckpointError where names or shapes differ.
    """
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if parameters.keys() != tensors.keys():
        odd = sorted(parameters.keys() ^ tensors.keys())
        raise CheckpointError(f"the checkpoint is of another model: {len(odd)} weights differ, such as {odd[0]}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != tensors[name].shape:
                raise CheckpointError(
                    f"the checkpoint is of another model: {name} is {tuple(tensors[name].shape)}, "
                    f"expected {tuple(parameter.shape)}"
                )
            parameter.copy_(tensors[name])


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under longer names, so that several parts fit one checkpoint."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def subset(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `prefixed` put under `prefix`, with the short names again."""
    return {
        name.removeprefix(f"{prefix}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}/")
    }
