import math

import pytest

from rlhfkit.errors import ConfigError, TrainingError
from rlhfkit.ppo import AdaptiveEntropy

RULE = AdaptiveEntropy(initial_coef=0.01, target=2.0, rate=0.1, damping=0.5, reach=10.0)


@pytest.mark.parametrize(
    ("entropy", "factor"),
    [(2.0, 1.0), (1.0, math.exp(0.05)), (0.0, math.exp(0.1)), (3.0, math.exp(-0.05)), (9.0, math.exp(-0.1))],
)
def test_the_coefficient_rises_below_the_target_and_falls_above_it_by_bounded_factors(entropy, factor):
    assert RULE.next(0.02, entropy) == pytest.approx(0.02 * factor)
    assert RULE.coef(0.02, entropy) == pytest.approx(0.02 * factor**5)


def test_the_coefficient_stays_within_reach_of_its_start():
    low = high = RULE.initial_coef
    for _ in range(100):
        low, high = RULE.next(low, 50.0), RULE.next(high, 0.0)
    assert (low, high) == (pytest.approx(0.001), pytest.approx(0.1))
    assert RULE.coef(high, 0.0) == pytest.approx(0.1)
    assert RULE.next(high, 4.0) < high  # and comes back at once


@pytest.mark.parametrize(
    "change", [{"initial_coef": 0.0}, {"target": -1.0}, {"rate": math.inf}, {"damping": -1.0}, {"reach": 1.0}]
)
def test_a_rule_that_could_not_work_is_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        AdaptiveEntropy(**{"initial_coef": 0.01, "target": 2.0, **change})


def test_an_entropy_that_is_not_finite_stops():
    with pytest.raises(TrainingError, match="observed_entropy nan"):
        RULE.next(0.01, math.nan)
