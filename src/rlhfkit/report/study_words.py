"""What the page of a study says: its result in words, its numbers, and what became of each trial."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rlhfkit.report.knobs import value_text
from rlhfkit.report.study_plots import METRICS, score_at, seconds_by_trial
from rlhfkit.rundir.results import Estimate
from rlhfkit.rundir.studies import best_trial, num_finished
from rlhfkit.rundir.study import Point, StudyResults, Trial
from rlhfkit.wording import counted, duration, listed, number, percent

__all__ = ["Cell", "Fact", "Lost", "Money", "RungRow", "Setting", "StudyWords", "fixed", "signed", "words_of"]

Tone = Literal["good", "bad", "unclear", "open"]
State = Literal["done", "running", "to come"]
FEWEST_FOR_IMPORTANCE = 30
"""Trials below which the importance of settings is mostly chance."""
PHASES = {"preparing": "Preparing", "searching": "Searching", "confirming": "Confirming", "testing": "Testing"}


def fixed(value: float | None) -> str:
    """A score with as many decimals as its neighbours, so that scores under each other compare."""
    if value is None or not 0.001 <= abs(value) < 10_000:
        return number(value)
    return f"{value:.{3 if abs(value) < 10 else 1}f}".replace("-", "−")


def signed(value: float | None) -> str:
    """The same with its sign: "+0.420", "−1.300"."""
    return f"+{fixed(value)}" if value is not None and value > 0 else fixed(value)


@dataclass(frozen=True, slots=True)
class Fact:
    """A headline number."""

    title: str
    value: str
    note: str
    interval: tuple[float, float, float] | None = None
    """Low, mean and high on a scale from 0 to 100 whose middle is no difference."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A knob as the default and the best trial have it."""

    name: str
    default: str
    best: str
    searched: str
    is_changed: bool


@dataclass(frozen=True, slots=True)
class Cell:
    """What became of a trial at a rung."""

    score: float | None
    fate: str
    kind: str
    """A class of the style sheet."""


@dataclass(frozen=True, slots=True)
class RungRow:
    """A trial at all rungs."""

    trial: Trial
    name: str
    cells: Sequence[Cell]


@dataclass(frozen=True, slots=True)
class Lost:
    """A trial that may not be chosen, and why."""

    name: str
    state: str
    why: str


@dataclass(frozen=True, slots=True)
class Money:
    """What time was spent on."""

    rows: Sequence[tuple[str, float, str]]
    """What, seconds, and their share of all."""
    note: str


@dataclass(frozen=True, slots=True)
class StudyWords:
    """What the page says."""

    headline: str
    tone: Tone
    sentences: Sequence[str]
    stages: Sequence[tuple[str, State, str]]
    """Name, state and a note."""
    metric: str
    best: Trial | None
    best_name: str
    facts: Sequence[Fact]
    settings: Sequence[Setting]
    importance_warning: str
    rung_rows: Sequence[RungRow]
    rung_summary: str
    lost: Sequence[Lost]
    money: Money


def words_of(study: StudyResults) -> StudyWords:
    """What there is to say of a study so far."""
    best = best_trial(study)
    headline, tone = _headline(study, best)
    return StudyWords(
        headline=headline,
        tone=tone,
        sentences=list(_sentences(study, best)),
        stages=list(_stages(study)),
        metric=METRICS.get(study.metric, study.metric),
        best=best,
        best_name=_best_name(study, best),
        facts=list(_facts(study, best)),
        settings=list(_settings(study, best)),
        importance_warning=_importance_warning(study),
        rung_rows=_rung_rows(study),
        rung_summary=_rung_summary(study),
        lost=list(_lost(study)),
        money=_money(study),
    )


# ── the result ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _headline(study: StudyResults, best: Trial | None) -> tuple[str, Tone]:
    comparison = study.comparison
    if comparison is not None:
        difference = comparison.difference
        if comparison.is_gain:
            return f"Trial {comparison.winner} is better than the default: {signed(difference.mean)}", "good"
        if difference.high is not None and difference.high < 0:
            return f"Keep the default: trial {comparison.winner} is worse, {signed(difference.mean)}", "bad"
        return "No evidence of a gain: keep the default", "unclear"
    num_done = num_finished(study)
    if study.state in ("done", "stopped"):
        if best is None:
            return "No trial kept all limits: keep the default", "bad"
        if best.number == 0:
            return f"Nothing better than the default in {counted(num_done, 'trial')}: keep it", "unclear"
        return f"Not tested: trial {best.number} looked best, keep the default until it is", "unclear"
    if not study.trials:
        return "Preparing: no trial has begun", "open"
    words = f"{PHASES[study.state]}: {num_done} of {counted(study.num_trials, 'trial')} done"
    if best is None:
        return f"{words}, none with a score {'within its limits ' if num_done else ''}yet", "open"
    at_best = "the default is best so far" if best.number == 0 else f"trial {best.number} is best so far"
    return f"{words}, {at_best}", "open"


def _sentences(study: StudyResults, best: Trial | None) -> Iterator[str]:
    comparison, metric = study.comparison, METRICS.get(study.metric, study.metric)
    if study.words:
        yield study.words
    if comparison is not None:
        if comparison.words and comparison.words not in study.words:
            yield comparison.words
        yield (
            f"Winner less default: {signed(comparison.difference.mean)} in the {metric}, 95\u202f% interval "
            f"{_interval(comparison.difference)}, over {counted(len(comparison.seeds), 'seed')} and "
            f"{counted(comparison.num_prompts, _cases(study))} that the search has not used."
        )
        return
    if study.state == "stopped" and not study.words:
        yield "The study was ended before winner and default were tested on fresh seeds."
    if best is not None and best.best is not None and best.number:
        yield (
            f"Trial {best.number} has {fixed(best.best.score)}{_at(best.best, study)}. The best of many trials looks "
            "better than it is: only the test on fresh seeds tells."
        )


def _cases(study: StudyResults) -> str:
    return "episode" if study.metric == "return" else "prompt"


def _interval(estimate: Estimate) -> str:
    return estimate.words(signed)


def _at(point: Point, study: StudyResults) -> str:
    if point.kl is None:
        return f" after {number(point.iteration)} {study.unit}"
    return f" at {number(point.kl)} nats"


def _best_name(study: StudyResults, best: Trial | None) -> str:
    if best is None or best.number == 0:
        return "default"
    return f"trial {best.number}, {'the winner' if study.comparison else 'best so far'}"


def _stages(study: StudyResults) -> Iterator[tuple[str, State, str]]:
    names = list(PHASES)
    if study.state in PHASES:
        at = names.index(study.state)
    elif study.state == "done":
        at = len(names)
    else:  # the budget ended it
        at = 3 if study.finalists else 1 if study.trials else 0
    searched = f"{num_finished(study)} of {study.num_trials}" if at == 1 else counted(len(study.trials), "trial")
    notes = {"searching": searched} if study.trials else {}
    if study.finalists:
        notes["confirming"] = counted(len(study.finalists), "finalist")
    if study.comparison:
        notes["testing"] = counted(len(study.comparison.seeds), "seed")
    for place, name in enumerate(names):
        is_here = place == at and study.state != "stopped"
        state: State = "running" if is_here else "done" if place < at else "to come"
        fallback = "not done" if study.state == "stopped" and state == "to come" else state
        yield PHASES[name], state, notes.get(name, fallback)


def _facts(study: StudyResults, best: Trial | None) -> Iterator[Fact]:
    comparison = study.comparison
    if comparison is not None:
        difference = comparison.difference
        yield Fact(
            f"Winner less default, {METRICS.get(study.metric, study.metric)}",
            signed(difference.mean),
            f"95\u202f% interval {_interval(difference)}; the broken line is no difference",
            _on_scale(difference),
        )
        yield Fact(
            "Probability of improvement",
            percent(comparison.probability),
            "that a run of the winner is better than one of the default",
        )
    elif best is not None and best.best is not None:
        yield Fact("Best so far", fixed(best.best.score), f"{_best_name(study, best)},{_at(best.best, study)}")
    if study.kl is not None and (kl := _kl_fact(study, best)):
        yield kl
    spent = duration(study.spent_seconds, digits=2)
    planned = [
        f"{name} {duration(value, digits=2)}"
        for name, value in (("forecast", study.forecast_seconds), ("budget", study.budget_seconds))
        if value is not None
    ]
    yield Fact("Time of runs", spent, ", ".join(planned) or "all runs one after the other")


def _kl_fact(study: StudyResults, best: Trial | None) -> Fact | None:
    """KL of winner and default where it was measured last."""
    note = f"nats per episode, budget {number(study.kl)}"
    if study.comparison is not None:
        pairs = (
            [seed.default_kl for seed in study.comparison.seeds],
            [seed.winner_kl for seed in study.comparison.seeds],
        )
        default, winner = (_mean([kl for kl in each if kl is not None]) for each in pairs)
        return Fact("KL, default → winner", f"{number(default)} → {number(winner)}", f"{note}; mean of the test seeds")
    if best is None or best.best is None:
        return None
    return Fact("KL of the best", number(best.best.kl), note)


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _on_scale(estimate: Estimate) -> tuple[float, float, float] | None:
    """The interval on a scale from 0 to 100 with no difference at 50."""
    if estimate.low is None or estimate.high is None:
        return None
    reach = 1.15 * max(abs(estimate.low), abs(estimate.high)) or 1.0
    low, mean, high = (50 + 50 * value / reach for value in (estimate.low, estimate.mean, estimate.high))
    return low, mean, high


def _settings(study: StudyResults, best: Trial | None) -> Iterator[Setting]:
    default = next((trial.params for trial in study.trials if trial.number == 0), {})
    for knob in study.space:
        usual = value_text(default.get(knob.name, knob.default))
        here = "" if best is None else value_text(best.params.get(knob.name))
        if knob.choices:
            searched = listed(value_text(choice) for choice in knob.choices)
        else:
            searched = f"{value_text(knob.low)} to {value_text(knob.high)}{', by its logarithm' if knob.log else ''}"
        yield Setting(knob.name, usual, here, searched, bool(here) and here != usual)


# ── rungs, and what was lost ─────────────────────────────────────────────────────────────────────────────────────────


def _name(trial: Trial) -> str:
    return "default" if trial.number == 0 else f"trial {trial.number}"


def _rung_rows(study: StudyResults) -> list[RungRow]:
    """The trials that have come furthest first, among them the best."""
    rows = [RungRow(trial, _name(trial), list(_cells(trial, study))) for trial in study.trials]
    return sorted(rows, key=lambda row: _rank(row.cells), reverse=True)


def _rank(cells: Sequence[Cell]) -> tuple[int, float]:
    known = [cell.score for cell in cells if cell.score is not None]
    return len(known), known[-1] if known else -math.inf


def _cells(trial: Trial, study: StudyResults) -> Iterator[Cell]:
    ended = False
    for place, rung in enumerate(study.rungs):
        if trial.iterations >= rung:
            goes_on = trial.iterations > rung or (place + 1 < len(study.rungs) and trial.state == "running")
            fate, kind = ("promoted", "promoted") if goes_on else (trial.state, trial.state)
            ended = ended or not goes_on
            yield Cell(score_at(trial, rung, study.kl), fate, kind)
        elif not ended:
            ended = True
            words = f"after {number(trial.iterations)} {study.unit}" if trial.iterations else ""
            yield Cell(None, f"{trial.state} {words}".strip(), trial.state)
        else:
            yield Cell(None, "", "none")


def _rung_summary(study: StudyResults) -> str:
    """As "27 trials began; 14 went on after 12 iterations, 7 after 36; …"."""
    went_on = [
        f"{sum(trial.iterations > rung for trial in study.trials)} after {number(rung)}" for rung in study.rungs[:-1]
    ]
    counts = {state: sum(trial.state == state for trial in study.trials) for state in ("paused", "pruned", "running")}
    now = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    begun = f"{counted(len(study.trials), 'trial')} begun"
    on_the_way = f"; went on: {', '.join(went_on)} {study.unit}" if went_on else ""
    return f"{begun}{on_the_way}{f'; {now}' if now else ''}."


def _lost(study: StudyResults) -> Iterator[Lost]:
    for trial in study.trials:
        if trial.state == "failed":
            yield Lost(_name(trial), "failed", trial.cause or "the cause is not known")
        elif trial.state == "infeasible":
            broken = ", ".join(_broken(trial.violations))
            yield Lost(_name(trial), "infeasible", broken or trial.cause or "a limit is broken")


def _broken(violations: Mapping[str, float]) -> Iterator[str]:
    for guard, by in sorted(violations.items(), key=lambda item: -item[1]):
        if by > 0:
            yield f"{guard}: {number(1 + by)} times its limit"


def _importance_warning(study: StudyResults) -> str:
    num = sum(trial.state in ("complete", "pruned", "infeasible") for trial in study.trials)
    if num >= FEWEST_FOR_IMPORTANCE:
        return ""
    return (
        f"Only {counted(num, 'trial')} finished: below {FEWEST_FOR_IMPORTANCE} these shares are mostly chance. Take "
        "them as a hint for the next search, not as a finding."
    )


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _money(study: StudyResults) -> Money:
    parts = list(seconds_by_trial(study).values())
    search, further, test = (math.fsum(part[at] for part in parts) for at in range(3))
    known = study.base_seconds + search + further + test
    rest = study.spent_seconds - known
    named = [
        ("stages before PPO, once for all", study.base_seconds),
        ("search", search),
        ("further seeds of the finalists", further),
        ("test on fresh seeds", test),
        ("not told apart", rest if rest > 0.01 * known else 0.0),
    ]
    whole = max(study.spent_seconds, known)
    rows = [(name, seconds, percent(seconds / whole)) for name, seconds in named if seconds > 0]
    return Money(rows, _money_note(study))


def _money_note(study: StudyResults) -> str:
    jobs = f", {study.jobs} at a time" if study.jobs > 1 else ""
    words = [f"All runs one after the other took {duration(study.spent_seconds)}{jobs}."]
    if study.forecast_seconds:
        words.append(
            f"Expected before the start: {duration(study.forecast_seconds)}; "
            f"spent: {percent(study.spent_seconds / study.forecast_seconds)} of that."
        )
    if study.budget_seconds:
        words.append(f"Budget: {duration(study.budget_seconds)}.")
    return " ".join(words)
