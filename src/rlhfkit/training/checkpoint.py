"""Checkpoints: whole or not there, checked when read, and the one before stands in for a damaged one."""

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhfkit.errors import CheckpointError
from rlhfkit.rundir import read_json, write_atomically, write_directory_atomically, write_json
from rlhfkit.seeding import capture_rng, restore_rng

__all__ = ["Checkpoint", "Checkpoints", "HasParameters", "load_trainable", "prefixed", "subset", "trainable_tensors"]

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


class Checkpoints:
    """The checkpoints of one stage, in a directory; the last two are kept."""

    def __init__(self, directory: Path, *, warn: Callable[[str], None], keep: int = 2) -> None:
        """Keep the last `keep` in `directory`; `warn` hears of damaged ones."""
        self.directory, self.warn, self.keep = directory, warn, keep

    def save(self, iteration: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write a checkpoint, with the state of the global random generators, then remove what it replaces."""
        rng = capture_rng()
        stored = {f"stage/{name}": tensor for name, tensor in tensors.items()}
        stored |= {"rng/numpy": rng["numpy"][1], "rng/torch": rng["torch"]}
        stored |= {f"rng/cuda{index}": tensor for index, tensor in enumerate(rng["cuda"])}
        newest = self.directory / f"{iteration:08d}"
        with write_directory_atomically(newest) as temporary:
            # A copy of each, since tied tensors may not share memory in the file.
            save_file(
                {name: tensor.detach().cpu().contiguous().clone() for name, tensor in stored.items()},
                temporary / TENSORS,
            )
            write_json(
                temporary / STATE,
                {
                    "iteration": iteration,
                    "state": state,
                    "rng": {"python": rng["python"], "numpy": [rng["numpy"][0], *rng["numpy"][2:]]},
                },
            )
            write_atomically(temporary / CHECKSUMS, _checksums(temporary))
        # Later ones are of a future that a damaged checkpoint took back; anything else, what a kill left half-written.
        kept = [path for path in self._all() if path <= newest][-self.keep :]
        for path in self.directory.iterdir():
            if path not in kept:
                shutil.rmtree(path)

    def load_newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, with the global random generators put back to it; None if there is none.

        Raises: CheckpointError where there are checkpoints, but all are damaged.
        """
        candidates = self._all()
        for directory in reversed(candidates):
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
        return Checkpoint(record["iteration"], tensors, record["state"])

    def _all(self) -> list[Path]:
        if not self.directory.is_dir():
            return []
        return sorted(path for path in self.directory.iterdir() if re.fullmatch(r"\d{8}", path.name))


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
