"""The one place that knows the names of files inside a run."""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

from rlhfkit.errors import CheckpointError, RlhfkitError

__all__ = [
    "ModelName",
    "RunDir",
    "default_run_dir",
    "read_json",
    "read_lines",
    "write_atomically",
    "write_directory_atomically",
    "write_json",
    "writing",
]

# As `tempfile` names what becomes NAME, and what makes room for it.
LEFTOVER = re.compile(r"\.(.+)\.(?:[a-z0-9_]{8}|outgoing)")

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
        self.stacks = self.path / "stacks.txt"
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

    def leftovers(self) -> Iterator[Path]:
        """What kills left half-written, of files and directories that are written atomically."""
        own = {path.name for path in vars(self).values()} | set(get_args(ModelName))
        for path in [*self.path.glob(".*"), *self.model("policy").glob(".seed-*")]:
            name = LEFTOVER.fullmatch(path.name)
            if name and (name[1] in own or re.fullmatch(r"seed-\d+", name[1])):
                yield path

    def finished_stages(self) -> dict[str, dict[str, Any]]:
        """Stage → what it left behind, for the stages that are complete."""
        if not self.stages.exists():
            return {}
        return dict(read_json(self.stages))

    def finish_stage(self, stage: str, record: dict[str, Any]) -> None:
        """Note that `stage` is complete."""
        write_json(self.stages, {**self.finished_stages(), stage: record})


def default_run_dir(recipe_name: str, seed: int) -> Path:
    """Where a recipe runs if nobody says otherwise."""
    return Path("runs") / (recipe_name + (f"-seed{seed}" if seed else ""))


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


def read_lines(path: Path) -> tuple[list[dict[str, Any]], tuple[int, ...]]:
    """The objects in a file of lines, and the numbers of the lines that are none, from 1.

    Blank lines are passed over, and so is a last one without an end, which is still being written.
    """
    if not path.exists():
        return [], ()
    rows, damaged = [], []
    *lines, _unfinished = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            damaged.append(number)
    return rows, tuple(damaged)


FULL = {errno.ENOSPC, errno.EDQUOT}
REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "this user may not write there",
    errno.EPERM: "this user may not write there",
    errno.EFBIG: "the file would be larger than this process may write (ulimit -f)",
    errno.EIO: "the disk reports an error",
    errno.ESTALE: "the network file system is gone",
    errno.EMFILE: "too many files are open (ulimit -n)",
}


@contextmanager
def writing(path: Path, *, num_bytes: int | None = None) -> Iterator[None]:
    """Nothing; but where the block cannot write to `path`, the error says why, and how many bytes there is room for.

    Raises: CheckpointError in the place of OSError, and of what other libraries make of one.
    """
    try:
        yield
    except RlhfkitError:
        raise
    except Exception as error:
        number = _errno_of(error)
        if number not in REASONS:
            raise
        wanted = f"; {num_bytes / 1e6:.3g} MB were to be written" if num_bytes else ""
        room = f", {_free_bytes(path) / 1e6:.3g} MB are free" if number in FULL else ""
        remedy = "make room" if number in FULL else "see to it"
        raise CheckpointError(
            f"cannot write {path}: {REASONS[number]}{wanted}{room}; what was written before is whole: {remedy}, then "
            "give the same command again to go on"
        ) from error


def _errno_of(error: BaseException) -> int | None:
    """The operating system's number, also of an error that safetensors or torch has put into words."""
    if isinstance(error, OSError):
        return error.errno
    number = re.search(r"os error (\d+)", str(error))
    return int(number[1]) if number else None


def _free_bytes(path: Path) -> int:
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old content or the new, never a part."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a start after a crash, sees the old content or the new, never a part.

    Raises: CheckpointError where the disk is full, or may not be written to.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    with writing(path, num_bytes=len(data)):
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
def write_directory_atomically(path: Path, *, num_bytes: int | None = None) -> Iterator[Path]:
    """A temporary directory to fill, which takes the place of `path` at the end, or vanishes if filling it failed.

    Raises: CheckpointError where the disk is full, or may not be written to; `num_bytes` says what was to be written.
    """
    with writing(path, num_bytes=num_bytes):
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
