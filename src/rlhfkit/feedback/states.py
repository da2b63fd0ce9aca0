"""What a store says of itself: its settings, tasks, and how far people are."""

import math
from dataclasses import dataclass
from typing import Literal

from rlhfkit.errors import ConfigError
from rlhfkit.feedback.votes import Pair, Side, Vote

__all__ = [
    "AnnotatorProgress",
    "QueueState",
    "Recorded",
    "RoundState",
    "Snapshot",
    "StoreSettings",
    "Task",
    "Undo",
]

Recorded = Literal["recorded", "repeated", "surplus"]


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """How many people see a pair, and for how long it is theirs; kept in the database."""

    overlap: int = 1
    """Votes that a pair needs; one more where they disagree."""
    calibration_overlap: int = 3
    """Votes that a pair of the calibration pool needs."""
    lease_seconds: float = 600.0
    """How long a task stays with a person who does nothing."""

    def __post_init__(self) -> None:
        for name in ("overlap", "calibration_overlap"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}; expected at least 1 vote for a pair")
        if not 0 < self.lease_seconds < math.inf:
            raise ConfigError(f"lease_seconds = {self.lease_seconds}; expected a positive number of seconds")


@dataclass(frozen=True, slots=True)
class Task:
    """A pair that one person is asked about now."""

    pair: Pair
    shown_left: Side
    """Which response stands left (or on top): drawn once for a person and a pair."""
    lease_until: float
    """Seconds since 1970, until when the pair is kept for this person."""
    position: int
    """Number of the task in this person's work, from 1."""


@dataclass(frozen=True, slots=True)
class Undo:
    """The event that takes back a vote."""

    id: str
    vote_id: str
    annotator: str
    created_at: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All pairs and the votes that stand (not taken back) at one moment, each in the order they came."""

    pairs: list[Pair]
    votes: list[Vote]


@dataclass(frozen=True, slots=True)
class AnnotatorProgress:
    """How far one person is."""

    num_voted: int
    """Votes that stand, without skips."""
    num_skipped: int
    num_left: int
    """Pairs that still need votes, and that this person has not decided on."""
    num_total: int
    """The three together."""
    active_seconds: float
    """Of all their votes, also of those that they took back."""


@dataclass(frozen=True, slots=True)
class RoundState:
    """How far one round is."""

    round: int
    num_pairs: int
    num_finished: int


@dataclass(frozen=True, slots=True)
class QueueState:
    """How far all are: `num_pairs` = `num_finished` + `num_leased` + `num_waiting`."""

    num_pairs: int
    num_finished: int
    """Pairs that have all the votes they need."""
    num_leased: int
    """Pairs that need votes and are before somebody now."""
    num_waiting: int
    """Pairs that need votes and are before nobody."""
    rounds: tuple[RoundState, ...]
