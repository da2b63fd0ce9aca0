"""What was done, line by line: which run, for how long, and how it ended."""

import json
import math
from typing import Any

from rlhfkit.rundir.lines import read_lines
from rlhfkit.rundir.study import StudyDir
from rlhfkit.tuning.design import Job
from rlhfkit.tuning.runner import Outcome

__all__ = ["BASE", "Ledger"]

BASE, SEARCH = "base", "search"
"""Lines that are of no trial."""


class Ledger:
    """The file, read anew whenever something is asked: other processes write there too."""

    def __init__(self, study: StudyDir) -> None:
        """Of a study."""
        self._path = study.ledger

    def add(self, job: Job, outcome: Outcome) -> None:
        """A stretch has ended."""
        self.write(job.name, job.purpose, outcome)

    def write(self, run: str, purpose: str, outcome: Outcome) -> None:
        """The same of any run."""
        row = {"run": run, "purpose": purpose, "seconds": round(outcome.seconds, 2), "state": outcome.state}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**row, "cause": outcome.cause}, ensure_ascii=False) + "\n")

    def end_search(self) -> None:
        """No trial is begun, or goes on, from now on."""
        self.write(SEARCH, SEARCH, Outcome("done", 0.0))

    def is_searched(self) -> bool:
        """Whether that was said."""
        return self._has(SEARCH)

    def has_base(self) -> bool:
        """Whether what all runs share is made."""
        return self._has(BASE)

    def rows(self) -> list[dict[str, Any]]:
        """All lines."""
        return read_lines(self._path)[0]

    def has(self, job: Job) -> bool:
        """Whether a run of confirmation or test has come to an end, good or bad."""
        return any(row["run"] == job.name and row["state"] != "interrupted" for row in self.rows())

    def is_done(self, job: Job) -> bool:
        """Whether it has come to a good end."""
        return self._has(job.name)

    def _has(self, run: str) -> bool:
        return any(row["run"] == run and row["state"] == "done" for row in self.rows())

    def num_whole_runs(self) -> int:
        """Runs of confirmation and test that have come to a good end."""
        return sum(row["purpose"] not in (BASE, SEARCH) and row["state"] == "done" for row in self.rows())

    def seconds_of(self, run: str) -> float:
        """That a run took so far."""
        return math.fsum(row["seconds"] for row in self.rows() if row["run"] == run)

    def seconds(self, purpose: str | None = None) -> float:
        """Of all runs, or of those of a purpose."""
        return math.fsum(row["seconds"] for row in self.rows() if purpose in (None, row["purpose"]))
