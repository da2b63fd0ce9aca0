"""What a judge said, and what it took to ask: a file of lines, so that nothing is asked or paid for twice."""

import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rlhfkit.rundir.atomic import writing
from rlhfkit.rundir.lines import finite_or_none, row_of, whole_or_none

__all__ = ["Judgement", "Judgements", "Usage"]


@dataclass(frozen=True, slots=True)
class Usage:
    """What it took to ask."""

    calls: int = 0
    """Attempts, failed ones included."""
    prompt_tokens: int = 0
    """Tokens that the judge has read."""
    answer_tokens: int = 0
    """Tokens that it has written."""

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.answer_tokens + other.answer_tokens,
        )

    def cost(self, *, prompt_price: float, answer_price: float) -> float:
        """What the tokens cost, by prices of a million of them."""
        return (self.prompt_tokens * prompt_price + self.answer_tokens * answer_price) / 1e6


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge said of one response."""

    score: float
    reason: str
    usage: Usage = Usage()


class Judgements:
    """Judgements by the key of all that they depend on, in a file that only grows, or in memory alone.

    Each line is written at once, before its score is used. Lines of other judges in the same file are passed over, and
    so are damaged ones, which a kill may leave: their responses are judged again.
    """

    def __init__(self, path: Path | None, judge: str, *, score_range: tuple[float, float]) -> None:
        """Those of `judge`, a name for its settings, in its range. The file is made with the first line."""
        self._path, self._judge, self._range = path, judge, score_range
        self._found: dict[str, Judgement] = {}
        self._spent = Usage()
        self._open_calls = 0
        self._offset = 0
        self._lock = threading.Lock()

    @property
    def spent(self) -> Usage:
        """What was spent in all, calls that are under way included."""
        with self._lock:
            return self._spent + Usage(calls=self._open_calls)

    def find(self, key: str) -> Judgement | None:
        """The judgement of this key, where there is one."""
        return self._found.get(key)

    def open_call(self, allowed: Callable[[Usage], None]) -> None:
        """Count a call that is about to be made, unless `allowed` raises on what was spent before it."""
        with self._lock:
            allowed(self._spent + Usage(calls=self._open_calls))
            self._open_calls += 1

    def add(self, usage: Usage, *, key: str | None = None, judgement: Judgement | None = None, fault: str = "") -> None:
        """Note what the calls for one response came to, which are no longer under way: a judgement, or a fault.

        Raises: CheckpointError where the file cannot be written.
        """
        row: dict[str, object] = {"judge": self._judge}
        if judgement is not None:
            row |= {"key": key, "score": judgement.score, "reason": judgement.reason}
        else:
            row |= {"fault": fault}
        row |= {"calls": usage.calls, "prompt_tokens": usage.prompt_tokens, "answer_tokens": usage.answer_tokens}
        with self._lock:
            self._open_calls -= usage.calls
            if self._path is not None:
                _append(self._path, row)
                self._read()
            else:
                self._take(row)

    def refresh(self) -> None:
        """Read what others have added to the file."""
        with self._lock:
            self._read()

    def _read(self) -> None:
        if self._path is None or not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, end, _unfinished = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(end)
        for line in whole.split(b"\n"):
            if (row := row_of(line)) is not None:
                self._take(row)

    def _take(self, row: dict[str, object]) -> None:
        counts = [whole_or_none(row.get(name)) for name in ("calls", "prompt_tokens", "answer_tokens")]
        if row.get("judge") != self._judge or None in counts:
            return
        usage = Usage(*(count or 0 for count in counts))
        self._spent += usage
        score, key = finite_or_none(row.get("score")), row.get("key")
        if score is not None and self._range[0] <= score <= self._range[1] and isinstance(key, str):
            self._found.setdefault(key, Judgement(score, str(row.get("reason", "")), usage))


def _append(path: Path, row: dict[str, object]) -> None:
    """Write one line at the end of a file, in one piece, behind whatever a kill has left unfinished there."""
    data = json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
    with writing(path, num_bytes=len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            size = os.fstat(handle).st_size
            is_torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            os.write(handle, (b"\n" if is_torn else b"") + data)
            os.fsync(handle)
        finally:
            os.close(handle)
