"""What to try next: Optuna's samplers, shown what is known of every trial. The answer depends on nothing else."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.quasirandom import SobolEngine

from rlhfkit.config.tune import KnobConfig, TuneConfig
from rlhfkit.errors import MissingDependencyError
from rlhfkit.machine.seeding import derive_seed
from rlhfkit.rundir.study import Trial
from rlhfkit.tuning.knobs import Knob, Params

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

__all__ = ["distribution_of", "distributions_of", "importance_of", "optuna", "suggest"]

ENOUGH_FOR_IMPORTANCE = 10
"""Trials that have a score; below, shares of importance are noise."""


def optuna() -> Any:
    """The package. Raises: MissingDependencyError with the install line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import optuna as package
    except ImportError as error:
        raise MissingDependencyError(
            "a search needs a package that is missing (optuna); pip install 'rlhfkit[search]'"
        ) from error
    package.logging.set_verbosity(package.logging.ERROR)
    return package


def suggest(knobs: Sequence[Knob], trials: Sequence[Trial], config: TuneConfig, *, number: int) -> Params:
    """Values of the knobs for the trial of this number, which comes after `trials`.

    The first `num_random` ones after the default spread evenly (a scrambled Sobol sequence); then the sampler decides.
    It sees a paused trial as worth what it was at its rung. What is on its way to a first rung is told to it as
    running, so that several jobs do not try the same. The random numbers of a trial follow from its number, not from
    how often a process was started.
    """
    package = optuna()
    if number <= config.num_random or config.sampler == "random":
        return _evenly(knobs, config, number)
    seed = derive_seed(config.seed, "suggest", number) % 2**31
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is experimental there
        if config.sampler == "gp":
            sampler = package.samplers.GPSampler(seed=seed, n_startup_trials=0)
        else:
            sampler = package.samplers.TPESampler(seed=seed, n_startup_trials=0, multivariate=True, constant_liar=True)
        study = package.create_study(direction="maximize", sampler=sampler)
        study.add_trials(_seen(knobs, trials))
        params = study.ask(distributions_of(knobs)).params
    return {knob.name: _rounded(params[knob.name], knob.where) for knob in knobs}


def distributions_of(knobs: Sequence[Knob]) -> "dict[str, BaseDistribution]":
    """Knob → where it is searched, in Optuna's words."""
    return {knob.name: distribution_of(knob.where) for knob in knobs}


def distribution_of(where: KnobConfig) -> "BaseDistribution":
    """The same for one."""
    kinds = optuna().distributions
    if where.choices:
        chosen: BaseDistribution = kinds.CategoricalDistribution(where.choices)
        return chosen
    kind = kinds.IntDistribution if where.is_integer else kinds.FloatDistribution
    ranged: BaseDistribution = kind(where.low, where.high, log=where.log)
    return ranged


def importance_of(knobs: Sequence[Knob], trials: Sequence[Trial]) -> dict[str, float]:
    """Knob → its share in what makes trials good, the largest first (PED-ANOVA); empty for too few trials."""
    package = optuna()
    ended = [trial for trial in trials if trial.state in ("complete", "infeasible", "failed")]
    seen = _seen(knobs, ended)
    if len(seen) < ENOUGH_FOR_IMPORTANCE:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = package.create_study(direction="maximize")
        study.add_trials(seen)
        found = package.importance.get_param_importances(study, params=[knob.name for knob in knobs])
    return dict(found)


def _evenly(knobs: Sequence[Knob], config: TuneConfig, number: int) -> Params:
    """The point of this number in a scrambled Sobol sequence over the space."""
    sequence: Any = SobolEngine(len(knobs), scramble=True, seed=derive_seed(config.seed, "sobol") % 2**31)  # type: ignore[no-untyped-call]
    point = sequence.fast_forward(number).draw(1, dtype=torch.float64)[0].tolist()
    shares = zip(knobs, point, strict=True)
    return {knob.name: _rounded(_value_at(knob.where, float(share)), knob.where) for knob, share in shares}


def _rounded(value: Any, where: KnobConfig) -> Any:
    """To four digits, which is finer than anything that seeds let one see; within the range."""
    if where.choices or where.is_integer or where.low is None or where.high is None:
        return value
    return min(max(float(f"{value:.4g}"), where.low), where.high)


def _value_at(where: KnobConfig, share: float) -> Any:
    """The value at a share, 0 to 1, of the way through a range."""
    if where.choices:
        return where.choices[min(int(share * len(where.choices)), len(where.choices) - 1)]
    assert where.low is not None and where.high is not None
    low, high = float(where.low), float(where.high)
    if where.is_integer:  # each whole number has the same room
        low, high = low - 0.5, high + 0.5
    value = low * (high / low) ** share if where.log and low > 0 else low + share * (high - low)
    return min(max(round(value), where.low), where.high) if where.is_integer else value


def _seen(knobs: Sequence[Knob], trials: Sequence[Trial]) -> "list[FrozenTrial]":
    """What the sampler is shown, by number. The default is left out where it lies outside of the space."""
    distributions = distributions_of(knobs)
    worst = min((trial.best.score for trial in trials if trial.best is not None), default=0.0)
    shown = []
    for trial in sorted(trials, key=lambda trial: trial.number):
        inside = trial.params.keys() == distributions.keys() and all(
            distribution._contains(distribution.to_internal_repr(trial.params[name]))
            for name, distribution in distributions.items()
        )
        if inside:
            shown.append(_frozen(trial, distributions, worst))
    return shown


def _frozen(trial: Trial, distributions: "dict[str, BaseDistribution]", worst: float) -> "FrozenTrial":
    """A trial as the sampler is to see it; one that has no score counts as the worst that has one."""
    package = optuna()
    states = package.trial.TrialState
    known: dict[str, Any] = {"params": dict(trial.params), "distributions": distributions, "state": states.RUNNING}
    if trial.best is not None or trial.state == "failed":
        known |= {"state": states.COMPLETE, "value": worst if trial.best is None else trial.best.score}
        known["constraints"] = {"guards": 1.0 if trial.state == "failed" else _nearness(trial.violations)}
    shown: FrozenTrial = package.trial.create_trial(**known)
    return shown


def _nearness(violations: Mapping[str, float]) -> float:
    """How near the worst guard is to its limit: -1 far from it, 0 there, 1 far beyond.

    With its sign, since a process that saw only what is broken would take every good trial for one on the edge; and
    bounded, since a single 1000 would hide all else from it.
    """
    worst = max(violations.values(), default=-math.inf)
    return -1.0 if math.isinf(worst) else worst / (1 + abs(worst))
