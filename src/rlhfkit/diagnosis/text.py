"""A diagnosis as text for a terminal."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rlhfkit.diagnosis.diagnose import Diagnosis, Problem

__all__ = ["Line", "lines_of"]

Kind = Literal["plain", "title", "good", "bad", "faint"]
LABEL_WIDTH = 9


@dataclass(frozen=True, slots=True)
class Line:
    """One line, and how to show it where there is colour."""

    text: str
    kind: Kind = "plain"


def lines_of(diagnosis: Diagnosis, *, width: int = 80) -> Iterator[Line]:
    """Lines of at most `width` columns, apart from words that are longer."""
    yield from _paragraph(f"{diagnosis.run} ({diagnosis.name}): {diagnosis.state}; {diagnosis.progress}.", width)
    if diagnosis.verdict is not None:
        tones: dict[str, Kind] = {"good": "good", "bad": "bad"}
        yield Line("")
        yield from _paragraph(diagnosis.verdict.headline, width, kind=tones.get(diagnosis.verdict.tone, "plain"))
        yield from _paragraph(diagnosis.verdict.reasons, width)
        yield from _list(diagnosis.verdict.cautions, width)
    yield Line("")
    if conclusion := diagnosis.conclusion():
        kind: Kind = "good" if conclusion.startswith("Nothing is wrong") else "plain"
        yield from _paragraph(conclusion, width, kind=kind)
    for place, problem in enumerate(diagnosis.problems, start=1):
        if place > 1:
            yield Line("")
        yield from _problem(place, problem, width)
    if diagnosis.cautions or diagnosis.unusual:
        yield from _headed("Worth a look", [*diagnosis.cautions, *diagnosis.unusual], width)
    if diagnosis.passed:
        yield from _headed("Seen for a while, gone again", [_short(problem) for problem in diagnosis.passed], width)
    if diagnosis.done:
        yield from _headed("Done by the rules while it trained", diagnosis.done, width)
    if diagnosis.right:
        yield from _headed("What went right", diagnosis.right, width)


def _problem(place: int, problem: Problem, width: int) -> Iterator[Line]:
    finding = problem.finding
    yield from _paragraph(f"{place}. {finding.title}", width, kind="bad")
    yield from _labelled("where", f"{problem.where()} (rule {finding.rule})", width)
    if finding.follows_from:
        yield from _labelled("why", f"probably follows from {', '.join(finding.follows_from)}, above", width)
    for evidence in finding.evidence:
        at = f" ({evidence.when()})" if evidence.iterations is not None else ""
        yield from _labelled("seen", f"{evidence.metric} {evidence.words}{at}", width)
    yield from _labelled("cause", finding.cause, width)
    for remedy in finding.remedies:
        yield from _labelled("set", remedy.words(), width)
    for advice in finding.advice:
        yield from _labelled("do", advice, width)
    yield from _labelled("source", finding.source, width, kind="faint")


def _short(problem: Problem) -> str:
    evidence = problem.finding.evidence[0]
    return f"{problem.finding.title} ({problem.where()}): {evidence.metric} {evidence.words}."


def _headed(title: str, items: tuple[str, ...] | list[str], width: int) -> Iterator[Line]:
    yield Line("")
    yield Line(title, "title")
    yield from _list(items, width)


def _list(items: object, width: int) -> Iterator[Line]:
    for item in items if isinstance(items, tuple | list) else ():
        yield from _paragraph(str(item), width, first="- ", rest="  ")


def _labelled(label: str, text: str, width: int, *, kind: Kind = "plain") -> Iterator[Line]:
    yield from _paragraph(text, width, first=f"   {label:<{LABEL_WIDTH}}", rest=" " * (LABEL_WIDTH + 3), kind=kind)


def _paragraph(
    text: str,
    width: int,
    *,
    first: str = "",
    rest: str = "",
    kind: Kind = "plain",
) -> Iterator[Line]:
    for line in textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    ):
        yield Line(line, kind)
