import math

import pytest

from rlhfkit.config.tune import KnobConfig, TuneConfig
from rlhfkit.rundir.study import Point, Trial
from rlhfkit.tuning.knobs import Knob
from rlhfkit.tuning.suggest import importance_of, suggest

KNOBS = (
    Knob("rate", KnobConfig(low=1e-5, high=1e-3, log=True), 1e-4),
    Knob("epochs", KnobConfig(low=1, high=4), 2),
    Knob("kind", KnobConfig(choices=("a", "b")), "a"),
)


def trial(number, params, score, state="complete", **known):
    best = None if score is None else Point(iteration=10, score=score, kl=1.0)
    return Trial(number=number, params=params, seed=0, state=state, best=best, iterations=30, **known)


def value(params):
    """The best is a rate of 1e-4."""
    return -(math.log10(params["rate"] / 1e-4) ** 2) - (params["kind"] == "b")


DEFAULTS = TuneConfig()


def history(num, config=DEFAULTS):
    trials = []
    for number in range(1, num):
        params = suggest(KNOBS, trials, config, number=number)
        trials.append(trial(number, params, value(params)))
    return trials


def test_first_trials_spread_over_the_whole_space():
    trials = history(9)
    tenths = {int(2 * math.log10(each.params["rate"] / 1e-5)) for each in trials}
    assert tenths == {0, 1, 2, 3}  # of four parts, by factors
    assert {each.params["epochs"] for each in trials} == {1, 2, 3, 4}
    assert {each.params["kind"] for each in trials} == {"a", "b"}


@pytest.mark.parametrize("sampler", ["gp", "tpe", "random"])
def test_a_trial_depends_on_what_was_seen_and_on_its_number_alone(sampler):
    trials, config = history(12), TuneConfig(sampler=sampler)
    first = suggest(KNOBS, trials, config, number=12)
    assert suggest(KNOBS, list(reversed(trials)), config, number=12) == first
    if sampler != "gp":  # which has no need of chance where it knows the place
        assert suggest(KNOBS, trials, config, number=13) != first
        assert suggest(KNOBS, trials, TuneConfig(sampler=sampler, seed=1), number=12) != first


@pytest.mark.thorough
def test_the_sampler_goes_where_it_was_good():
    trials = history(40)
    late = [abs(math.log10(each.params["rate"] / 1e-4)) for each in trials[-10:]]
    early = [abs(math.log10(each.params["rate"] / 1e-4)) for each in trials[:10]]
    assert sum(late) < 0.5 * sum(early)


@pytest.mark.thorough
def test_the_sampler_keeps_away_from_what_breaks_guards():
    """Above 1e-4 the score is better, and a guard is broken."""
    trials = []
    for number in range(1, 40):
        params = suggest(KNOBS, trials, TuneConfig(), number=number)
        over = math.log10(params["rate"] / 1e-4)
        trials.append(
            trial(number, params, over, "complete" if over <= 0 else "infeasible", violations={"length": over})
        )
    assert sum(each.violations["length"] <= 0 for each in trials[-10:]) >= 7


@pytest.mark.thorough
@pytest.mark.parametrize(("sampler", "num"), [("gp", 20), ("tpe", 30)])
def test_paused_trials_do_not_repel(sampler, num):
    """A constant liar takes what is under way for bad; what is paused has shown what it is worth."""
    config = TuneConfig(sampler=sampler)
    paused = [each.model_copy(update={"state": "paused"}) for each in history(num, config)]
    near = [suggest(KNOBS, paused, config, number=number)["rate"] for number in range(num, num + 6)]
    assert sum(abs(math.log10(rate / 1e-4)) < 0.5 for rate in near) >= 4


@pytest.mark.thorough
def test_several_jobs_do_not_try_the_same():
    trials = history(12)
    for number in range(12, 15):
        params = suggest(KNOBS, trials, TuneConfig(), number=number)
        trials.append(trial(number, params, None, "running"))
    rates = [each.params["rate"] for each in trials[-3:]]
    assert min(abs(math.log10(one / other)) for one in rates for other in rates if one is not other) > 0.01


def test_failed_trials_repel_and_what_they_are_worth_depends_on_the_scale_of_the_others():
    """All scores are below 0; a failed trial that counted as 0 would be the best of all."""
    trials = [
        trial(each.number, each.params, None, "failed")
        if each.params["rate"] > 3e-4
        else trial(each.number, each.params, value(each.params) - 100)
        for each in history(16)
    ]
    assert sum(each.state == "failed" for each in trials) >= 2
    suggested = [suggest(KNOBS, trials, TuneConfig(), number=number)["rate"] for number in range(16, 20)]
    assert all(rate <= 3e-4 for rate in suggested)


def test_a_default_outside_of_the_space_is_not_shown():
    outside = trial(0, {"rate": 1.0, "epochs": 2, "kind": "a"}, 5.0)
    known = history(12)
    assert suggest(KNOBS, [outside, *known], TuneConfig(), number=12) == suggest(KNOBS, known, TuneConfig(), number=12)


@pytest.mark.thorough
def test_importance_needs_trials_and_finds_what_mattered():
    trials = history(30, TuneConfig(sampler="random"))
    assert importance_of(KNOBS, trials[:5]) == {}
    found = importance_of(KNOBS, trials)
    assert max(found, key=found.get) == "rate" and sum(found.values()) == pytest.approx(1.0)
