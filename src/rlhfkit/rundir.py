"""The one place that knows the names of files inside a run."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rlhfkit.errors import CheckpointError

__all__ = ["ModelName", "RunDir", "read_json", "write_atomically", "write_directory_atomically", "write_json"]

ModelName = Literal["base", "sft", "reward_model", "judge", "policy", "value"]


class RunDir:
    """Paths inside a run directory, and its small records of what is finished."""

    def __init__(self, path: str | Path) -> None:
        """Point at `path`; nothing is created yet."""
        self.path = Path(path)
        self.recipe = self.path / "recipe.toml"
        self.config = self.path / "config.json"
        self.manifest = self.path / "manifest.json"
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.preferences = self.path / "preferences.jsonl"
        self.test_preferences = self.path / "test_preferences.jsonl"
        self.judge_preferences = self.path / "judge_preferences.jsonl"
        self.labels = self.path / "labels.db"
        self.simulated_labels = self.path / "simulated_labels.db"
        self.trust = self.path / "trust.json"
        self.reward_model_report = self.path / "reward_model.json"
        self.evaluation = self.path / "evaluation.json"
        self.against_last = self.path / "against_last_round.json"
        self.report = self.path / "report.html"
        self.episode = self.path / "episode.gif"
        self.tensorboard = self.path / "tensorboard"
        self.stages = self.path / "stages.json"
        self.checkpoints = self.path / "checkpoints"
        self.lock = self.path / "lock"

    def is_run(self) -> bool:
        """Whether a run has begun here; a model's directory has a `config.json` too."""
        return self.config.exists() and self.recipe.exists()

    def is_control(self) -> bool:
        """Whether the run is of a control task, not of a language model."""
        return self.config.exists() and "control" in (read_json(self.config).get("stages") or ())

    def model(self, name: ModelName) -> Path:
        """Directory of a model that the run makes; Hugging Face format, except the judge's."""
        return self.path / name

    def round(self, number: int) -> "RunDir":
        """The run of one round of the loop, from 1."""
        return RunDir(self.path / f"round-{number}")

    def newest_model(self) -> Path | None:
        """Directory of the language model that the run made last, if it has one yet."""
        if self.model("policy").exists():
            return self.model("policy")
        by_number = sorted(self.path.glob("round-*"), key=lambda path: (len(path.name), path.name), reverse=True)
        policies = [RunDir(path).model("policy") for path in by_number]
        return next((path for path in (*policies, self.model("sft"), self.model("base")) if path.exists()), None)

    def holds_votes(self, path: Path) -> bool:
        """Whether a file holds what people have said: a `labels.db`, or what SQLite writes beside it."""
        return path.name in {self.labels.name + ending for ending in ("", "-wal", "-shm", "-journal")}

    def finished_stages(self) -> dict[str, dict[str, Any]]:
        """Stage → what it left behind, for the stages that are complete."""
        if not self.stages.exists():
            return {}
        return dict(read_json(self.stages))

    def finish_stage(self, stage: str, record: dict[str, Any]) -> None:
        """Note that `stage` is complete."""
        write_json(self.stages, {**self.finished_stages(), stage: record})


def read_json(path: Path) -> Any:
    """Content of a JSON file of the run.

    Raises: CheckpointError where the file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}); restore it, or start over with --fresh or another --run-dir"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old content or the new, never a part."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a start after a crash, sees the old content or the new, never a part."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def write_directory_atomically(path: Path) -> Iterator[Path]:
    """A temporary directory to fill, which takes the place of `path` at the end, or vanishes if filling it failed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        for inside in (*temporary.rglob("*"), temporary):
            _sync(inside)
        os.chmod(temporary, 0o755)
        if path.exists():
            outgoing = path.with_name(f".{path.name}.outgoing")
            shutil.rmtree(outgoing, ignore_errors=True)
            path.rename(outgoing)
            temporary.rename(path)
            shutil.rmtree(outgoing)
        else:
            temporary.rename(path)
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _sync(path: Path) -> None:
    """Have the disk hold what a file or a directory holds now; of a directory, the names in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
