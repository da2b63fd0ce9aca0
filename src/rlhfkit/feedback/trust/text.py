"""The report on trust as lines of text."""

from collections.abc import Mapping

from rlhfkit.feedback.trust.report import Ceiling, TrustReport
from rlhfkit.feedback.votes import DEGREES
from rlhfkit.stats.agreement import (
    Statistic,
)
from rlhfkit.wording import counted

MOST_LINES = 10
"""Pairs of people shown in the terminal, the worst first."""


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


def _counts_text(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())) or "none"


def lines_of(report: TrustReport) -> list[str]:
    """The report as text for the terminal."""
    return [*_summary_lines(report), *_bias_lines(report), *_people_lines(report)]


def _summary_lines(report: TrustReport) -> list[str]:
    lines = [
        f"{counted(report.num_votes, 'vote')} on {report.num_labelled_pairs:,} of {report.num_pairs:,} pairs by "
        f"{counted(len(report.annotators), 'person', 'people')}: {counted(report.num_preferences, 'preference')}, "
        f"{counted(report.num_ties, 'tie')}, "
        f"{report.num_both_bad:,} both bad",
        f"Skips: {_counts_text(report.skips)}. Flags: {_counts_text(report.flags)}. "
        f"Surplus votes: {report.num_surplus:,}.",
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
            f"  {person.name}: {counted(person.num_votes, 'vote')}, {person.num_ties:,} without a preference, "
            f"{counted(person.num_skips, 'skip')}{seconds}; "
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
