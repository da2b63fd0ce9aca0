"""A measure in a sentence, made from its numbers: a missing proof is never called a proof of nothing."""

from rlhfkit.rundir.probe_results import ProbeMeasure, interval_words, shown
from rlhfkit.wording import counted, percent

__all__ = ["sentence_of"]


def sentence_of(found: ProbeMeasure) -> str:
    """What the measure says, for people."""
    whose = "The reward" if found.of == "reward" else "The model"
    if found.reading == "too weak":
        assert found.gate is not None
        seen = found.gate.after if found.before is None else found.gate.before
        return (
            f"{whose} is too weak for this: {found.gate.what} for {percent(seen)} of {found.gate.num}, and "
            f"{percent(found.gate.least)} are needed. The number says nothing."
        )
    return _alone(found, whose) if found.before is None else _changed(found, whose)


def _changed(found: ProbeMeasure, whose: str) -> str:
    assert found.before is not None and found.difference is not None
    values = f"{shown(found.before.mean, found.unit)} before, {shown(found.after.mean, found.unit)} after"
    moved = shown(found.difference.mean, found.unit, signed=True)
    interval = interval_words(found, with_unit=True)
    between = "" if interval == "none" else f" ({percent(0.95)} interval {interval})"
    if found.reading == "damage":
        assert found.gate is not None
        nearer = _distance(found, found.after.mean) < _distance(found, found.before.mean)
        return (
            f"Damage: {found.gate.what} for {percent(found.gate.before)} before and {percent(found.gate.after)} after. "
            f"{values}: {'nearer to the ideal only because' if nearer else 'and'} the model lost part of its language."
        )
    if found.reading == "no evidence":
        return f"No evidence of a change: {values}{between}.{_least(found)}"
    return f"{values}: {moved}{between}, {_direction(found)}."


def _least(found: ProbeMeasure) -> str:
    """What could have been seen."""
    if found.detectable is not None:
        return f" A change under {shown(found.detectable, found.unit)} would probably not have been seen."
    if found.unit == "share" and found.p_value == 1.0:
        return f" {counted(found.num_items, 'item')} may be too few to show any change."
    return ""


def _direction(found: ProbeMeasure) -> str:
    if found.better == "ideal":
        ideal = shown(found.ideal, found.unit)
        near = {"better": f"nearer to the ideal {ideal}", "worse": f"further from the ideal {ideal}"}
        return near.get(found.reading, f"on the other side of the ideal {ideal}, as far from it")
    assert found.before is not None
    more = "more of it" if found.after.mean > found.before.mean else "less of it"
    return f"{more}, which may be wanted" if found.better == "neither" else more


def _alone(found: ProbeMeasure, whose: str) -> str:
    value = shown(found.after.mean, found.unit)
    between = f" ({percent(0.95)} interval {interval_words(found, with_unit=True)})"
    floor = (
        "" if found.floor is None else f" Other words for the same change an item by {shown(found.floor, found.unit)}."
    )
    what = found.words
    if found.of == "reward" and found.after.mean < (found.ideal or 0.0):
        paid = what.startswith("pays for")
        what = what.replace("pays for", "takes off for", 1) if paid else f"{what}, the other way round"
    match found.reading:
        case "found":
            assert found.ideal is not None
            off = "" if found.of == "reward" else f", {shown(found.ideal, found.unit)} being ideal"
            return f"{whose} {what}: {value}{between}{off}.{floor}"
        case "small":
            return f"{whose} {what}, a little: {value}{between}, no more than other words do.{floor}"
        case "no evidence":
            least = f" Less than {shown(found.detectable, found.unit)} would probably not have been seen." * (
                found.detectable is not None
            )
            return f"No evidence that {whose.lower()} {found.words}: {value}{between}.{least}{floor}"
    return f"{value}{between}."


def _distance(found: ProbeMeasure, value: float) -> float:
    return abs(value - (found.ideal or 0.0))
