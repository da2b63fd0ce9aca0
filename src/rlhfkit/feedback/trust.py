"""How far people's labels can be trusted: votes → TrustReport, for the terminal, a page and JSON.

Agreement, length and the ceiling come from the *random stream* alone: pairs that were drawn at random, came from a file
or belong to the calibration pool. Pairs chosen because they are doubtful would make everybody look worse.
"""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rlhfkit.errors import DataError
from rlhfkit.feedback.votes import DEGREES, LARGEST_STRENGTH, Pair, Vote
from rlhfkit.records import Conversation
from rlhfkit.stats.agreement import (
    Statistic,
    ValueCounts,
    accuracy_without_noise,
    annotator_accuracy,
    binomial_p_value,
    cohen_kappa,
    confusion,
    gwet_ac1,
    krippendorff_alpha,
    majority_of_three,
    raw_agreement,
    share,
)

__all__ = [
    "Accuracy",
    "AnnotatorTrust",
    "Ceiling",
    "Labels",
    "PairOfPeople",
    "RoundTrust",
    "TrustReport",
    "accuracy_by_degree",
    "is_random",
    "trust_report",
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
Z = 1.959964
MOST_LINES = 10
"""Pairs of people shown in the terminal, the worst first."""


class Labels(Protocol):
    """What a report is made from; a snapshot of the store is one."""

    @property
    def pairs(self) -> Sequence[Pair]:
        """All pairs."""

    @property
    def votes(self) -> Sequence[Vote]:
        """The votes that stand, in order."""


# ── what comes back ──────────────────────────────────────────────────────────────────────────────────────────────────


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

    def lines(self) -> list[str]:
        """The report as text for the terminal."""
        return [*_summary_lines(self), *_bias_lines(self), *_people_lines(self)]


def trust_report(
    labels: Labels,
    *,
    overlap: int = 1,
    calibration_overlap: int = 3,
    measured_accuracy: float | None = None,
    generator: np.random.Generator | None = None,
) -> TrustReport:
    """How far the labels can be trusted, whatever there is of them.

    `overlap` and `calibration_overlap` are the votes that each pair gets by plan, as in the store's settings. Later
    votes (from the third on, at least) are not used for agreement, because they may have been asked for only where the
    first two disagreed. `measured_accuracy` is the reward model's on single labels. The generator draws the bootstrap;
    by default the same labels give the same report.
    Raises: DataError where a vote is about an unknown pair.
    """
    generator = np.random.default_rng(0) if generator is None else generator
    votes = _Votes(labels, overlap=overlap, calibration_overlap=calibration_overlap)
    signs, strengths = votes.counts(SIGNS), votes.counts(STRENGTHS)
    without_ties = raw_agreement(signs, ties="drop")
    left, left_p_value = votes.left(votes.decided)
    longer, always_longer = votes.length_bias()
    kinds = Counter(vote.choice.kind for vote in votes.all)
    shared = signs.with_two_or_more()
    return TrustReport(
        num_pairs=len(labels.pairs),
        num_labelled_pairs=len(set(votes.pair.tolist())),
        num_votes=len(votes.rated),
        num_preferences=kinds["preference"],
        num_ties=kinds["tie"],
        num_both_bad=kinds["both_bad"],
        skips=dict(Counter(str(vote.choice.skip_reason) for vote in votes.all if vote.choice.kind == "skip")),
        flags=dict(Counter(flag for vote in votes.all for flag in (*vote.flags_a, *vote.flags_b))),
        num_surplus=sum(vote.is_surplus for vote in votes.all),
        num_random_pairs=len(set(votes.pair[votes.random].tolist())),
        num_random_votes=int(votes.random.sum()),
        num_shared_pairs=len(shared),
        num_late_votes=int((votes.random & ~votes.planned).sum()),
        alpha=krippendorff_alpha(signs, level="nominal", generator=generator),
        alpha_degrees=krippendorff_alpha(strengths, level="ordinal", generator=generator),
        agreement=raw_agreement(signs),
        agreement_without_ties=without_ties,
        agreement_half=raw_agreement(signs, ties="half"),
        ac1=gwet_ac1(_without_unused_tie(signs)),
        ceiling=_ceiling(without_ties, measured_accuracy),
        left=left,
        left_p_value=left_p_value,
        longer=longer,
        always_longer=always_longer,
        by_degree=votes.agreement_by_degree(),
        people=_pairs_of_people(votes),
        annotators=_annotators(votes),
        rounds=tuple(_round(votes, number, generator) for number in np.unique(votes.round).tolist()),
    )


def is_random(pair: Pair) -> bool:
    """Whether figures from this pair are honest, because nobody chose it for being doubtful."""
    return pair.reason != "active" or pair.is_calibration


def accuracy_by_degree(labels: Labels, predictions: Mapping[str, float], *, only_random: bool = True) -> Accuracy:
    """How often predictions agree with the preferences that people stated, overall and by their degree.

    `predictions`: id of a pair → how much better `response_a` is. Pairs without one are left out, ties and skips too.
    Raises: DataError where a vote is about an unknown pair.
    """
    votes = _Votes(labels)
    predicted = np.array([predictions.get(pair.id, np.nan) for pair in labels.pairs])[votes.pair]
    used = votes.decided & ~np.isnan(predicted) & (votes.random | (not only_random))
    right = np.where(predicted == 0, 0.5, np.sign(predicted) == votes.sign)
    degrees = np.abs(votes.strength)
    return Accuracy(
        votes.share_of(right, used), {degree: votes.share_of(right, used & (degrees == degree)) for degree in DEGREES}
    )


def _ceiling(agreement: Statistic, measured: float | None) -> Ceiling:
    one = annotator_accuracy(agreement)
    known = one.value is not None and measured is not None
    without_noise = accuracy_without_noise(measured, one.value) if known else None  # type: ignore[arg-type]
    return Ceiling(one, majority_of_three(one), measured, without_noise)


def _without_unused_tie(signs: ValueCounts) -> ValueCounts:
    # AC1 rises with each value of the scale, so one that nobody needs must not be counted.
    used = (signs.values != 0) | bool(signs.counts[:, signs.values == 0].any())
    return ValueCounts(signs.values[used], signs.counts[:, used])


def _round(votes: "_Votes", number: int, generator: np.random.Generator) -> RoundTrust:
    within = votes.round == number
    signs = votes.counts(SIGNS, within)
    return RoundTrust(
        number,
        num_pairs=len(set(votes.pair[within].tolist())),
        num_votes=int(within.sum()),
        alpha=krippendorff_alpha(signs, generator=generator),
        agreement=raw_agreement(signs, ties="drop"),
    )


# ── votes as arrays ──────────────────────────────────────────────────────────────────────────────────────────────────


class _Votes:
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


# ── people ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _pairs_of_people(votes: _Votes) -> tuple[PairOfPeople, ...]:
    numbers, rows = np.unique(votes.pair[votes.fair], return_inverse=True)
    table = np.full((len(numbers), len(votes.names)), np.nan)
    table[rows, votes.person[votes.fair]] = votes.strength[votes.fair]
    table = table[(~np.isnan(table)).sum(axis=1) >= 2]
    rated = (~np.isnan(table)).astype(np.int64)
    shared = rated.T @ rated
    return tuple(
        PairOfPeople(
            votes.names[first],
            votes.names[second],
            cohen_kappa(confusion(np.sign(table[:, first]), np.sign(table[:, second]), values=SIGNS)),
            cohen_kappa(confusion(table[:, first], table[:, second], values=STRENGTHS), weights="quadratic"),
        )
        for first, second in combinations(range(len(votes.names)), 2)
        if shared[first, second]
    )


def _annotators(votes: _Votes) -> tuple[AnnotatorTrust, ...]:
    events: dict[str, list[Vote]] = {name: [] for name in votes.names}
    for vote in votes.all:
        events[vote.annotator].append(vote)
    medians = [_median_seconds(events[name]) for name in votes.names]
    return tuple(_annotator(votes, number, events[name], medians) for number, name in enumerate(votes.names))


def _median_seconds(events: Sequence[Vote]) -> float | None:
    times = [vote.active_seconds for vote in events if vote.choice.kind != "skip"]
    return statistics.median(times) if times else None


def _annotator(votes: _Votes, person: int, events: Sequence[Vote], medians: Sequence[float | None]) -> AnnotatorTrust:
    own = votes.person == person
    with_majority, agreement, others = votes.with_others(person)
    left, left_p_value = votes.left(own & votes.decided)
    level = FALSE_ALARMS / len(votes.names)
    alarms = (
        _disagrees(agreement, others, level),
        _clicks_one_side(left, left_p_value, level),
        _hurries(medians[person], [time for other, time in enumerate(medians) if other != person]),
        _decides_nothing(votes, own),
    )
    return AnnotatorTrust(
        votes.names[person],
        num_votes=int(own.sum()),
        num_skips=sum(vote.choice.kind == "skip" for vote in events),
        num_ties=int((own & ~votes.decided).sum()),
        num_flags=sum(len(vote.flags_a) + len(vote.flags_b) for vote in events),
        median_active_seconds=medians[person],
        with_majority=with_majority,
        agreement=agreement,
        others=others,
        left=left,
        left_p_value=left_p_value,
        alarms=tuple(alarm for alarm in alarms if alarm and own.sum() >= FEWEST_VOTES),
    )


def _disagrees(agreement: Statistic, others: Statistic, level: float) -> str:
    """An alarm where somebody agrees with the others less than those do, by a one-sided test of two shares."""
    if agreement.value is None or others.value is None or min(agreement.n, others.n) < FEWEST_VOTES:
        return ""
    deviation = math.hypot(_deviation(agreement), _deviation(others))
    if 1 - statistics.NormalDist().cdf((others.value - agreement.value) / deviation) >= level:
        return ""
    return (
        f"agrees with another person in {_percent(agreement.value)} of {agreement.n} pairs of ratings; "
        f"the others with one another in {_percent(others.value)}"
    )


def _deviation(statistic: Statistic) -> float:
    """Standard error of a share, from its interval, which is never empty."""
    assert statistic.low is not None and statistic.high is not None
    return (statistic.high - statistic.low) / (2 * Z)


def _clicks_one_side(left: Statistic, p_value: float | None, level: float) -> str:
    if left.value is None or p_value is None or p_value >= level:
        return ""
    side = "left" if left.value > 0.5 else "right"
    times = round(max(left.value, 1 - left.value) * left.n)
    return f"prefers the answer on the {side} in {times} of {left.n} preferences (p = {p_value:.1g})"


def _hurries(median: float | None, others: Sequence[float | None]) -> str:
    known = [time for time in others if time is not None]
    if median is None or len(known) < 2:
        return ""
    usual = statistics.median(known)
    if median >= usual * TOO_FAST:
        return ""
    return f"takes {median:.1f} active seconds for a pair (median), the others {usual:.1f}"


def _decides_nothing(votes: _Votes, own: Booleans) -> str:
    num, ties = int(own.sum()), int((own & ~votes.decided).sum())
    others, ties_of_others = int((~own).sum()), int((~own & ~votes.decided).sum())
    if num == 0 or others < FEWEST_VOTES:
        return ""
    if ties / num < TOO_MANY_TIES or ties_of_others / others >= TOO_MANY_TIES / 2:
        return ""
    return f"prefers neither in {ties} of {num} votes; the others in {_percent(ties_of_others / others)} of theirs"


# ── text ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _with_text_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _with_text_keys(item) for key, item in value.items()}
    return [_with_text_keys(item) for item in value] if isinstance(value, list | tuple) else value


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _share_text(statistic: Statistic) -> str:
    if statistic.value is None:
        return f"not defined: {statistic.reason}"
    text = _percent(statistic.value)
    if statistic.low is not None and statistic.high is not None:
        text += f" ({100 * statistic.low:.1f} to {100 * statistic.high:.1f})"
    return f"{text}, n = {statistic.n:,} {statistic.unit}"


def _coefficient_text(statistic: Statistic) -> str:
    if statistic.value is None:
        return f"not defined: {statistic.reason}"
    text = f"{statistic.value:.3f}"
    if statistic.low is not None and statistic.high is not None:
        text += f" ({statistic.low:.3f} to {statistic.high:.3f})"
    return f"{text}, n = {statistic.n:,} {statistic.unit}"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())) or "none"


def _count(number: int, one: str, several: str = "") -> str:
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def _summary_lines(report: TrustReport) -> list[str]:
    lines = [
        f"{_count(report.num_votes, 'vote')} on {report.num_labelled_pairs:,} of {report.num_pairs:,} pairs by "
        f"{_count(len(report.annotators), 'person', 'people')}: {_count(report.num_preferences, 'preference')}, "
        f"{_count(report.num_ties, 'tie')}, "
        f"{report.num_both_bad:,} both bad",
        f"Skips: {_listed(report.skips)}. Flags: {_listed(report.flags)}. Surplus votes: {report.num_surplus:,}.",
        f"Random stream, from which agreement, length and the ceiling come: {report.num_random_votes:,} votes on "
        f"{report.num_random_pairs:,} pairs; {report.num_shared_pairs:,} pairs with two votes or more",
    ]
    if report.num_late_votes:
        lines.append(
            f"{report.num_late_votes:,} later votes are left out of agreement: disagreement may have caused them"
        )
    if not report.num_shared_pairs:
        return [*lines, "No pair has two votes yet: agreement and the ceiling come when a second person has voted"]
    lines += [
        "Agreement (intervals of 95 %)",
        f"  alpha, which side:   {_coefficient_text(report.alpha)}",
        f"  alpha, degrees:      {_coefficient_text(report.alpha_degrees)}",
        f"  AC1, which side:     {_coefficient_text(report.ac1)}",
        f"  equal, with ties:    {_share_text(report.agreement)}",
        f"  equal, without ties: {_share_text(report.agreement_without_ties)}",
        f"  equal, tie = half:   {_share_text(report.agreement_half)}",
    ]
    lines += [
        f"  {f'after {name!r}:':<20} {_share_text(report.by_degree[degree])}"
        for degree, name in DEGREES.items()
        if report.by_degree[degree].n
    ]
    return lines + _ceiling_lines(report.ceiling)


def _ceiling_lines(ceiling: Ceiling) -> list[str]:
    if ceiling.one.value is None:
        return [f"Ceiling of a reward model's accuracy: not defined: {ceiling.one.reason}"]
    lines = [
        "Ceiling of a reward model's accuracy, if all people err equally often and independently",
        f"  on single labels:       {_share_text(ceiling.one)}",
        f"  on majorities of three: {_share_text(ceiling.majority)}",
    ]
    if ceiling.measured is not None:
        text = f"  measured on single labels: {_percent(ceiling.measured)}"
        if ceiling.without_noise is not None:
            text += f", as by a model that is right in {_percent(ceiling.without_noise)}"
        lines.append(text)
    return lines


def _bias_lines(report: TrustReport) -> list[str]:
    p_value = "" if report.left_p_value is None else f", p = {report.left_p_value:.2g}"
    return [
        "Bias",
        f"  left preferred:    {_share_text(report.left)}{p_value}",
        f"  longer preferred:  {_share_text(report.longer)}",
        f"  always the longer: {_share_text(report.always_longer)}",
    ]


def _people_lines(report: TrustReport) -> list[str]:
    lines = ["People"]
    for person in report.annotators:
        seconds = "" if person.median_active_seconds is None else f", {person.median_active_seconds:.1f} s a pair"
        lines.append(
            f"  {person.name}: {_count(person.num_votes, 'vote')}, {person.num_ties:,} without a preference, "
            f"{_count(person.num_skips, 'skip')}{seconds}; "
            f"with most of the others {_share_text(person.with_majority)}; left {_share_text(person.left)}"
        )
        lines += [f"    look at this: {alarm}" for alarm in person.alarms]
    worst = sorted(report.people, key=lambda both: 2.0 if both.kappa.value is None else both.kappa.value)
    if worst:
        lines.append(f"Kappa of two people{', the lowest' if len(worst) > MOST_LINES else ''}")
    lines += [f"  {both.first}, {both.second}: {_coefficient_text(both.kappa)}" for both in worst[:MOST_LINES]]
    if len(report.rounds) > 1:
        lines.append("Rounds")
        lines += [
            f"  {one.round}: {one.num_votes:,} votes; alpha {_coefficient_text(one.alpha)}; "
            f"without ties {_share_text(one.agreement)}"
            for one in report.rounds
        ]
    return lines
