"""What a study takes, in seconds of runs: before it begins, and once its first runs were timed. Pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlhfkit.errors import ConfigError
from rlhfkit.tuning.design import Design
from rlhfkit.wording import duration

__all__ = ["CHOICES_OF_TRIALS", "Cost", "Rates", "cost_of", "fitting"]

CHOICES_OF_TRIALS = (81, 54, 27, 18, 12, 9, 6, 4)
"""Numbers of trials that a budget is cut to."""


@dataclass(frozen=True)
class Rates:
    """How long parts take here."""

    base: float
    """Seconds of what all runs share."""
    whole: float
    """Seconds of a whole run of PPO, with the recipe's settings and its evaluations on the way."""
    start: float
    """Seconds that each process takes before it works."""
    evaluation: float = 0.0
    """Seconds of the evaluation after it, which only the runs of the test have."""
    factor: float = 1.0
    """How much longer a trial takes than the recipe, on average over the space."""


@dataclass(frozen=True)
class Cost:
    """Seconds of runs, one after the other."""

    base: float
    search: float
    confirmation: float
    test: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.base + self.search + self.confirmation + self.test


def cost_of(design: Design, rates: Rates) -> Cost:
    """What is expected, if the winner is not the recipe itself.

    Of n trials n / reduction^k, or the finalists where that is fewer, come to rung k, and the recipe itself beside
    them. A stretch from one rung to the next costs its share of a whole run, and the start of a process.
    """
    tune, whole = design.tune, rates.whole * rates.factor
    search, before, following = 0.0, 0, tune.trials - 1
    for rung in design.rungs:
        others, stretch = following, (rung - before) / design.total
        search += others * (stretch * whole + rates.start) + stretch * rates.whole + rates.start
        before, following = rung, max((others + 1) // tune.reduction, min(tune.finalists, others))
    finalists = min(tune.finalists, others + 1)
    return Cost(
        base=rates.base,
        search=search,
        confirmation=finalists * tune.confirmation_seeds * (whole + rates.start),
        test=tune.test_seeds * (rates.whole + whole + 2 * (rates.start + rates.evaluation)),
    )


def fitting(design: Design, rates: Rates, *, budget: float, jobs: int) -> Design:
    """The study with as many trials as the budget, in seconds of time, has room for.

    Raises: ConfigError where it has room for none, with what the smallest study takes.
    """
    smaller = [design.with_trials(num) for num in CHOICES_OF_TRIALS]
    for study in smaller:
        if cost_of(study, rates).total / jobs <= budget:
            return study
    least = cost_of(smaller[-1], rates).total / jobs
    raise ConfigError(
        f"--budget {duration(budget)} is too little: the smallest study, of {CHOICES_OF_TRIALS[-1]} trials, takes "
        f"about {duration(least)} here; raise it, set fewer tune.test_seeds ({design.tune.test_seeds}) or "
        f"tune.confirmation_seeds ({design.tune.confirmation_seeds}), or lower ppo.iterations"
    )


def factor_of(design: Design, update_share: float) -> float:
    """How much longer than the recipe a trial takes on average, if updates take so much of the recipe's time.

    Only the number of epochs changes the work; what a knob of its own searches beside it is taken as free.
    """
    knob = next((knob for knob in design.knobs if knob.name == "ppo.epochs"), None)
    if knob is None or not isinstance(knob.default, int) or not knob.where.choices:
        return 1.0
    choices: Sequence[float] = [float(choice) for choice in knob.where.choices]
    return 1 - update_share + update_share * math.fsum(choices) / len(choices) / knob.default
