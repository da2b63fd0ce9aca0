"""What a study asks of whoever does its runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from rlhfkit.rundir.study import Point
from rlhfkit.tuning.claims import Claim
from rlhfkit.tuning.design import Job
from rlhfkit.tuning.finals import TestRun
from rlhfkit.tuning.objective import Row

__all__ = ["Outcome", "Runner"]


@dataclass(frozen=True)
class Outcome:
    """How a stretch of a run ended."""

    state: Literal["done", "failed", "interrupted"]
    seconds: float
    cause: str = ""


class Runner(Protocol):
    """What brings runs forward. Tests have one that knows the answer."""

    def prepare(self, claim: Claim) -> Outcome:
        """Make what all runs share."""
        ...

    def advance(self, job: Job, claim: Claim) -> Outcome:
        """Bring a run to where the job says, from wherever it stands."""
        ...

    def rows(self, job: Job) -> Sequence[Row]:
        """The log of its PPO."""
        ...

    def points(self, job: Job) -> list[Point]:
        """Its evaluations so far."""
        ...

    def stopped(self, job: Job) -> str:
        """The rule that ended its PPO, in words; empty where none did."""
        ...

    def tested(self, job: Job) -> TestRun:
        """What its evaluation on untouched prompts says."""
        ...

    def interrupt(self) -> None:
        """Have all that runs save, and end."""
        ...
