import numpy as np
import pytest

from rlhfkit.rundir.study import Point, SeedOfFinalist
from rlhfkit.tuning.agenda import Standing
from rlhfkit.tuning.finals import TestRun, best_trials, chosen, compared, finalist_of, probability_of_improvement

TestRun.__test__ = False


def seeds(*scores):
    return [SeedOfFinalist(seed=at, best=Point(iteration=1, score=score), run="") for at, score in enumerate(scores)]


def test_a_finalist_is_worth_its_mean_less_its_deviation():
    finalist = finalist_of(3, seeds(1.0, 2.0, 3.0))
    assert (finalist.mean, finalist.std, finalist.worth) == (2.0, 1.0, 1.0)
    assert finalist_of(3, seeds(2.0)).worth == 2.0


def test_a_lucky_seed_does_not_win():
    lucky, steady = finalist_of(1, seeds(9.0, 1.0, 1.0)), finalist_of(2, seeds(2.0, 2.1, 1.9))
    assert [finalist.number for finalist in chosen([lucky, steady])] == [2, 1]


def test_the_best_trials_keep_their_guards_and_have_not_failed():
    trials = [
        Standing(0, {10: (0.0, 1.0), 30: (0.0, 1.0)}, end="complete"),
        Standing(1, {10: (0.0, 5.0)}, end="pruned"),
        Standing(2, {10: (0.0, 5.0), 30: (0.2, 9.0)}, end="infeasible"),
        Standing(3, {10: (0.0, 5.0), 30: (0.0, 3.0)}, end="failed"),
        Standing(4, {10: (0.0, 5.0), 30: (0.0, 2.0)}, end="complete"),
    ]
    assert best_trials(trials, 30, 3) == [4, 0]


@pytest.mark.parametrize(
    ("values", "others", "chance"), [([1, 2], [0], 1.0), ([0], [1, 2], 0.0), ([1, 3], [1, 2], 0.625), ([1], [1], 0.5)]
)
def test_probability_of_improvement(values, others, chance):
    assert probability_of_improvement(values, others) == chance


def runs(gain, *, spread, num=5, prompts=50):
    hard = np.random.default_rng(0).standard_normal(prompts)  # the same prompts are hard for everybody
    generator = np.random.default_rng(int(100 * gain) + 1000)
    lucks = gain + spread * generator.standard_normal(num)
    return [TestRun(at, list(hard + luck + 0.3 * generator.standard_normal(prompts))) for at, luck in enumerate(lucks)]


def test_a_gain_is_seen_and_told():
    found = compared(7, runs(0.5, spread=0.05), runs(0.0, spread=0.05), seed=0, unit="prompts")
    assert found.is_gain and found.difference.low > 0.2
    assert found.difference.mean == pytest.approx(np.mean([seed.winner - seed.default for seed in found.seeds]))
    assert found.probability == 1.0 and found.num_prompts == 50
    assert "Trial 7 is better" in found.words


def test_what_seeds_alone_may_bring_is_no_gain():
    found = compared(7, runs(0.1, spread=0.5), runs(0.0, spread=0.5), seed=0, unit="prompts")
    assert not found.is_gain and "No evidence of gain" in found.words and "keep the recipe" in found.words


def test_a_loss_is_told():
    found = compared(7, runs(-0.5, spread=0.05), runs(0.0, spread=0.05), seed=0, unit="prompts")
    assert not found.is_gain and "worse than the recipe" in found.words


def test_other_seeds_or_prompts_are_refused():
    with pytest.raises(ValueError, match="argument 2"):
        compared(1, runs(0, spread=0.1), runs(0, spread=0.1, num=4), seed=0, unit="prompts")
    with pytest.raises(ValueError, match="broadcast"):
        compared(1, runs(0, spread=0.1), runs(0, spread=0.1, prompts=40), seed=0, unit="prompts")
