"""How far people's labels can be trusted: votes → TrustReport, for the terminal, a page and JSON.

Agreement, length and the ceiling come from the *random stream* alone: pairs that were drawn at random, came from a file
or belong to the calibration pool. Pairs chosen because they are doubtful would make everybody look worse.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from rlhfkit.feedback.trust.annotators import annotators_of, pairs_of_people
from rlhfkit.feedback.trust.report import Accuracy, Ceiling, Labels, RoundTrust, TrustReport
from rlhfkit.feedback.trust.votes import SIGNS, STRENGTHS, Votes
from rlhfkit.feedback.votes import DEGREES
from rlhfkit.stats.agreement import (
    Statistic,
    ValueCounts,
    accuracy_without_noise,
    annotator_accuracy,
    gwet_ac1,
    krippendorff_alpha,
    majority_of_three,
    raw_agreement,
)

__all__ = [
    "accuracy_by_degree",
    "trust_report",
]


# ── what comes back ──────────────────────────────────────────────────────────────────────────────────────────────────


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
    votes = Votes(labels, overlap=overlap, calibration_overlap=calibration_overlap)
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
        people=pairs_of_people(votes),
        annotators=annotators_of(votes),
        rounds=tuple(_round(votes, number, generator) for number in np.unique(votes.round).tolist()),
    )


def accuracy_by_degree(labels: Labels, predictions: Mapping[str, float], *, only_random: bool = True) -> Accuracy:
    """How often predictions agree with the preferences that people stated, overall and by their degree.

    `predictions`: id of a pair → how much better `response_a` is. Pairs without one are left out, ties and skips too.
    Raises: DataError where a vote is about an unknown pair.
    """
    votes = Votes(labels)
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


def _round(votes: "Votes", number: int, generator: np.random.Generator) -> RoundTrust:
    within = votes.round == number
    signs = votes.counts(SIGNS, within)
    return RoundTrust(
        number,
        num_pairs=len(set(votes.pair[within].tolist())),
        num_votes=int(within.sum()),
        alpha=krippendorff_alpha(signs, generator=generator),
        agreement=raw_agreement(signs, ties="drop"),
    )
