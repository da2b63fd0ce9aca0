"""What stands out in one person: disagreement, one side, haste, ties."""

import math
import statistics
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from rlhfkit.feedback.trust.report import AnnotatorTrust, PairOfPeople
from rlhfkit.feedback.trust.text import _percent
from rlhfkit.feedback.trust.votes import (
    FALSE_ALARMS,
    FEWEST_VOTES,
    SIGNS,
    STRENGTHS,
    TOO_FAST,
    TOO_MANY_TIES,
    Booleans,
    Votes,
)
from rlhfkit.feedback.votes import Vote
from rlhfkit.stats.agreement import (
    Statistic,
    cohen_kappa,
    confusion,
)
from rlhfkit.stats.intervals import Z

__all__ = [
    "annotators_of",
    "pairs_of_people",
]


def pairs_of_people(votes: Votes) -> tuple[PairOfPeople, ...]:
    """How each two people agree on the pairs that both saw."""
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


def annotators_of(votes: Votes) -> tuple[AnnotatorTrust, ...]:
    """What is said of each person, and what stands out."""
    events: dict[str, list[Vote]] = {name: [] for name in votes.names}
    for vote in votes.all:
        events[vote.annotator].append(vote)
    medians = [_median_seconds(events[name]) for name in votes.names]
    return tuple(_annotator(votes, number, events[name], medians) for number, name in enumerate(votes.names))


def _median_seconds(events: Sequence[Vote]) -> float | None:
    times = [vote.active_seconds for vote in events if vote.choice.kind != "skip"]
    return statistics.median(times) if times else None


def _annotator(votes: Votes, person: int, events: Sequence[Vote], medians: Sequence[float | None]) -> AnnotatorTrust:
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


def _decides_nothing(votes: Votes, own: Booleans) -> str:
    num, ties = int(own.sum()), int((own & ~votes.decided).sum())
    others, ties_of_others = int((~own).sum()), int((~own & ~votes.decided).sum())
    if num == 0 or others < FEWEST_VOTES:
        return ""
    if ties / num < TOO_MANY_TIES or ties_of_others / others >= TOO_MANY_TIES / 2:
        return ""
    return f"prefers neither in {ties} of {num} votes; the others in {_percent(ties_of_others / others)} of theirs"
