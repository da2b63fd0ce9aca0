"""What `probes.json` holds: what else a run changed, written by the probes, read by report and model card."""

from collections.abc import Iterator, Sequence
from typing import Literal

from rlhfkit.rundir.results import Estimate, Results
from rlhfkit.wording import counted, percent

__all__ = [
    "GateResult",
    "ProbeExample",
    "ProbeMeasure",
    "ProbeResults",
    "ProbeSource",
    "Reading",
    "gate_words",
    "interval_words",
    "shown",
]

Reading = Literal["better", "worse", "changed", "damage", "too weak", "small", "found", "no evidence", "alone"]
"""What a measure says: of before and after, better or worse than before, changed where neither is, or no evidence of a
change; "damage" where the model lost what the number rests on, "too weak" where it never had it. Of one model or reward
alone: "found" is off its ideal beyond chance, "small" is found but less than what other words do, "no evidence" is
neither, and "alone" is a number without an ideal."""


TELLING: tuple[Reading, ...] = ("damage", "worse", "found", "changed", "better", "small")


class GateResult(Results):
    """Whether the number beside it means anything."""

    what: str
    """What must hold of an item."""
    least: float
    """Share below which the number says nothing."""
    before: float | None = None
    """Share before."""
    after: float
    """Share after."""
    num: int
    """Items."""
    has_fallen: bool = False
    """Whether it fell by more than chance: the model lost what the number rests on."""


class ProbeExample(Results):
    """One item, with its values."""

    item: str
    before: float | None = None
    after: float
    answer_before: str = ""
    answer_after: str = ""


class ProbeMeasure(Results):
    """One number of a probe, before and after."""

    probe: str
    """Name of the probe."""
    name: str
    """What of it."""
    words: str
    """The same for people."""
    of: Literal["model", "reward"]
    """Whose number it is."""
    group: str = ""
    """The group of its rows; empty for all of them."""
    unit: Literal["share", "nats", "score", "words"]
    better: Literal["ideal", "less", "more", "neither"] = "less"
    """Whether nearer to `ideal` is better, less, or more; or neither."""
    ideal: float | None = None
    """The value without bias, where there is one."""
    num_items: int
    num_clusters: int
    """Independent ones, as prompts whose samples hang together."""
    before: Estimate | None = None
    """None where one model, or a reward, was measured alone."""
    after: Estimate
    difference: Estimate | None = None
    """After less before, paired by item."""
    p_value: float
    """Of the difference, or of one model's distance from its ideal; 1 where there is none."""
    adjusted_p_value: float
    """The same by Holm over all claims; of groups by Benjamini and Hochberg."""
    detectable: float | None = None
    """Smallest difference that would have been found in four of five tries."""
    gate: GateResult | None = None
    floor: float | None = None
    """What a change of words that should not matter does to an item."""
    note: str = ""
    reading: Reading
    sentence: str
    """What it says, for people."""
    is_primary: bool = False
    """Whether this number was declared beforehand as the one that counts, and is tested by itself."""
    examples: tuple[ProbeExample, ...] = ()
    """The items that changed most, or lie furthest off."""


class ProbeSource(Results):
    """A file of rows."""

    probe: str
    path: str
    sha256: str
    num_rows: int


class ProbeResults(Results):
    """`probes.json`."""

    probes: dict[str, str]
    """Name → what it is about."""
    primary: str
    """The probe that was declared beforehand."""
    before: str = ""
    """What was measured before; empty where there is no before."""
    after: str = ""
    reward: str = ""
    """The reward that was measured, if any."""
    seed: int = 0
    num_seeds: int = 1
    """Runs of the recipe, each with a seed of its own, that the numbers are over."""
    num_samples: int = 0
    """Responses to each prompt."""
    response_tokens: int = 0
    """Longest response."""
    measures: tuple[ProbeMeasure, ...]
    """All numbers; those of groups follow the whole."""
    sources: tuple[ProbeSource, ...] = ()
    """Files of rows beside those of the package."""

    def of_whole(self) -> list[ProbeMeasure]:
        """The measures of all rows, without those of groups."""
        return [measure for measure in self.measures if not measure.group]

    def sentences(self) -> list[str]:
        """What the numbers say, for people who read nothing else: the primary one, what was found, what was not."""
        return list(_sentences(self.of_whole()))

    def __str__(self) -> str:
        return "\n".join(self.sentences())


def _sentences(whole: Sequence[ProbeMeasure]) -> Iterator[str]:
    for measure in whole:
        if measure.is_primary:
            yield f"{_title(measure)} (declared beforehand): {measure.sentence}"
    others = [measure for measure in whole if not measure.is_primary]
    for reading in TELLING:
        yield from (f"{_title(each)}: {each.sentence}" for each in others if each.reading == reading)
    if silent := [measure for measure in others if measure.reading == "no evidence"]:
        yield (
            f"For {counted(len(silent), 'other number')} there is no evidence, which is no proof that nothing changed: "
            "“could have been seen” says how much would have had to."
        )
    if weak := [measure for measure in others if measure.reading == "too weak"]:
        names = ", ".join(dict.fromkeys(measure.probe.replace("_", " ") for measure in weak))
        num = counted(len(weak), "number")
        yield f"{num} ({names}) say nothing, as the model is too weak for what is asked."


def _title(measure: ProbeMeasure) -> str:
    name = measure.probe.replace("_", " ").capitalize()
    if measure.before is None and measure.reading in ("found", "small", "no evidence"):
        return name  # the sentence has the words
    return f"{name}, {measure.words}"


def shown(value: float | None, unit: str, *, signed: bool = False) -> str:
    """A value, or with `signed` a difference, as people write it: "61.3 %", "+2.1 points", "−0.40 nats"."""
    if value is None:
        return "–"
    ending = {"share": " points" if signed else "\u202f%", "nats": " nats", "words": " words"}.get(unit, "")
    return _bare(value, unit, signed=signed) + ending


def _bare(value: float, unit: str, *, signed: bool) -> str:
    digits = 1 if unit == "share" else 2
    rounded = round(100 * value if unit == "share" else value, digits) + 0.0  # for there is no minus zero
    return f"{rounded:{'+' if signed and rounded else ''}.{digits}f}".replace("-", "−")


def interval_words(measure: ProbeMeasure, *, with_unit: bool = False) -> str:
    """The 95 % interval of the difference, or of the value where there is no before: "−1.2 to +3.4"."""
    estimate, signed = (measure.after, False) if measure.difference is None else (measure.difference, True)
    if estimate.low is None or estimate.high is None:
        return "none"
    high = shown(estimate.high, measure.unit, signed=signed)
    if not with_unit:
        high = _bare(estimate.high, measure.unit, signed=signed)
    return f"{_bare(estimate.low, measure.unit, signed=signed)} to {high}"


def gate_words(gate: GateResult | None) -> str:
    """The gate before and after, and what is needed where that is not there: "94 % → 52 % < 70 %"."""
    if gate is None:
        return "–"
    sides = " → ".join(percent(share) for share in (gate.before, gate.after) if share is not None)
    return sides + f" < {percent(gate.least)}" * (min(gate.after, gate.before or gate.after) < gate.least)
