"""The votes of a store as arrays."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhfkit.errors import DataError
from rlhfkit.feedback.trust.report import Labels
from rlhfkit.feedback.votes import DEGREES, LARGEST_STRENGTH, Pair, Vote
from rlhfkit.records import Conversation
from rlhfkit.stats.agreement import (
    Statistic,
    ValueCounts,
    binomial_p_value,
    raw_agreement,
    share,
)

__all__ = [
    "FALSE_ALARMS",
    "FEWEST_VOTES",
    "SIGNS",
    "STRENGTHS",
    "TOO_FAST",
    "TOO_MANY_TIES",
    "Booleans",
    "Votes",
    "is_random",
]

Floats = NDArray[np.float64]


Integers = NDArray[np.int64]


Booleans = NDArray[np.bool_]


SIGNS = np.array([-1.0, 0.0, 1.0])


STRENGTHS = np.arange(-LARGEST_STRENGTH, LARGEST_STRENGTH + 1.0)


FALSE_ALARMS = 0.01
"""How often one kind of alarm may go off, in a whole report, where all people are equally good."""


FEWEST_VOTES = 20
"""With fewer votes there is no alarm about a person."""


TOO_FAST = 1 / 3
"""Share of the others' median time below which somebody cannot have read as they did."""


TOO_MANY_TIES = 0.9


def is_random(pair: Pair) -> bool:
    """Whether figures from this pair are honest, because nobody chose it for being doubtful."""
    return pair.reason != "active" or pair.is_calibration


class Votes:
    """Votes as arrays (N,), without skips; of a person's votes on one pair the last counts."""

    def __init__(self, labels: Labels, *, overlap: int = 1, calibration_overlap: int = 3) -> None:
        index = {pair.id: number for number, pair in enumerate(labels.pairs)}
        self.pairs = labels.pairs
        self.all = _last_of_each(labels.votes, index)
        self.rated = [vote for vote in self.all if vote.choice.kind != "skip"]
        self.names = sorted({vote.annotator for vote in self.all})
        numbers = {name: number for number, name in enumerate(self.names)}
        self.pair: Integers = np.array([index[vote.pair_id] for vote in self.rated], dtype=np.int64)
        self.person: Integers = np.array([numbers[vote.annotator] for vote in self.rated], dtype=np.int64)
        self.strength: Floats = np.array([vote.choice.strength for vote in self.rated], dtype=np.float64)
        self.sign: Floats = np.sign(self.strength)
        self.decided: Booleans = self.sign != 0
        self.on_left: Booleans = np.array([vote.choice.preferred == vote.shown_left for vote in self.rated], dtype=bool)
        self.round: Integers = np.array([self.pairs[number].round for number in self.pair], dtype=np.int64)
        self.random: Booleans = np.array([is_random(self.pairs[number]) for number in self.pair], dtype=bool)
        self.planned = self._planned(max(2, overlap), max(2, calibration_overlap))

    def _planned(self, overlap: int, calibration_overlap: int) -> Booleans:
        """Whether a vote is among the first ones on its pair, which no earlier vote can have called for."""
        earlier: Counter[int] = Counter()
        planned = np.zeros(len(self.pair), dtype=bool)
        for row, number in enumerate(self.pair.tolist()):
            planned[row] = earlier[number] < (calibration_overlap if self.pairs[number].is_calibration else overlap)
            earlier[number] += 1
        return planned

    @cached_property
    def fair(self) -> Booleans:
        """The votes from which agreement is measured."""
        return self.random & self.planned

    def counts(self, values: Floats, within: Booleans | None = None) -> ValueCounts:
        """Counts of each value (pairs, V) in the fair votes; values are SIGNS or STRENGTHS."""
        used = self.fair if within is None else self.fair & within
        numbers, rows = np.unique(self.pair[used], return_inverse=True)
        counts = np.zeros((len(numbers), len(values)))
        given = self.sign if values is SIGNS else self.strength
        np.add.at(counts, (rows, np.searchsorted(values, given[used])), 1)
        return ValueCounts(values, counts)

    def share_of(self, right: NDArray[Any], used: Booleans, *, unit: str = "votes") -> Statistic:
        """Share of the used votes that are right, with an interval that knows which belong to one pair."""
        num = len(self.pairs)
        totals = np.bincount(self.pair[used], minlength=num)
        return share(np.bincount(self.pair[used], right[used].astype(np.float64), minlength=num), totals, unit=unit)

    def left(self, used: Booleans) -> tuple[Statistic, float | None]:
        """Share of the left among used votes, which must be preferences, and how likely chance strays as far."""
        # Every vote has a side of its own, drawn at random, so votes on one pair are independent in this.
        taken = self.on_left[used]
        return share(taken, np.ones(len(taken)), unit="preferences"), binomial_p_value(int(taken.sum()), len(taken))

    def length_bias(self) -> tuple[Statistic, Statistic]:
        """(share of the longer answer where lengths differ, accuracy of always the longer), on the random stream."""
        longer = np.array([np.sign(_length(pair.response_a) - _length(pair.response_b)) for pair in self.pairs])
        side = longer[self.pair] if len(self.pair) else np.zeros(0)
        right = np.where(side == 0, 0.5, side == self.sign)
        used = self.decided & self.random
        return (
            self.share_of(right, used & (side != 0), unit="preferences"),
            self.share_of(right, used, unit="preferences"),
        )

    def agreement_by_degree(self) -> dict[int, Statistic]:
        """Degree → how often another person preferred the same side, over fair votes."""
        counts = np.zeros((len(self.pairs), 3))
        np.add.at(counts, (self.pair[self.fair], self.sign[self.fair].astype(np.int64) + 1), 1)
        result = {}
        for degree in DEGREES:
            used = self.fair & (np.abs(self.strength) == degree)
            numbers, column = self.pair[used], self.sign[used].astype(np.int64) + 1
            same, others = counts[numbers, column] - 1, counts[numbers].sum(axis=1) - 1
            num = len(self.pairs)
            result[degree] = share(
                np.bincount(numbers, same, minlength=num),
                np.bincount(numbers, others, minlength=num),
                unit="pairs of ratings",
            )
        return result

    @cached_property
    def sides(self) -> Floats:
        """How many fair votes prefer b and a, for each pair (pairs, 2)."""
        used = self.fair & self.decided
        counts = np.zeros((len(self.pairs), 2))
        np.add.at(counts, (self.pair[used], (self.sign[used] > 0).astype(np.int64)), 1)
        return counts

    def with_others(self, person: int) -> tuple[Statistic, Statistic, Statistic]:
        """(with the majority of the others, with each of the others, the others with one another), ties left out."""
        used = self.fair & self.decided & (self.person == person)
        rows, column = self.pair[used], (self.sign[used] > 0).astype(np.int64)
        rest = self.sides.copy()
        rest[rows, column] -= 1
        same, differ = rest[rows, column], rest[rows, 1 - column]
        return (
            share((same > differ), (same != differ), unit="pairs"),
            share(same, same + differ, unit="pairs of ratings"),
            raw_agreement(ValueCounts(SIGNS[SIGNS != 0], rest)),
        )


def _last_of_each(votes: Sequence[Vote], index: Mapping[str, int]) -> list[Vote]:
    last: dict[tuple[str, str], Vote] = {}
    for vote in votes:
        if vote.pair_id not in index:
            raise DataError(
                f"vote {vote.id!r} is about pair {vote.pair_id!r}, which is not among the pairs; "
                "expected a snapshot with both; take pairs and votes from the same store"
            )
        last[vote.pair_id, vote.annotator] = vote
    return list(last.values())


def _length(response: str | Conversation) -> int:
    return len(response) if isinstance(response, str) else sum(len(turn.content) for turn in response)
