"""What is said of votes: the report and its parts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from rlhfkit.feedback.votes import Pair, Vote
from rlhfkit.stats.agreement import (
    Statistic,
)

__all__ = [
    "Accuracy",
    "AnnotatorTrust",
    "Ceiling",
    "Labels",
    "PairOfPeople",
    "RoundTrust",
    "TrustReport",
]


class Labels(Protocol):
    """What a report is made from; a snapshot of the store is one."""

    @property
    def pairs(self) -> Sequence[Pair]:
        """All pairs."""

    @property
    def votes(self) -> Sequence[Vote]:
        """The votes that stand, in order."""


@dataclass(frozen=True, slots=True)
class AnnotatorTrust:
    """One person."""

    name: str
    num_votes: int
    """Preferences, ties and both bad; skips are apart."""
    num_skips: int
    num_ties: int
    """Ties and both bad."""
    num_flags: int
    median_active_seconds: float | None
    with_majority: Statistic
    """How often this person prefers what most of the others do, on the random stream; ties are left out."""
    agreement: Statistic
    """How often another person prefers what this one does."""
    others: Statistic
    """How often two of the others prefer the same."""
    left: Statistic
    """How often the answer on the left was preferred."""
    left_p_value: float | None
    alarms: tuple[str, ...]
    """Why the votes may be careless, in words; none is the rule."""

    @property
    def is_careless(self) -> bool:
        """Whether there is any alarm."""
        return bool(self.alarms)


@dataclass(frozen=True, slots=True)
class PairOfPeople:
    """Two people who voted on the same pairs."""

    first: str
    second: str
    kappa: Statistic
    """Cohen's, on which side is better; a tie is a value."""
    weighted_kappa: Statistic
    """Cohen's with quadratic weights, on the degrees."""


@dataclass(frozen=True, slots=True)
class RoundTrust:
    """One round of the loop."""

    round: int
    num_pairs: int
    """Pairs with a vote."""
    num_votes: int
    alpha: Statistic
    agreement: Statistic
    """Without ties."""


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What disagreement leaves to a reward model's accuracy."""

    one: Statistic
    """How often one person is right, which a model measured on single labels cannot exceed."""
    majority: Statistic
    """How often the majority of three is right."""
    measured: float | None
    """The reward model's accuracy on single labels, where it was given."""
    without_noise: float | None
    """How often the model would then be right about the truth."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How often a predictor agrees with single labels; a prediction of 0 counts by half."""

    all: Statistic
    by_degree: dict[int, Statistic]
    """Degree 1 to 4 → the same for preferences of that degree."""

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return {name: _with_text_keys(value) for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class TrustReport:
    """How far the labels can be trusted."""

    num_pairs: int
    num_labelled_pairs: int
    num_votes: int
    """Preferences, ties and both bad."""
    num_preferences: int
    num_ties: int
    num_both_bad: int
    skips: dict[str, int]
    """Reason → number of skips."""
    flags: dict[str, int]
    """Flag → number of answers flagged, once for each vote."""
    num_surplus: int
    num_random_pairs: int
    """Labelled pairs of the random stream."""
    num_random_votes: int
    num_shared_pairs: int
    """Those with two votes or more, from which agreement comes."""
    num_late_votes: int
    """Votes of the random stream that agreement leaves out: perhaps asked for because the first ones disagreed."""
    alpha: Statistic
    """Krippendorff's, nominal: which side is better; a tie is a value."""
    alpha_degrees: Statistic
    """Krippendorff's, ordinal, on -4 to 4."""
    agreement: Statistic
    agreement_without_ties: Statistic
    agreement_half: Statistic
    """A tie agrees by half with a preference."""
    ac1: Statistic
    """Gwet's, which side; a tie is a value if anybody gave one."""
    ceiling: Ceiling
    left: Statistic
    """How often the answer on the left was preferred; sides are random, so half is fair."""
    left_p_value: float | None
    longer: Statistic
    """How often the longer answer was preferred, where lengths differ."""
    always_longer: Statistic
    """Accuracy of always taking the longer answer; equal lengths count by half."""
    by_degree: dict[int, Statistic]
    """Degree that one person gave → how often another one preferred the same side; a tie is a no."""
    people: tuple[PairOfPeople, ...]
    annotators: tuple[AnnotatorTrust, ...]
    rounds: tuple[RoundTrust, ...]

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON; numbers as keys become text."""
        return {name: _with_text_keys(value) for name, value in asdict(self).items()}


def _with_text_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _with_text_keys(item) for key, item in value.items()}
    return [_with_text_keys(item) for item in value] if isinstance(value, list | tuple) else value
