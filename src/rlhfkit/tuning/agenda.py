"""Which trial goes on, and how far: successive halving that is asynchronous, and pauses in place of ending. Pure.

A decision depends only on the trials' values at rungs, never on the time that something took, so that one job at a time
gives the same trials whatever was killed on the way.
Source: Li et al. 2018, arXiv 1810.05934 (ASHA).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

__all__ = ["DEFAULT", "USUAL", "Standing", "may_go_on", "next_step", "order", "rungs_of"]

DEFAULT, USUAL = 0, 1
"""The trial that has the recipe's own settings, and the one that has those that a recipe has which says nothing."""


@dataclass(frozen=True)
class Standing:
    """How far a trial has come."""

    number: int
    values: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    """Rung → (by how much its guards are broken there, 0 if they hold; score within the budget)."""
    end: str | None = None
    """How it ended; None while it may go on."""
    reaching: int | None = None
    """The rung that it was sent to, and has not come to yet."""

    @property
    def rung(self) -> int | None:
        """The last rung that it came to."""
        return max(self.values, default=None)


def rungs_of(
    iterations: int, *, every: int, least: int, reduction: int, planned: int, finalists: int
) -> tuple[int, ...]:
    """Iterations after which trials are compared; the last is the whole run.

    R / reduction^k for k = ..., 2, 1, 0, each right after an evaluation: none before `least` iterations, none so near
    to the next that it would save nothing, and no more than leave as many `finalists` of the `planned` trials.
    """
    rungs, left = [iterations], planned // reduction
    share = iterations / reduction
    while left >= finalists:
        rung = max(1, round(max(share, least) / every)) * every + 1
        if rung >= least and 2 * rung <= rungs[-1] + every:
            rungs.append(rung)
        if share <= least:
            break
        share, left = share / reduction, left // reduction
    return tuple(reversed(rungs))


def order(standing: Standing, rung: int) -> tuple[float, float, int]:
    """Key that sorts trials at a rung, the best first: guards that hold, then the score, then the number."""
    violation, score = standing.values[rung]
    return violation, -score, standing.number


def may_go_on(trials: Sequence[Standing], rungs: Sequence[int], *, reduction: int) -> tuple[int, int] | None:
    """(number of a trial, rung that it goes on to), if one has earned it; the highest rung first.

    Of n trials that have come to a rung, no more than n / reduction, rounded down, go on, and each of them is among the
    best n / reduction when it does; the default always goes on, and takes nobody's place. Without the first condition a
    sampler that finds better and better ones sends nearly all of them on, and costs what nobody had reckoned with.
    """
    for at in range(len(rungs) - 2, -1, -1):
        here = _ranked(trials, rungs[at])
        places = len(here) // reduction
        num_gone = sum(_has_gone_on(trial, rungs[at]) for trial in here if trial.number != DEFAULT)
        for place, trial in enumerate(here):
            has_earned = place < places and num_gone < places and trial.values[rungs[at]][0] <= 0
            if _is_paused(trial, rungs[at]) and (has_earned or trial.number == DEFAULT):
                return trial.number, rungs[at + 1]
    return None


def next_step(
    trials: Sequence[Standing], rungs: Sequence[int], *, planned: int, reduction: int, finalists: int
) -> tuple[int | None, int] | None:
    """(number of the trial that goes on, None for a new one; rung), or None where nothing is left to be started.

    Once all have been begun, the best `finalists` of each rung go on, though others have taken the places before them.
    """
    if (promoted := may_go_on(trials, rungs, reduction=reduction)) is not None:
        return promoted
    if len(trials) < planned:
        return None, rungs[0]
    for rung, following in pairwise(rungs):
        for trial in _ranked(trials, rung)[:finalists]:
            if _is_paused(trial, rung) and trial.values[rung][0] <= 0:
                return trial.number, following
    return None


def _ranked(trials: Sequence[Standing], rung: int) -> list[Standing]:
    """Those that have come to a rung, the best first."""
    return sorted((trial for trial in trials if rung in trial.values), key=lambda trial: order(trial, rung))


def _is_paused(trial: Standing, rung: int) -> bool:
    return trial.rung == rung and trial.reaching is None and trial.end is None


def _has_gone_on(trial: Standing, rung: int) -> bool:
    return trial.rung != rung or trial.reaching is not None
