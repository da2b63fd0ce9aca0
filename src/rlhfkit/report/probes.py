"""The section "What else changed": probes before and after, in sentences and in a table, with examples."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rlhfkit.rundir.probe_results import (
    ProbeExample,
    ProbeMeasure,
    ProbeResults,
    Reading,
    gate_words,
    interval_words,
    shown,
)
from rlhfkit.wording import counted, number

__all__ = ["ProbePage", "ProbeRow", "ProbeTable", "probe_page"]

MARKS: dict[Reading, str] = {
    "better": "▼ better",
    "worse": "▲ worse",
    "changed": "◆ changed",
    "damage": "✖ damage",
    "too weak": "– too weak to say",
    "small": "○ small",
    "found": "● found",
    "no evidence": "· no evidence",
    "alone": "",
}
"""A reading with a mark, so that it is read without colours."""
MOST_TEXT = 300


@dataclass(frozen=True, slots=True)
class ProbeRow:
    """A line of the table."""

    name: str
    """Empty where the line above is of the same probe."""
    words: str
    before: str
    after: str
    difference: str
    interval: str
    detectable: str
    basis: str
    """The gate, or of a reward the noise floor."""
    reading: str
    tone: str
    """The reading as a class of the style sheet."""
    is_primary: bool


@dataclass(frozen=True, slots=True)
class ProbeExamples:
    """The items of one measure that changed most, or lie furthest off."""

    title: str
    examples: tuple[ProbeExample, ...]
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProbeTable:
    """The numbers of the model, or of the reward."""

    title: str
    of: str
    has_before: bool
    rows: Sequence[ProbeRow]
    groups: Sequence[ProbeRow]


@dataclass(frozen=True, slots=True)
class ProbePage:
    """What the section shows."""

    title: str
    lead: str
    sentences: Sequence[str]
    tables: Sequence[ProbeTable]
    examples: Sequence[ProbeExamples]
    sources: str


def probe_page(results: ProbeResults | None) -> ProbePage | None:
    """The section of a run's probes; None where it has none."""
    if results is None:
        return None
    over = f" over {results.num_seeds} seeds" if results.num_seeds > 1 else ""
    return ProbePage(
        title=f"What else changed{over}",
        lead=_lead(results),
        sentences=results.sentences(),
        tables=list(_tables(results)),
        examples=list(_examples(results.of_whole())),
        sources=" · ".join(f"{file.path}: {counted(file.num_rows, 'row')}" for file in results.sources),
    )


def _lead(results: ProbeResults) -> str:
    sampling = f"{counted(results.num_samples, 'sample')} a prompt of at most {results.response_tokens} tokens"
    who = (
        f"{results.before} before and {results.after} after, on the same items with the same random numbers"
        if results.before
        else results.after or results.reward
    )
    return f"{counted(len(results.probes), 'probe')} of {who}; {sampling}. Declared beforehand: {results.primary}."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _tables(results: ProbeResults) -> Iterator[ProbeTable]:
    for of, title in (("model", results.after), ("reward", results.reward)):
        measures = [measure for measure in results.measures if measure.of == of]
        if measures:
            yield ProbeTable(
                title=_capital("language model" if of == "model" and results.before else f"{of}: {title}"),
                of=of,
                has_before=any(measure.before for measure in measures),
                rows=list(_rows(measure for measure in measures if not measure.group)),
                groups=list(_rows(measure for measure in measures if measure.group)),
            )


def _rows(measures: Iterable[ProbeMeasure]) -> Iterator[ProbeRow]:
    last = ""
    for measure in measures:
        unit, name = measure.unit, measure.probe.replace("_", " ")
        note = f" ({measure.note})" if measure.note else ""
        yield ProbeRow(
            name="" if name == last else name,
            words=f"{measure.group}: {measure.words}" if measure.group else measure.words + note,
            before=shown(None if measure.before is None else measure.before.mean, unit),
            after=shown(measure.after.mean, unit),
            difference=shown(None if measure.difference is None else measure.difference.mean, unit, signed=True),
            interval=interval_words(measure),
            detectable=shown(measure.detectable, unit),
            basis=gate_words(measure.gate) if measure.of == "model" else shown(measure.floor, unit),
            reading=MARKS[measure.reading] + _chance(measure),
            tone=measure.reading.replace(" ", "-"),
            is_primary=measure.is_primary,
        )
        last = name


def _chance(measure: ProbeMeasure) -> str:
    """The p value among all that were tried, where it decided."""
    if measure.reading in ("too weak", "damage", "alone"):
        return ""
    p_value = measure.adjusted_p_value
    return " (p < 0.001)" if p_value < 0.001 else f" (p {number(p_value, 2)})"


def _examples(measures: Sequence[ProbeMeasure]) -> Iterator[ProbeExamples]:
    for measure in measures:
        if not measure.examples or measure.reading in ("too weak", "alone"):
            continue
        values = tuple(
            shown(example.after, measure.unit)
            if example.before is None
            else f"{_bare(example.before, measure)} → {_bare(example.after, measure)}"
            for example in measure.examples
        )
        shortened = tuple(
            example.model_copy(
                update={key: _cut(getattr(example, key)) for key in ("item", "answer_before", "answer_after")}
            )
            for example in measure.examples
        )
        yield ProbeExamples(f"{_capital(measure.probe.replace('_', ' '))}: {measure.words}", shortened, values)


def _bare(value: float, measure: ProbeMeasure) -> str:
    if measure.unit == "share" and value in (0.0, 1.0):
        return "yes" if value else "no"
    return number(value)


def _cut(text: str) -> str:
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}…"
