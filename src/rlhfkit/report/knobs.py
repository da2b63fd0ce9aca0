"""Axes of parallel coordinates: where the value of a knob lies between the lowest and the highest, and its ticks."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlhfkit.rundir.study import KnobRange, StudyResults, Trial
from rlhfkit.wording import number, shortened

__all__ = ["Axis", "axes_of", "broken_name", "short_names", "value_text"]

MOST_TICKS = 6
_GOLDEN = 0.618034


@dataclass(frozen=True, slots=True)
class Axis:
    """A vertical axis from 0 to 1."""

    label: str
    ticks: Sequence[tuple[float, str]]
    """Place and text."""
    place: Callable[[Trial], float | None]
    """Where a trial lies; None where it has no value."""
    is_choice: bool = False


def axes_of(study: StudyResults) -> list[Axis]:
    """An axis for each knob, in the order of the space, and at the end that of the score."""
    names = short_names(tuple(knob.name for knob in study.space))
    axes = [_axis(knob, names[knob.name], study.trials) for knob in study.space]
    scores = [trial.best.score for trial in study.trials if trial.best is not None]
    if scores:
        scale, ticks = _numeric(min(scores), max(scores), log=False)
        axes.append(Axis("score", ticks, lambda trial: None if trial.best is None else scale(trial.best.score)))
    return axes


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Dotted name → its last two parts, or as many as tell it from the others: "kl.coef", "ppo.optim.learning_rate"."""
    short = {}
    for name in names:
        endings = [_ending(name, keep) for keep in range(2, name.count(".") + 2)]
        alone = (each for each in endings if sum(_ending(other, each.count(".") + 1) == each for other in names) == 1)
        short[name] = next(alone, name)
    return short


def broken_name(name: str, most: int = 14) -> list[str]:
    """A name as lines of at most so many letters, where that goes, broken after dots and underscores."""
    lines = [""]
    for piece in re.findall(r"[^._]*[._]?", name):
        if lines[-1] and len(lines[-1] + piece) > most:
            lines.append("")
        lines[-1] += piece
    return lines


def _ending(name: str, keep: int) -> str:
    return ".".join(name.split(".")[-keep:])


def value_text(value: object) -> str:
    """The value of a setting as a recipe would have it, short."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        # As in a recipe: 1.3e-5, not 1.3e-05 or 0.000013.
        return re.sub(r"e-0*", "e-", f"{value:.2e}".replace(".00e", "e")) if 0 < abs(value) < 1e-3 else number(value)
    return "–" if value is None else shortened(str(value), 24)


def _axis(knob: KnobRange, label: str, trials: Sequence[Trial]) -> Axis:
    values = [trial.params[knob.name] for trial in trials if knob.name in trial.params]
    numbers = [float(value) for value in values if not isinstance(value, str | bool) and math.isfinite(value)]
    if knob.low is None or knob.high is None or len(numbers) < len(values):
        return _choice_axis(knob, label, values)
    low, high = min([knob.low, *numbers]), max([knob.high, *numbers])
    scale, ticks = _numeric(low, high, log=knob.log and low > 0)

    def place(trial: Trial) -> float | None:
        return scale(float(trial.params[knob.name])) if knob.name in trial.params else None

    return Axis(label, ticks, place)


def _choice_axis(knob: KnobRange, label: str, values: Sequence[object]) -> Axis:
    """Each choice has its place, with those that only the recipe has; equal ones lie apart by a hair."""
    known = list(dict.fromkeys(map(value_text, (*knob.choices, *values))))
    step = 1 / max(1, len(known) - 1)
    places = {text: at * step if len(known) > 1 else 0.5 for at, text in enumerate(known)}

    def place(trial: Trial) -> float | None:
        if knob.name not in trial.params:
            return None
        apart = ((trial.number * _GOLDEN) % 1 - 0.5) * 0.06 if trial.number else 0.0
        return places[value_text(trial.params[knob.name])] + apart

    return Axis(label, [(at, text) for text, at in places.items()], place, is_choice=True)


def _numeric(low: float, high: float, *, log: bool) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    """Value → place, and the ticks."""
    warp: Callable[[float], float] = math.log10 if log else float
    start, length = warp(low), (warp(high) - warp(low)) or 1.0

    def scale(value: float) -> float:
        return (warp(value) - start) / length if high > low else 0.5

    ticks = _log_ticks(low, high) if log else _linear_ticks(low, high)
    return scale, [(scale(value), value_text(value)) for value in ticks]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        inside = [tick for tick in ticks if 0.999 * low <= tick <= 1.001 * high]
        if len(inside) <= MOST_TICKS:
            break
    return inside if len(inside) > 1 else [low, high]


def _linear_ticks(low: float, high: float) -> list[float]:
    if high <= low:
        return [low]
    size = 10.0 ** math.floor(math.log10(high - low))
    step = next(each * size for each in (0.2, 0.5, 1, 2, 5) if (high - low) / (each * size) <= MOST_TICKS - 1)
    first = math.ceil(low / step - 1e-9)
    return [round(at * step, 12) for at in range(first, math.floor(high / step + 1e-9) + 1)]
