"""Before and after, item by item: differences with intervals, tests, what could have been seen, and what it says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import stdtr, stdtrit  # type: ignore[import-untyped]

from rlhfkit.errors import ShapeError
from rlhfkit.evaluation.prompts import estimate
from rlhfkit.machine.seeding import derive_seed
from rlhfkit.probes.probe import Gate, Measurement
from rlhfkit.probes.words import sentence_of
from rlhfkit.rundir.probe_results import GateResult, ProbeExample, ProbeMeasure, Reading, shown
from rlhfkit.rundir.results import Estimate
from rlhfkit.stats.agreement import binomial_p_value
from rlhfkit.stats.intervals import rate_interval
from rlhfkit.stats.multiple import benjamini_hochberg, holm
from rlhfkit.stats.paired import (
    detectable_difference,
    detectable_share,
    hierarchical_means,
    mcnemar,
    paired_interval,
    sign_flip_p_value,
)

__all__ = ["compared", "measured_alone", "over_seeds"]

ALPHA = 0.05
NUM_EXAMPLES = 5
NUM_SEED_DRAWS = 4000
FELL_BY = 0.05
"""A gate that fell by less is still the same model, however many items say that it fell."""


@dataclass(frozen=True)
class _Tested:
    """A measure with its own test, before all are looked at together."""

    measure: dict[str, Any]
    p_value: float
    group: str
    read: Callable[[float], Reading]


def compared(
    before: Sequence[Measurement], after: Sequence[Measurement], *, primary: str, seed: int
) -> list[ProbeMeasure]:
    """Each number of both models with its difference; then those of a reward, or of one model, alone.

    The first number of the probe `primary` is tested by itself. The other numbers of the model are claims together, by
    Holm, and so are those of the reward; numbers of groups are an overview, by Benjamini and Hochberg.
    Raises: ShapeError where the two models were not measured on the same items.
    """
    earlier = {found.key: found for found in before}
    tested = [_pair(earlier[new.key], new, seed) if new.key in earlier else _single(new, seed) for new in after]
    return _judged(tested, primary)


def measured_alone(found: Sequence[Measurement], *, primary: str, seed: int) -> list[ProbeMeasure]:
    """Each number of one model, or of a reward, against its ideal."""
    return compared([], found, primary=primary, seed=seed)


def over_seeds(
    runs: Sequence[tuple[Sequence[Measurement], Sequence[Measurement]]], *, primary: str, seed: int
) -> list[ProbeMeasure]:
    """Each number of several runs (before, after) with other seeds: their mean, with each seed's in the note.

    The standard error draws seeds first, then clusters within a seed; interval and test are Student's t of as many
    degrees as seeds, less 1. What is found holds for further seeds of this recipe: with three it must be large.
    """
    keys = [found.key for found in runs[0][1]]
    found = [_of_seeds([_one_seed(before, after, key) for before, after in runs], seed) for key in keys]
    return _judged(found, primary)


def _one_seed(
    before: Sequence[Measurement], after: Sequence[Measurement], key: tuple[str, str, str]
) -> tuple[Measurement | None, Measurement]:
    old = next((found for found in before if found.key == key), None)
    return old, next(found for found in after if found.key == key)


def _of_seeds(sides: Sequence[tuple[Measurement | None, Measurement]], seed: int) -> _Tested:
    new, num = sides[0][1], len(sides)
    before, after = [old for old, _ in sides if old is not None], [found for _, found in sides]
    is_paired = len(before) == num
    offset = 0.0 if is_paired else new.ideal or 0.0
    changes = [
        [
            b - a
            for a, b in zip(old.values if old is not None else [offset] * len(found.values), found.values, strict=True)
        ]
        for old, found in sides
    ]
    generator = np.random.default_rng(derive_seed(seed, *new.key))
    groups = [found.clusters for found in after]
    means = hierarchical_means(changes, groups, generator=generator, num_draws=NUM_SEED_DRAWS)
    mean, error = _mean([_mean(change) for change in changes]), float(means.std())
    half = float(stdtrit(num - 1, 0.975)) * error if num > 1 and error > 0 else None
    ends = (None, None) if half is None else (mean + offset - half, mean + offset + half)
    estimated = Estimate(mean=mean + offset, low=ends[0], high=ends[1])
    gate = _gates(_together([old.gate for old in before]), _together([found.gate for found in after]))
    can_test = num > 1 and error > 0 and (is_paired or new.ideal is not None)
    values = [_mean([found.value for found in side]) for side in (before or after, after)]
    measure = {
        **_common(new),
        "num_items": sum(len(found.values) for found in after),
        "num_clusters": num,
        "before": Estimate(mean=values[0]) if is_paired else None,
        "after": Estimate(mean=values[1]) if is_paired else estimated,
        "difference": estimated if is_paired else None,
        "detectable": float(stdtrit(num - 1, 0.975) + stdtrit(num - 1, 0.8)) * error if can_test else None,
        "gate": gate,
        "note": "each seed: " + ", ".join(shown(_mean(change), new.unit, signed=True) for change in changes),
    }

    def read(p_value: float) -> Reading:
        if is_paired:
            return _reading(values[0], values[1], new, gate, p_value)
        return _read_alone(new, values[1], gate, p_value)

    p_value = float(2 * stdtr(num - 1, -abs(mean) / error)) if can_test else 1.0
    return _Tested(measure, p_value, new.group, read)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _together(gates: Sequence[Gate | None]) -> Gate | None:
    """One gate over the items of all seeds."""
    found = [gate for gate in gates if gate is not None]
    return None if not found else replace(found[0], hits=tuple(hit for gate in found for hit in gate.hits))


def _judged(tested: Sequence[_Tested], primary: str) -> list[ProbeMeasure]:
    first = next((at for at, each in enumerate(tested) if each.measure["probe"] == primary and not each.group), None)
    adjusted = {} if first is None else {first: tested[first].p_value}
    families: dict[tuple[str, bool], list[int]] = {}
    for at, each in enumerate(tested):
        if at != first:
            families.setdefault((each.measure["of"], bool(each.group)), []).append(at)
    for (_, is_group), places in families.items():
        adjust = benjamini_hochberg if is_group else holm
        adjusted |= dict(zip(places, adjust([tested[at].p_value for at in places]), strict=True))
    measures = []
    for at, each in enumerate(tested):
        found = ProbeMeasure(
            **each.measure,
            p_value=each.p_value,
            adjusted_p_value=adjusted[at],
            reading=each.read(adjusted[at]),
            sentence="",
            is_primary=at == first,
        )
        measures.append(found.model_copy(update={"sentence": sentence_of(found)}))
    return measures


# ── before and after ─────────────────────────────────────────────────────────────────────────────────────────────────


def _pair(old: Measurement, new: Measurement, seed: int) -> _Tested:
    if old.items != new.items:
        raise ShapeError(
            f"{new.probe} has {len(old.items)} items before and {len(new.items)} after, or other ones; measure both "
            "models with the same rows and samples"
        )
    changes = [b - a for a, b in zip(old.values, new.values, strict=True)]
    seed = derive_seed(seed, *new.key)
    is_binary = new.unit == "share" and set(old.values) | set(new.values) <= {0.0, 1.0}
    detectable: float | None
    if is_binary and len(set(new.clusters)) == len(new.clusters):
        test = mcnemar([value == 1 for value in old.values], [value == 1 for value in new.values])
        p_value, detectable = test.p_value, detectable_share(test.gained, test.lost, test.num)
    else:
        p_value = sign_flip_p_value(changes, new.clusters, seed=seed)
        detectable = detectable_difference(changes, new.clusters) or None
    low, high = paired_interval(changes, new.clusters, seed=seed)
    difference = Estimate(mean=new.value - old.value, low=low, high=high)
    gate = _gates(old.gate, new.gate)
    measure = {
        **_common(new),
        "before": _estimate(old),
        "difference": difference,
        "detectable": detectable,
        "gate": gate,
        "note": " → ".join(dict.fromkeys(note for note in (old.note, new.note) if note)),
        "examples": _examples(old, new, changes),
    }

    def read(p_value: float) -> Reading:
        return _reading(old.value, new.value, new, gate, p_value)

    return _Tested(measure, p_value, new.group, read)


def _reading(before: float, after: float, new: Measurement, gate: GateResult | None, p_value: float) -> Reading:
    if gate is not None and gate.before is not None and gate.before < gate.least:
        return "too weak"
    if gate is not None and (gate.after < gate.least or gate.has_fallen):
        return "damage"
    if p_value >= ALPHA:
        return "no evidence"
    if new.better == "more":
        return "better" if after > before else "worse"
    distance = [abs(value - (new.ideal or 0.0)) for value in (before, after)]
    if new.better == "neither" or distance[0] == distance[1]:
        return "changed"
    return "better" if distance[1] < distance[0] else "worse"


def _gates(old: Gate | None, new: Gate | None) -> GateResult | None:
    if new is None:
        return None
    found = GateResult(what=new.what, least=new.least, after=new.share, num=len(new.hits))
    if old is None or len(old.hits) != len(new.hits) or not new.hits:
        return found.model_copy(update={"before": None if old is None else old.share})
    fell = old.share - new.share > FELL_BY and mcnemar(old.hits, new.hits).p_value < ALPHA
    return found.model_copy(update={"before": old.share, "has_fallen": fell})


def _examples(old: Measurement, new: Measurement, changes: Sequence[float]) -> tuple[ProbeExample, ...]:
    """The items that moved furthest away from the ideal."""
    ideal = new.ideal or 0.0
    worse = [abs(b - ideal) - abs(a - ideal) for a, b in zip(old.values, new.values, strict=True)]
    order = sorted(range(len(changes)), key=lambda row: (worse[row], abs(changes[row])), reverse=True)
    return tuple(
        ProbeExample(
            item=new.items[row],
            before=old.values[row],
            after=new.values[row],
            answer_before=old.answers[row] if old.answers else "",
            answer_after=new.answers[row] if new.answers else "",
        )
        for row in order[:NUM_EXAMPLES]
        if changes[row]
    )


# ── one alone ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _single(found: Measurement, seed: int) -> _Tested:
    """A number against its ideal: a share by the binomial test, other values by tossing signs."""
    ideal, distinct = found.ideal, len(set(found.clusters)) == len(found.clusters)
    p_value: float = 1.0
    detectable = None
    if ideal is not None:
        off = [value - ideal for value in found.values]
        detectable = detectable_difference(off, found.clusters) or None
        if found.unit == "share" and ideal == 0.5 and distinct and set(found.values) <= {0.0, 1.0}:
            tested = binomial_p_value(int(sum(found.values)), len(off))
            p_value = 1.0 if tested is None else tested
        else:
            p_value = sign_flip_p_value(off, found.clusters, seed=derive_seed(seed, *found.key))
    gate = _gates(None, found.gate)
    largest = np.argsort([-abs(value - (ideal or 0.0)) for value in found.values], kind="stable")[:NUM_EXAMPLES]
    measure = {
        **_common(found),
        "detectable": detectable,
        "gate": gate,
        "note": found.note,
        "examples": tuple(
            ProbeExample(
                item=found.items[row],
                after=found.values[row],
                answer_after=found.answers[row] if found.answers else "",
            )
            for row in largest.tolist()
            if found.values[row] != (ideal or 0.0)
        ),
    }

    def read(p_value: float) -> Reading:
        return _read_alone(found, found.value, gate, p_value)

    return _Tested(measure, p_value, found.group, read)


def _read_alone(found: Measurement, value: float, gate: GateResult | None, p_value: float) -> Reading:
    if gate is not None and gate.after < gate.least:
        return "too weak"
    if found.ideal is None:
        return "alone"
    if p_value >= ALPHA:
        return "no evidence"
    is_small = found.floor is not None and abs(value - found.ideal) <= found.floor
    return "small" if is_small else "found"


def _estimate(found: Measurement) -> Estimate:
    if found.unit == "share" and set(found.values) <= {0.0, 0.5, 1.0}:
        low, high = rate_interval(found.values, found.clusters)
        return Estimate(mean=found.value, low=low, high=high)
    return estimate(found.values, found.clusters)


def _common(found: Measurement) -> dict[str, Any]:
    return {
        "probe": found.probe,
        "name": found.name,
        "words": found.words,
        "of": found.of,
        "group": found.group,
        "unit": found.unit,
        "better": found.better,
        "ideal": found.ideal,
        "num_items": len(found.values),
        "num_clusters": len(set(found.clusters)),
        "after": _estimate(found),
        "floor": found.floor,
    }
