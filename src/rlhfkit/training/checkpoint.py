"""Checkpoints: whole or not there, checked when read, and the one before stands in for a damaged one."""

import copy
import hashlib
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rlhfkit.distributed.ranks import ranks
from rlhfkit.distributed.sharding import first_row, is_parted, own_part, own_rows, resharded
from rlhfkit.errors import CheckpointError, RlhfkitError, TrainingError
from rlhfkit.machine.seeding import capture_rng, restore_rng
from rlhfkit.machine.watchdog import phase
from rlhfkit.rundir.atomic import read_json, write_atomically, write_directory_atomically, write_json, writing

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "HasParameters",
    "Taken",
    "is_checkpoint",
    "load_trainable",
    "prefixed",
    "subset",
    "tensors_of",
    "trainable_tensors",
]

TENSORS, STATE = "tensors.safetensors", "state.json"
TENSORS_OF_RANK = "tensors-{}.safetensors"
"""Of the other ranks, where weights are parted among them."""
CHECKSUMS = "SHA256SUMS"
"""Of all files, in the format of `sha256sum --check`."""
PARTS_SECONDS = 600.0
"""How long the first rank waits for the others' rows of a checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a stage needs to go on."""

    iteration: int
    """Iterations that are complete."""
    tensors: Mapping[str, Tensor]
    """Whole, and read from the disk when they are asked for."""
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
        self._here = ranks()
        self._writes = self._here.is_first or self._here.shards
        self._num_written = 0
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
        if not self._here.is_first:
            return Taken(iteration, _rows_of(tensors), {})
        rng = capture_rng()
        stored = {f"stage/{name}": tensor for name, tensor in tensors.items() if not is_parted(tensor)}
        stored |= {"rng/numpy": rng["numpy"][1], "rng/torch": rng["torch"]}
        stored |= {f"rng/cuda{index}": tensor for index, tensor in enumerate(rng["cuda"])}
        record = {
            "iteration": iteration,
            "state": copy.deepcopy(state),
            "rng": {"python": rng["python"], "numpy": [rng["numpy"][0], *rng["numpy"][2:]]},
        }
        # Tied tensors are copied apart too, since they may not share memory in the file.
        whole = {name: _copied(tensor) for name, tensor in stored.items()}
        return Taken(iteration, whole | _rows_of(tensors), record)

    def write(self, taken: Taken, *, best: float | None = None) -> None:
        """Have a thread write what was taken; what it replaces is removed once it is written.

        `best` is the value of the metric by which checkpoints are ranked, of the weights in it; higher is better.
        Raises: CheckpointError where the one before could not be written.
        """
        if not self._writes:
            return
        self.wait()
        record = {**taken.record, "best": best if best is not None and math.isfinite(best) else None}
        self._num_written += 1
        # No daemon, so that the process does not end before the checkpoint is written.
        target = self._write if self._here.is_first else self._write_rows
        self._writer = Thread(target=target, args=(taken.iteration, taken.tensors, record), name="checkpoint writer")
        self._writer.start()

    def rank(self, iteration: int, best: float) -> None:
        """Have a thread note what the weights of a checkpoint turned out to be worth, once it is written.

        Only the next rollout says so, and by then the checkpoint is saved. Nothing happens if it is not there.
        """
        if not self._here.is_first:
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
                self._take_rows(iteration, temporary)
                write_json(temporary / STATE, record)
                write_atomically(temporary / CHECKSUMS, _checksums(temporary))
            self._prune(newest)
        except BaseException as error:
            self._fault = error

    def _write_rows(self, iteration: int, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Write the rows of this rank where the first one waits for them; runs in a thread, as `_write` does."""
        try:
            _refuse_not_finite(iteration, tensors)
            place, name = self._place_of_rows(iteration), TENSORS_OF_RANK.format(self._here.rank)
            with writing(place):
                place.mkdir(parents=True, exist_ok=True)
                save_file(tensors, place / f".{name}")
                (place / f".{name}").rename(place / name)
        except BaseException as error:
            self._fault = error

    def _place_of_rows(self, iteration: int) -> Path:
        """Where the ranks put their rows for the first one; another place for each writing, so that none are stale."""
        return self.directory / f".{iteration:08d}.rows-{self._num_written}"

    def _take_rows(self, iteration: int, directory: Path) -> None:
        """Wait for the rows of the other ranks, where weights are parted, and move them to `directory`.

        Raises: CheckpointError where they do not come.
        """
        if not self._here.shards:
            return
        place, deadline = self._place_of_rows(iteration), time.monotonic() + PARTS_SECONDS
        for name in (TENSORS_OF_RANK.format(rank) for rank in range(1, self._here.size)):
            while not (place / name).exists():
                if time.monotonic() > deadline:
                    raise CheckpointError(
                        f"{place / name} has not been written by its rank within {PARTS_SECONDS / 60:g} minutes; all "
                        "ranks must see the run directory, and there must be room on its disk"
                    )
                time.sleep(0.05)
            (place / name).rename(directory / name)
        shutil.rmtree(place, ignore_errors=True)

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
                for file in _files_of(directory):
                    os.link(file, temporary / file.name)
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
            if path not in kept and re.fullmatch(r"\d{8}|\.\d{8}\.(?!rows-).*", path.name):
                shutil.rmtree(path)  # other ranks' rows are of a checkpoint that is still to come

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
        for path in reversed(self._all()) if self._here.is_first else ():
            if int(path.name) > iteration:
                shutil.rmtree(path)

    def _wait_for_all(self) -> None:
        """Return once the last checkpoint is on the disk, whichever rank has written it."""
        self.wait()
        if self._here.is_first:
            for left in self.directory.glob(".*.rows-*"):  # by a start that was killed
                shutil.rmtree(left)
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
        stored, record = _whole(directory), read_json(directory / STATE)
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
        return Checkpoint(record["iteration"], stored.under("stage"), record["state"], record.get("best"))

    def _all(self) -> list[Path]:
        if not self.directory.is_dir():
            return []
        return sorted(path for path in self.directory.iterdir() if re.fullmatch(r"\d{8}", path.name))

    def _ranked(self, directories: Iterable[Path]) -> list[Path]:
        """Those that have a rank, the best first, of equals the newest first."""
        ranks = {path: rank for path in directories if (rank := _rank(path)) is not None}
        return sorted(ranks, key=lambda path: (ranks[path], path), reverse=True)


def is_checkpoint(directory: Path) -> bool:
    """Whether a directory is a checkpoint, by its name and its files."""
    name = directory.resolve().name
    return re.fullmatch(r"\d{8}", name) is not None and (directory / CHECKSUMS).is_file()


def tensors_of(directory: Path, prefix: str) -> Mapping[str, Tensor]:
    """The tensors of a stage in its checkpoint whose names begin with `prefix`, without it.

    No random generator is put back.

    Raises: CheckpointError where it is damaged.
    """
    return _whole(directory, f"stage/{prefix}")


def _whole(directory: Path, prefix: str = "") -> "StoredTensors":
    if (directory / CHECKSUMS).read_bytes() != _checksums(directory).encode():
        raise CheckpointError("its files do not match their checksums")
    return StoredTensors(_files_of(directory), prefix)


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


def _files_of(directory: Path) -> list[Path]:
    """The files of tensors in a checkpoint."""
    return sorted(directory.glob("tensors*.safetensors"))


def _checksums(directory: Path) -> str:
    lines = []
    for path in (directory / STATE, *_files_of(directory)):
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
    return "".join(lines)


class HasParameters(Protocol):
    """What a module is to a checkpoint."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters by name."""
        ...


def trainable_tensors(module: HasParameters) -> dict[str, Tensor]:
    """Parameters that training changes, by name."""
    return {
        name: parameter.detach() for name, parameter in _parted(module).named_parameters() if parameter.requires_grad
    }


def load_trainable(module: HasParameters, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `trainable_tensors` gave; of a weight that is parted, the rows of this rank.

    Raises: CheckpointError where names or shapes differ.
    """
    parameters = {name: parameter for name, parameter in _parted(module).named_parameters() if parameter.requires_grad}
    if parameters.keys() != tensors.keys():
        odd = sorted(parameters.keys() ^ tensors.keys())
        raise CheckpointError(f"the checkpoint is of another model: {len(odd)} weights differ, such as {odd[0]}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            tensor = tensors[name]
            if parameter.shape != tensor.shape:
                raise CheckpointError(
                    f"the checkpoint is of another model: {name} is {tuple(tensor.shape)}, "
                    f"expected {tuple(parameter.shape)}"
                )
            own_rows(parameter).copy_(own_part(tensor, parameter))


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under longer names, so that several parts fit one checkpoint."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def subset(prefix: str, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """What `prefixed` put under `prefix`, with the short names again."""
    if isinstance(tensors, StoredTensors):
        return tensors.under(prefix)
    return {
        name.removeprefix(f"{prefix}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}/")
    }


# ── parted weights, and reading ──────────────────────────────────────────────────────────────────────────────────────


def _parted(module: HasParameters) -> HasParameters:
    """The module with its weights parted among the ranks again, where they are: a pass leaves some of them whole."""
    return resharded(module) if isinstance(module, nn.Module) else module


def _rows_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of this rank's rows of the tensors that are parted; a name tells where in the whole they begin."""
    return {
        f"stage/{name}@{first_row(tensor):012d}": _copied(own_rows(tensor))
        for name, tensor in tensors.items()
        if is_parted(tensor) and len(own_rows(tensor))
    }


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint, each read and put together when it is asked for, however many ranks wrote it."""

    def __init__(self, files: Iterable[Path], prefix: str = "") -> None:
        """Those in `files` whose names begin with `prefix`, without it."""
        self._files, self._prefix = tuple(files), prefix
        self._parts: dict[str, list[tuple[str, Path]]] = {}
        for path in self._files:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - it is no mapping
                    name = key.partition("@")[0]
                    if name.startswith(prefix):
                        self._parts.setdefault(name.removeprefix(prefix), []).append((key, path))

    def under(self, prefix: str) -> "StoredTensors":
        """Those whose names begin with `prefix` and a slash, without these."""
        return StoredTensors(self._files, f"{self._prefix}{prefix}/")

    def __getitem__(self, name: str) -> Tensor:
        parts = [_read(path, key) for key, path in sorted(self._parts[name])]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def _read(path: Path, key: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(key)
    return tensor
