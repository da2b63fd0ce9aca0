"""What a run was made of: versions, seed, machine, hashes of data and models."""

import hashlib
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from rlhfkit.config.secrets import hidden_in
from rlhfkit.errors import CheckpointError, RlhfkitError
from rlhfkit.rundir.atomic import read_json, write_json
from rlhfkit.rundir.directory import RunDir
from rlhfkit.wording import counted

__all__ = ["Manifest", "hash_of_directory", "hash_of_file", "hashes_of_files"]

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "scikit-learn",
    "gymnasium",
)


class Manifest:
    """The manifest of a run, written anew with every fact that is added."""

    def __init__(
        self,
        run: RunDir,
        *,
        seed: int,
        device: str,
        num_threads: int,
        dtype: dict[str, Any] | None = None,
        date: str | None = None,
        writes: bool = True,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Continue the manifest of `run`, or begin it; without `writes` it stays in memory, and no file is hashed.

        `dtype` is the type that it computes in, and why; `date` is the one that chat templates are given. `warn` hears
        where the run will not end with the same bits.
        """
        self.run, self._writes = run, writes
        self._checked: set[str] = set()
        known: dict[str, Any] = read_json(run.manifest) if run.manifest.exists() else {}
        before, now = known.get("num_threads"), num_threads
        if before not in (None, now) and device.startswith("cpu") and _is_under_way(run):
            warn(
                f"this run began with {counted(before, 'thread')} and goes on with {now}, which add sums up "
                f"in another order, so it will not end with the same bits; set OMP_NUM_THREADS={before} for that"
            )
        self.content: dict[str, Any] = {
            "rlhfkit": metadata.version("rlhfkit"),
            "versions": {"python": platform.python_version(), **_versions()},
            "seed": seed,
            "platform": platform.platform(),
            "device": device,
            "num_threads": now,
            **({} if dtype is None else {"dtype": dtype}),
            **({} if date is None else {"date": date}),
            "data": known.get("data", []),
            "models": known.get("models", []),
            "stages": known.get("stages", {}),
            **{name: known[name] for name in ("fast_paths", "parallel") if name in known},
        }
        self._write()

    def add_data(self, sources: Iterable[dict[str, Any]]) -> None:
        """Note files that were read."""
        for source in sources:
            if source not in self.content["data"]:
                self.content["data"].append(source)
        self._write()

    def add_model(self, name: str, directory: str, *, template: str | None = None) -> None:
        """Note a model that was read or written, with the fingerprint of its chat template."""
        if not self._writes:
            return
        entry = {"name": name, "path": directory, "sha256": hash_of_directory(Path(directory)), "template": template}
        self.content["models"] = [model for model in self.content["models"] if model["name"] != name] + [entry]
        self._write()

    def add(self, name: str, facts: dict[str, Any]) -> None:
        """Note facts under a name of their own."""
        self.content[name] = facts
        self._write()

    def add_made(self, stage: str, directory: Path) -> None:
        """Note the SHA-256 of each file of a model that `stage` wrote, for the stages that read it."""
        if not self._writes:
            return
        made = self.stage(stage).get("made", {})
        self._checked.add(directory.name)
        self.add_stage(stage, made={**made, directory.name: hashes_of_files(directory)})

    def refuse_damaged(self) -> None:
        """Check that what earlier stages wrote is still what they wrote.

        Raises: CheckpointError with the first file that is another one.
        """
        if not self._writes:
            return
        for stage, facts in self.content["stages"].items():
            for name, hashes in facts.get("made", {}).items():
                if name in self._checked or not (self.run.path / name).is_dir():
                    continue  # a directory that is gone is reported by who reads it
                now = hashes_of_files(self.run.path / name)
                for file, sha256 in hashes.items():
                    if now.get(file) != sha256:
                        state = f"its SHA-256 was {sha256[:12]}…, is {now[file][:12]}…" if file in now else "it is gone"
                        raise CheckpointError(
                            f"{self.run.path / name / file} is not what the stage {stage} wrote ({state}): it is "
                            "damaged, or was exchanged; put back what it was, choose another --run-dir, or start over "
                            "here with --fresh"
                        )
                self._checked.add(name)

    def add_inputs(self, stage: str, inputs: Iterable[Mapping[str, str]]) -> None:
        """Note the models and the code that `stage` reads from outside of the run."""
        self.add_stage(stage, inputs=[dict(entry) for entry in inputs])

    def stage(self, stage: str) -> dict[str, Any]:
        """What is known of a stage."""
        facts: dict[str, Any] = self.content["stages"].get(stage, {})
        return facts

    def add_stage(self, stage: str, **facts: Any) -> None:
        """Note facts about a stage."""
        self.content["stages"][stage] = {**self.content["stages"].get(stage, {}), **facts}
        self._write()

    @contextmanager
    def stop_timed(self, stage: str) -> Iterator[None]:
        """Where the block is stopped, or ends in an error, note how long it took, with earlier stops of the stage."""
        start = time.monotonic()
        try:
            yield
        except BaseException:
            with suppress(CheckpointError):  # the disk may be why
                self.add_stage(stage, stopped_seconds=self.seconds_of(stage, time.monotonic() - start))
            raise

    def seconds_of(self, stage: str, seconds: float) -> float:
        """So many seconds, and those of earlier starts that were stopped; of one that was killed nothing is known."""
        return round(float(self.stage(stage).get("stopped_seconds", 0.0)) + seconds, 1)

    @contextmanager
    def error_noted(self, stage: str) -> Iterator[None]:
        """Keep why the block ended, for whoever asks later; what an earlier start had noted is gone."""
        self.content["stages"].get(stage, {}).pop("error", None)
        try:
            yield
        except RlhfkitError as error:
            with suppress(CheckpointError):  # the disk may be why
                self.add_stage(stage, error=str(error))
            raise

    def _write(self) -> None:
        if self._writes:
            write_json(self.run.manifest, hidden_in(self.content))


def _versions() -> dict[str, str]:
    """Of the packages that may change a run's numbers, as far as they are installed."""
    versions = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _is_under_way(run: RunDir) -> bool:
    """Whether a stage has a checkpoint from which it would go on."""
    begun = {path.name for path in run.checkpoints.iterdir()} if run.checkpoints.is_dir() else set()
    return bool(begun - run.finished_stages().keys())


MODEL_FILES = (".safetensors", ".json", ".jinja", ".model", ".txt", ".py")
"""Endings of the files of a model that change what it computes, or how text becomes its tokens."""


def hashes_of_files(directory: Path) -> dict[str, str]:
    """File → SHA-256, of the files of a model."""
    files = sorted(path for path in directory.iterdir() if path.suffix in MODEL_FILES and path.is_file())
    return {path.name: hash_of_file(path) for path in files}


def hash_of_file(path: Path) -> str:
    """SHA-256 of what a file holds."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def hash_of_directory(directory: Path) -> str | None:
    """SHA-256 over the weights in a directory; None for a hub id."""
    files = sorted(directory.glob("*.safetensors")) if directory.is_dir() else []
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
