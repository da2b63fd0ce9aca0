"""The lines that a run appends to its files, and TensorBoard's: cut where a run goes on."""

import json
import logging
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, nullcontext, suppress
from io import BytesIO
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from rlhfkit.errors import CheckpointError, TrainingError
from rlhfkit.rundir.atomic import writing
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.lines import read_lines

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter
from rlhfkit.metrics import Scalar, rounded

__all__ = [
    "RunLog",
]

logger = logging.getLogger(__name__)


class RunLog:
    """Writer of `metrics.jsonl`, `samples.jsonl`, `observations.jsonl` and the TensorBoard files of a run.

    A line that a crash cut short is removed when the log is opened. Of several processes that work on a run one writes.
    """

    def __init__(
        self,
        run: RunDir,
        *,
        warn: Callable[[str], None] = logger.warning,
        tensorboard: bool = True,
        writes: bool = True,
        on_forget: Callable[[str], None] = lambda stage: None,
    ) -> None:
        """Open the files of `run`; `warn` hears what goes wrong with what only shows the run, and does not end it.

        Without `tensorboard` its files are not written, as where the run's directory is removed in the end; without
        `writes` nothing is, and the files are only read. `on_forget` hears which stage begins anew, whose lines go.
        """
        self._run, self._writes = run, writes
        self._warn, self._on_forget = warn, on_forget
        self._boards: dict[str, SummaryWriter] | None = {} if tensorboard and writes else None
        """None where they are not written, or once they could not be."""
        if writes:
            run.path.mkdir(parents=True, exist_ok=True)
        self._metrics, self._samples = (
            _open_lines(path) if writes else BytesIO() for path in (run.metrics, run.samples)
        )
        # Most runs have none, and no such file then.
        self._observations = _open_lines(run.observations) if writes and run.observations.exists() else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Where the disk is full, closing fails as writing did, which is reported already.
        with nullcontext() if error is None else suppress(CheckpointError):
            self.close()

    def close(self) -> None:
        """Close all files.

        Raises: CheckpointError where what is left could not be written.
        """
        with ExitStack() as stack:  # each is closed, whatever becomes of the others
            stack.enter_context(writing(self._run.path))
            for file in self._files().values():
                stack.callback(file.close)
            for board in (self._boards or {}).values():
                stack.callback(self._shown, board.close)

    def write(
        self,
        stage: str,
        iteration: int,
        metrics: Mapping[str, Scalar],
        *,
        labels: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Append one line to `metrics.jsonl`, and a TensorBoard point `stage/metric` for each metric.

        `labels`, as {"seed": 3}, tell one training of a stage from another.
        Raises: TrainingError where a metric is not finite.
        """
        values = {name: rounded(value) for name, value in metrics.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"{name} is {value} in stage {stage}, iteration {iteration}, where a finite number was expected; "
                    "the metrics before it show what grew: try a lower learning rate or a smaller max_grad_norm"
                )
        if not self._writes:
            return
        _append(self._metrics, {"stage": stage, "iteration": iteration, **labels, **values})
        if self._boards is not None:
            place = "/".join([stage, *(f"{name}-{label}" for name, label in labels.items())])
            self._shown(self._add_points, self._boards, place, stage, iteration, values)

    def write_samples(self, stage: str, iteration: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append one line for each row to `samples.jsonl`.

        Raises: TrainingError where a number in a row is not finite.
        """
        for row in rows:
            for name, value in row.items():
                if isinstance(value, float) and not math.isfinite(value):
                    raise TrainingError(f"{name} of a sample is {value} in stage {stage}, iteration {iteration}")
            values = {name: rounded(value) if isinstance(value, float) else value for name, value in row.items()}
            if self._writes:
                _append(self._samples, {"stage": stage, "iteration": iteration, **values})

    def write_observation(self, stage: str, iteration: int, kind: str, values: Mapping[str, Any]) -> None:
        """Append one line to `observations.jsonl`, the only one of this kind in this iteration: what an observer saw.

        `values` are what JSON knows.
        """
        if not self._writes:
            return
        if self._observations is None:
            with writing(self._run.observations):
                self._observations = _open_lines(self._run.observations)
        _append(self._observations, {"stage": stage, "iteration": iteration, "kind": kind, **values})

    def rows(self, stage: str, *, labels: Mapping[str, int] = MappingProxyType({})) -> Iterator[dict[str, Any]]:
        """The lines of one training that `metrics.jsonl` holds so far; a damaged one is skipped with a warning."""
        rows, damaged = read_lines(self._run.metrics)
        if damaged:
            self._warn(
                f"{self._run.metrics}:{damaged[0]}: the line is damaged ({len(damaged)} in all), and the rules that "
                "watch the run go on without it; restore the file from a copy if you have one"
            )
        for row in rows:
            if row.get("stage") == stage and all(row.get(name) == value for name, value in labels.items()):
                yield row

    def position(self) -> dict[str, int]:
        """Where the files end, in bytes, for a checkpoint; what is before it is safely on the disk."""
        if not self._writes:
            return {}
        position = {"observations_bytes": 0}  # where there are none yet
        for name, file in self._files().items():
            with writing(Path(file.name)):
                os.fsync(file.fileno())
            position |= {f"{name}_bytes": file.tell(), f"{name}_crc32": _checksum(file)}
        return position

    def truncate(self, position: Mapping[str, int]) -> None:
        """Forget what was written after `position`, so that a resumed run writes it again.

        Raises: CheckpointError where the files are not the ones that `position` was taken from.
        """
        if not self._writes:
            return
        for name, file in self._files().items():
            if f"{name}_bytes" in position:
                _cut(file, Path(file.name), position[f"{name}_bytes"])
            if f"{name}_crc32" in position and position[f"{name}_crc32"] != _checksum(file):
                self._warn(
                    f"{file.name} is not what it was when the checkpoint was written: something has changed it, and "
                    "what it says of the iterations before may be wrong; the training itself does not depend on it"
                )

    def forget(self, stage: str) -> None:
        """Forget what an attempt at `stage` wrote that left no checkpoint, so that the stage begins anew."""
        if not self._writes:
            return
        beginning = f'{{"stage": {json.dumps(stage)}, '.encode()
        for file in self._files().values():
            file.seek(0)
            position = 0
            for line in file:
                if line.startswith(beginning):  # stages do not mix, so that the rest is this stage's too
                    file.truncate(position)
                    if file is self._metrics:
                        self._on_forget(stage)
                    break
                position += len(line)
            file.seek(0, os.SEEK_END)

    def _files(self) -> dict[str, IO[bytes]]:
        """The files of lines that there are, by what they hold."""
        files = {"metrics": self._metrics, "samples": self._samples}
        return files if self._observations is None else {**files, "observations": self._observations}

    def _shown(self, show: Callable[..., None], *arguments: object) -> None:
        """Have TensorBoard's files written; where they cannot be, one warning says so, and no more are written."""
        try:
            show(*arguments)
        except Exception as error:  # whatever it is, it only shows the run
            if self._boards is not None:
                words = " ".join(str(error).split()) or type(error).__name__
                self._warn(
                    f"TensorBoard's files in {self._run.tensorboard} cannot be written ({words}); the run goes on "
                    f"without them: all numbers are in {self._run.metrics.name}"
                )
            self._boards = None

    def _add_points(
        self,
        boards: "dict[str, SummaryWriter]",
        place: str,
        stage: str,
        iteration: int,
        values: Mapping[str, float],
    ) -> None:
        """Write a point for each value; points of an earlier attempt from `iteration` on are purged.

        One directory for each training, since purging spares no tag of a directory.
        """
        if place not in boards:
            from torch.utils.tensorboard import SummaryWriter

            boards[place] = SummaryWriter(self._run.tensorboard / place, purge_step=iteration, flush_secs=30)
        for name, value in values.items():
            boards[place].add_scalar(f"{stage}/{name}", value, iteration)


def _checksum(file: IO[bytes]) -> int:
    """Of what the file holds; it is then at its end."""
    file.seek(0)
    checksum = 0
    while block := file.read(1 << 20):
        checksum = zlib.crc32(block, checksum)
    return checksum


def _open_lines(path: Path) -> IO[bytes]:
    """A file of lines to append to, without the half line at its end that a crash may have left."""
    file = path.open("ab+")
    file.seek(0)
    lines = file.read()
    file.truncate(lines.rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
    return file


def _append(file: IO[bytes], row: Mapping[str, Any]) -> None:
    line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    with writing(Path(file.name)):
        file.write(line.encode("utf-8", errors="replace"))  # a response may hold half a character
        file.flush()


def _cut(file: IO[bytes], path: Path, num_bytes: int) -> None:
    file.seek(max(num_bytes - 1, 0))
    if num_bytes and file.read(1) != b"\n":
        raise CheckpointError(
            f"{path} has no line that ends at byte {num_bytes}, where the checkpoint was written; "
            "restore the file, or start over with --fresh or another --run-dir"
        )
    file.truncate(num_bytes)
    file.seek(0, os.SEEK_END)
