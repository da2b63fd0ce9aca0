"""The end of a search: the best trials with further seeds, and winner against recipe. Pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from rlhfkit.rundir.results import Estimate
from rlhfkit.rundir.study import Comparison, Finalist, SeedOfFinalist, SeedOfTest
from rlhfkit.stats.intervals import bootstrap_interval
from rlhfkit.stats.paired import hierarchical_means
from rlhfkit.tuning.agenda import Standing, order

__all__ = ["TestRun", "best_trials", "chosen", "compared", "finalist_of", "probability_of_improvement"]


def best_trials(trials: Sequence[Standing], last_rung: int, num: int) -> list[int]:
    """Numbers of the best trials that came to the last rung and keep their guards, the best first."""
    complete = [trial for trial in trials if last_rung in trial.values and trial.end != "failed"]
    ranked = sorted(complete, key=lambda trial: order(trial, last_rung))
    return [trial.number for trial in ranked if trial.values[last_rung][0] <= 0][:num]


def finalist_of(number: int, seeds: Sequence[SeedOfFinalist]) -> Finalist:
    """A trial with its seeds. It is worth the mean of their scores, less their deviation: luck is not worth having."""
    scores = [seed.best.score for seed in seeds]
    mean, std = fmean(scores), stdev(scores) if len(scores) > 1 else 0.0
    return Finalist(number=number, seeds=tuple(seeds), mean=mean, std=std, worth=mean - std)


def chosen(finalists: Sequence[Finalist]) -> list[Finalist]:
    """The finalists, the winner first; of equals the earlier trial."""
    return sorted(finalists, key=lambda finalist: (-finalist.worth, finalist.number))


NUM_DRAWS = 2_000


@dataclass(frozen=True)
class TestRun:
    """What a run of the test brought, on prompts that the search has not used."""

    seed: int
    scores: Sequence[float]
    """One for each prompt (or episode), in the same order in all runs."""
    kl: float | None = None
    """Nats per episode."""


def compared(winner: int, runs: Sequence[TestRun], defaults: Sequence[TestRun], *, seed: int, unit: str) -> Comparison:
    """The winner against the recipe as it is, run by run with the same seed.

    The interval is of a bootstrap that draws seeds, and then each seed's prompts: the difference that another user
    would find who trains both once more. With `unit` "episodes" the two play other episodes, and only seeds are paired.
    Raises: ValueError where seeds or prompts are not the same.
    """
    pairs = list(zip(runs, defaults, strict=True))
    by_seed = [
        np.subtract(one.scores, other.scores) if unit == "prompts" else [fmean(one.scores) - fmean(other.scores)]
        for one, other in pairs
    ]
    means = hierarchical_means(by_seed, generator=np.random.default_rng(seed), num_draws=NUM_DRAWS)
    low, high = bootstrap_interval(means.tolist(), len(by_seed))
    per_seed = [float(np.mean(values)) for values in by_seed]
    difference = Estimate(mean=fmean(per_seed), low=low, high=high, std=stdev(per_seed) if len(per_seed) > 1 else None)
    probability = probability_of_improvement(
        [fmean(run.scores) for run in runs], [fmean(run.scores) for run in defaults]
    )
    is_gain = low is not None and low > 0
    return Comparison(
        winner=winner,
        seeds=tuple(
            SeedOfTest(
                seed=one.seed,
                winner=fmean(one.scores),
                default=fmean(other.scores),
                winner_kl=one.kl,
                default_kl=other.kl,
            )
            for one, other in pairs
        ),
        num_prompts=len(runs[0].scores),
        difference=difference,
        probability=probability,
        is_gain=is_gain,
        words=_words(winner, difference, is_gain=is_gain, num_seeds=len(runs)),
    )


def probability_of_improvement(values: Sequence[float], others: Sequence[float]) -> float:
    """P(X > Y) + P(X = Y) / 2 over all pairs of a run of one and a run of the other.

    Source: Agarwal et al. 2021, arXiv 2108.13264, section 4.3.
    """
    wins = math.fsum((x > y) + 0.5 * (x == y) for x in values for y in others)
    return wins / (len(values) * len(others))


def _words(winner: int, difference: Estimate, *, is_gain: bool, num_seeds: int) -> str:
    numbers = f"{difference.mean:+.3g} ({difference.words(lambda value: f'{value:+.3g}')}) over {num_seeds} fresh seeds"
    if is_gain:
        return f"Trial {winner} is better than the recipe: {numbers}."
    is_worse = difference.high is not None and difference.high < 0
    if is_worse:
        return f"Trial {winner} is worse than the recipe on what the search has not seen: {numbers}; keep the recipe."
    return f"No evidence of gain: trial {winner} less the recipe is {numbers}; keep the recipe."
