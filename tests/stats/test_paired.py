"""Against scipy and statsmodels; what they lack, against counting by hand or simulation."""

import numpy as np
import pytest
from scipy import stats

from rlhfkit.errors import ShapeError
from rlhfkit.stats.multiple import benjamini_hochberg, holm
from rlhfkit.stats.paired import (
    bootstrap_means,
    detectable_difference,
    detectable_share,
    hierarchical_means,
    mcnemar,
    paired_interval,
    sign_flip_p_value,
)


@pytest.mark.parametrize(("gained", "lost", "both"), [(1, 7, 3), (0, 0, 5), (12, 30, 100), (6, 0, 0)])
def test_mcnemar_is_that_of_statsmodels(gained, lost, both):
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    before = [False] * gained + [True] * lost + [True] * both
    after = [True] * gained + [False] * lost + [True] * both
    found = mcnemar(before, after)
    expected = tables.mcnemar([[both, lost], [gained, 0]], exact=True).pvalue if gained + lost else 1.0
    assert found.p_value == pytest.approx(expected)
    assert (found.gained, found.lost, found.effect) == (gained, lost, (gained - lost) / len(before))


def test_mcnemar_refuses_sides_of_other_lengths():
    with pytest.raises(ShapeError, match="2 items before and 1 after"):
        mcnemar([True, False], [True])


def test_holm_and_benjamini_hochberg_are_those_of_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p_values = np.random.default_rng(0).random(20) ** 3
    p_values[3] = p_values[7]
    assert holm(p_values) == pytest.approx(multitest.multipletests(p_values, method="holm")[1])
    assert benjamini_hochberg(p_values) == pytest.approx(multitest.multipletests(p_values, method="fdr_bh")[1])
    assert holm([]) == benjamini_hochberg([]) == []


def test_bca_is_that_of_scipy():
    values = np.random.default_rng(1).exponential(size=40)
    ours = paired_interval(values, seed=0, method="bca", num_draws=100_000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=100_000, method="BCa", rng=0, batch=1000)
    # Two bootstraps of 100,000 draws: their ends differ by a few thousandths of the deviation.
    assert ours == pytest.approx(theirs.confidence_interval, abs=0.01)


def test_percentiles_of_many_values_are_those_of_scipy():
    values = np.random.default_rng(2).normal(size=400)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=0, batch=1000)
    assert paired_interval(values, seed=0) == pytest.approx(theirs.confidence_interval, abs=0.005)


def test_whole_groups_are_drawn():
    """Ten copies of a value tell no more than one: the deviation of the mean is that of the groups."""
    values = np.random.default_rng(3).normal(size=30)
    copies, groups = np.repeat(values, 10), np.repeat(np.arange(30), 10).tolist()
    means = bootstrap_means(copies, groups, generator=np.random.default_rng(0))
    assert means.std() == pytest.approx(values.std() / np.sqrt(30), rel=0.05)  # of 10,000 draws
    assert bootstrap_means(copies, generator=np.random.default_rng(0)).std() < 0.4 * means.std()


def test_no_spread_gives_no_interval():
    assert paired_interval([0.25] * 8, seed=0) == (None, None)
    assert paired_interval([1.0, 2.0], ["a", "a"], seed=0) == (None, None)


def test_seeds_are_drawn_before_prompts():
    """Variance of the mean over seeds + variance within a seed over its prompts, each by its number."""
    generator = np.random.default_rng(4)
    seeds = [generator.normal(shift, 1.0, size=50) for shift in (-1.0, 0.0, 2.0)]
    means = hierarchical_means(seeds, generator=np.random.default_rng(0), num_draws=4000)
    between = np.var([seed.mean() for seed in seeds]) / 3
    within = np.mean([seed.var() / 50 for seed in seeds]) / 3
    assert means.var() == pytest.approx(between + within, rel=0.1)  # of 4,000 draws
    assert means.mean() == pytest.approx(np.mean([seed.mean() for seed in seeds]), abs=0.05)


@pytest.mark.parametrize("num", [9, 60])
def test_tossed_signs_are_those_of_scipy(num):
    differences = np.random.default_rng(num).normal(0.3, 1.0, size=num)
    theirs = stats.permutation_test((differences,), np.mean, permutation_type="samples", rng=0, n_resamples=9999)
    # All 512 patterns of nine signs are counted by both; of sixty, 10,000 are drawn.
    assert sign_flip_p_value(differences, seed=0) == pytest.approx(theirs.pvalue, abs=1e-12 if num == 9 else 0.01)


def test_signs_are_tossed_by_group():
    assert sign_flip_p_value([1.0] * 20, seed=0) < 1e-3
    assert sign_flip_p_value([1.0] * 20, ["a", "b"] * 10, seed=0) == 0.5  # two of the four patterns
    assert sign_flip_p_value([0.0, 0.0], seed=0) == 1.0


def test_what_is_detectable_is_found_in_four_of_five_tries():
    generator = np.random.default_rng(5)
    num, shift = 60, detectable_difference(generator.normal(size=5000)) * np.sqrt(5000 / 60)
    tries = generator.normal(shift, 1.0, size=(2000, num))
    found = stats.ttest_1samp(tries, 0.0, axis=1).pvalue < 0.05
    assert np.mean(found) == pytest.approx(0.8, abs=0.04)
    assert detectable_difference([1.0, 2.0], ["a", "a"]) is None


def test_fewer_than_six_discordant_pairs_show_nothing():
    assert detectable_share(0, 0, 100) == 0.06
    assert (detectable_share(0, 0, 6), detectable_share(0, 0, 5)) == (1.0, None)
    assert mcnemar([False] * 5, [True] * 5).p_value > 0.05 > mcnemar([False] * 6, [True] * 6).p_value
    assert detectable_share(9, 16, 100) == pytest.approx(0.14)
