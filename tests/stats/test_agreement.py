"""Agreement against published values, hand-computed ones and independent libraries."""

import json
import math

import krippendorff
import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from rlhfkit.errors import ShapeError
from rlhfkit.stats.agreement import (
    Statistic,
    ValueCounts,
    accuracy_without_noise,
    annotator_accuracy,
    binomial_p_value,
    ceiling_of_majorities,
    cohen_kappa,
    confusion,
    count_values,
    fleiss_kappa,
    gwet_ac1,
    krippendorff_alpha,
    majority_of_three,
    raw_agreement,
    share,
)

NAN = math.nan
LEVELS = ("nominal", "ordinal", "interval", "ratio")

FOUR_CODERS = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
THREE_CODERS = (".....34121133.3", "1.213343.......", "..21344.21133.4")
BINARY = ("0100000010", "1110010000")
NOMINAL = ("aabbdcccedda", "babbbccceddd")
DEGREES = [
    [2, 1, -1, 0, NAN, -2, 1, NAN],
    [1, 1, -2, 0, 1, -2, -1, NAN],
    [2, NAN, -1, 1, 1, -1, NAN, 2],
]


def by_character(*coders):
    """Ratings (items, raters) of one string a coder; a point is a missing one."""
    return [[NAN if mark == "." else ord(mark) - ord("0") for mark in marks] for marks in zip(*coders, strict=True)]


def degrees():
    return np.array(DEGREES).T


def from_table(table):
    """Ratings (items, 2) of two people with this confusion table."""
    return [[i, j] for i, row in enumerate(table) for j, times in enumerate(row) for _ in range(times)]


def alpha(ratings, level="nominal"):
    return krippendorff_alpha(count_values(ratings), level=level)


def random_ratings(seed):
    generator = np.random.default_rng(seed)
    num_items, num_raters, num_values = generator.integers(4, 30), generator.integers(2, 6), generator.integers(2, 6)
    truth = generator.integers(num_values, size=(num_items, 1))
    ratings = np.where(
        generator.random((num_items, num_raters)) < 0.6,
        truth,
        generator.integers(num_values, size=(num_items, num_raters)),
    ).astype(float)
    ratings[generator.random(ratings.shape) < generator.uniform(0, 0.4)] = NAN
    return ratings


# ── two people ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_kappa_of_the_textbook_has_its_value_and_interval():
    kappa = cohen_kappa([[20, 5], [10, 15]])
    assert (kappa.value, kappa.low, kappa.high) == pytest.approx((0.4, 0.151092, 0.648908), abs=1e-6)
    assert ((kappa.high - kappa.low) / 2 / 1.959964) ** 2 == pytest.approx(0.016128, abs=1e-8)
    assert (kappa.n, kappa.unit, kappa.reason) == (50, "items that both rated", "")
    assert gwet_ac1(count_values(from_table([[20, 5], [10, 15]]))).value == pytest.approx(0.405941, abs=1e-6)


@pytest.mark.parametrize(("table", "expected"), [([[45, 15], [25, 15]], 0.130435), ([[25, 35], [5, 35]], 0.259259)])
def test_kappa_depends_on_the_marginals(table, expected):
    assert cohen_kappa(table).value == pytest.approx(expected, abs=1e-6)


def test_kappa_of_three_values():
    table = [[30, 5, 5], [4, 28, 8], [3, 2, 15]]
    assert cohen_kappa(table).value == pytest.approx(0.588415, abs=1e-6)
    assert cohen_kappa(table, weights="linear").value == pytest.approx(0.584323, abs=1e-6)
    assert cohen_kappa(table, weights="quadratic").value == pytest.approx(0.579901, abs=1e-6)
    ratings = count_values(from_table(table))
    assert raw_agreement(ratings).value == pytest.approx(0.73)
    assert gwet_ac1(ratings).value == pytest.approx(0.598945, abs=1e-6)


@pytest.mark.parametrize(("weights", "expected"), [(None, 0.375), ("linear", 0.605263), ("quadratic", 0.777778)])
def test_kappa_of_five_degrees(weights, expected):
    table = confusion([0, 0, 1, 1, 2, 2, 3, 3, 4, 4], [0, 1, 1, 2, 2, 1, 3, 4, 4, 2])
    assert cohen_kappa(table, weights=weights).value == pytest.approx(expected, abs=1e-6)


def test_kappa_can_be_below_0_where_nearly_all_agree_and_ac1_is_not():
    ratings = count_values(from_table([[118, 5], [2, 0]]))
    assert raw_agreement(ratings).value == pytest.approx(0.944)
    assert cohen_kappa([[118, 5], [2, 0]]).value == pytest.approx(-0.023392, abs=1e-6)
    assert gwet_ac1(ratings).value == pytest.approx(0.940776, abs=1e-6)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("weights", [None, "linear", "quadratic"])
def test_kappa_equals_that_of_scikit_learn(seed, weights):
    ratings = random_ratings(seed)[:, :2]
    both = ratings[~np.isnan(ratings).any(axis=1)].astype(int)
    scale = np.arange(6)
    expected = cohen_kappa_score(both[:, 0], both[:, 1], weights=weights, labels=scale)
    table = confusion(ratings[:, 0], ratings[:, 1], values=scale)
    assert cohen_kappa(table, weights=weights).value == pytest.approx(expected)


@pytest.mark.parametrize("weights", [None, "linear", "quadratic"])
def test_interval_of_kappa_covers_the_true_one(weights):
    # Two people who each copy the truth in 70 % and else take any of three values: for 1,000 samples of 200 items,
    # 95 % ± 1.4 % (two standard errors) of the intervals should hold the kappa of the joint distribution.
    generator = np.random.default_rng(0)
    one = 0.7 * np.eye(3) + 0.1
    joint = one.T @ one / 3
    true = cohen_kappa(joint * 10_000, weights=weights).value
    samples = generator.multinomial(200, joint.ravel(), size=1000).reshape(-1, 3, 3)
    held = [kappa.low <= true <= kappa.high for kappa in (cohen_kappa(table, weights=weights) for table in samples)]
    assert 0.94 <= np.mean(held) <= 0.98


def test_full_agreement_and_full_disagreement_have_a_kappa_without_an_interval():
    for table, expected in (([[5, 0], [0, 5]], 1.0), ([[0, 2], [2, 0]], -1.0)):
        kappa = cohen_kappa(table)
        assert (kappa.value, kappa.low, kappa.high) == (pytest.approx(expected), None, None)
        assert "no interval" in kappa.reason


@pytest.mark.parametrize(
    ("table", "reason"), [([[7, 0], [0, 0]], "one and the same"), ([[0, 0], [0, 0]], "no item"), ([[4]], "one and")]
)
@pytest.mark.parametrize("weights", [None, "linear", "quadratic"])
def test_kappa_that_is_not_defined_says_why(table, reason, weights):
    kappa = cohen_kappa(table, weights=weights)
    assert kappa.value is kappa.low is kappa.high is None
    assert reason in kappa.reason


def test_confusion_leaves_out_what_only_one_rated():
    table = confusion([1, NAN, 2, 2, NAN], [2, 1, NAN, 2, NAN])
    assert table.tolist() == [[0, 1], [0, 1]]


def test_confusion_of_different_lengths_is_an_error():
    with pytest.raises(ShapeError, match=r"\(2,\) and \(3,\)"):
        confusion([1, 2], [1, 2, 3])


@pytest.mark.parametrize("call", [lambda: confusion([1], [9], values=[1, 2]), lambda: count_values([[9]], values=[1])])
def test_rating_off_the_scale_is_an_error(call):
    with pytest.raises(ShapeError, match=r"\[9\.0\] are not on the scale"):
        call()


def test_kappa_of_a_table_that_is_not_square_is_an_error():
    with pytest.raises(ShapeError, match=r"\(1, 2\)"):
        cohen_kappa([[1, 2]])


# ── many people ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_fleiss_kappa_of_1971():
    rows = "0 0 0 0 14/0 2 6 4 2/0 0 3 5 6/0 3 9 2 0/2 2 8 1 1/7 7 0 0 0/3 2 6 3 0/2 5 3 2 2/6 5 2 1 0/0 2 2 3 7"
    counts = np.array([[float(number) for number in row.split()] for row in rows.split("/")])
    kappa = fleiss_kappa(ValueCounts(np.arange(5.0), counts))
    assert kappa.value == pytest.approx(4211 / 20059)
    assert kappa.n == 10


def test_fleiss_kappa_needs_equally_many_ratings():
    kappa = fleiss_kappa(count_values([[1, 2], [1, NAN]]))
    assert kappa.value is None
    assert "1 to 2 ratings" in kappa.reason


@pytest.mark.parametrize(
    ("ratings", "reason"), [(np.zeros((0, 2)), "no items"), ([[1], [2]], "two ratings"), ([[1, 1]], "one and the same")]
)
def test_fleiss_kappa_that_is_not_defined_says_why(ratings, reason):
    kappa = fleiss_kappa(count_values(ratings))
    assert kappa.value is None
    assert reason in kappa.reason


@pytest.mark.parametrize(
    ("ratings", "expected"),
    [
        (by_character(*FOUR_CODERS), (0.743421, 0.815388, 0.849107, 0.797403)),
        (by_character(*THREE_CODERS), (0.691358, 0.806721, 0.810845, 0.808944)),
        (degrees(), (0.297521, 0.744674, 0.755834)),
        (np.sign(degrees()), (0.642105, 0.689359)),
        (by_character(*BINARY), (0.095238,)),
        (by_character(*NOMINAL), (0.691964,)),
    ],
)
def test_alpha_has_the_published_values(ratings, expected):
    values = [alpha(ratings, level).value for level in LEVELS[: len(expected)]]
    assert values == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("coders", "expected"), [(BINARY, 0.090909), (NOMINAL, 0.684211)])
def test_kappa_of_the_examples_of_alpha(coders, expected):
    first, second = np.array(by_character(*coders)).T
    assert cohen_kappa(confusion(first, second)).value == pytest.approx(expected, abs=1e-6)


def test_alpha_counts_only_ratings_that_can_be_paired():
    assert alpha(degrees()).n == 18


def test_agreement_of_pairs_with_and_without_ties_and_by_the_half_rule():
    ratings = count_values(np.sign(degrees()))
    assert (raw_agreement(ratings).value, raw_agreement(ratings).n) == (pytest.approx(12 / 15), 15)
    assert raw_agreement(ratings, ties="half").value == pytest.approx(13 / 15)
    # Without its two ties the fourth item has one rating left, so that three pairs fall out, of which one agreed.
    without = raw_agreement(ratings, ties="drop")
    assert (without.value, without.n) == (pytest.approx(11 / 12), 12)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("level", LEVELS)
def test_alpha_equals_that_of_the_krippendorff_library(seed, level):
    ratings = random_ratings(seed)
    expected = krippendorff.alpha(reliability_data=ratings.T, level_of_measurement=level)
    assert alpha(ratings, level).value == pytest.approx(expected)


@pytest.mark.parametrize("level", LEVELS)
def test_alpha_of_one_value_only_is_not_defined(level):
    result = alpha([[3, 3], [3, 3]], level)
    assert (result.value, result.n) == (None, 4)
    assert "one and the same value" in result.reason


def test_alpha_of_opposite_ratings():
    ratings = by_character("0101", "1010")
    assert alpha(ratings).value == pytest.approx(-0.75)
    assert cohen_kappa(confusion(*np.array(ratings).T)).value == pytest.approx(-1)


@pytest.mark.parametrize("ratings", [np.zeros((0, 3)), [[1, NAN], [NAN, 2]], [[NAN, NAN]]])
def test_alpha_without_two_ratings_of_an_item_says_so(ratings):
    result = alpha(ratings)
    assert (result.value, result.n, result.reason) == (None, 0, "no item was rated by two people")


def test_alpha_on_ratios_refuses_negative_values():
    assert "not negative" in alpha([[-1, 1], [1, 1]], "ratio").reason


def test_alpha_of_many_items_takes_no_time_for_each_pair_of_ratings():
    # 200,000 ratings have 2e10 pairs.
    ratings = np.random.default_rng(0).integers(9, size=(100_000, 2))
    assert abs(krippendorff_alpha(count_values(ratings), level="ordinal").value) < 0.01


@pytest.mark.parametrize("level", ["nominal", "ordinal"])
def test_interval_of_alpha_equals_a_plain_bootstrap_over_items(level):
    ratings = random_ratings(3)
    ratings = ratings[(~np.isnan(ratings)).sum(axis=1) >= 2]
    ours = krippendorff_alpha(
        count_values(ratings), level=level, generator=np.random.default_rng(0), num_resamples=20_000
    )
    generator = np.random.default_rng(1)
    drawn = [ratings[generator.integers(len(ratings), size=len(ratings))] for _ in range(2_000)]
    library = [krippendorff.alpha(reliability_data=sample.T, level_of_measurement=level) for sample in drawn]
    # 2,000 resamples fix a 2.5 % quantile to about 0.02 here.
    assert (ours.low, ours.high) == pytest.approx(np.quantile(library, [0.025, 0.975]), abs=0.04)


def test_interval_of_alpha_follows_from_its_generator():
    ratings = count_values(random_ratings(5))
    first, again, other = (krippendorff_alpha(ratings, generator=np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)
    assert first.low < first.value < first.high


def test_full_agreement_has_no_bootstrap_interval():
    result = krippendorff_alpha(count_values([[1, 1], [2, 2]]), generator=np.random.default_rng(0))
    assert (result.value, result.low, result.high) == (1.0, None, None)
    assert "all ratings agree" in result.reason


def test_one_item_has_no_bootstrap_interval():
    result = krippendorff_alpha(count_values([[1, 2]]), generator=np.random.default_rng(0))
    assert (result.low, result.high, result.reason) == (None, None, "no interval: one item only")


def test_ac1_counts_single_ratings_for_the_shares_only():
    # Two items agree or not: p_a = 1/2. Shares of value 1 per item: 1, 1/2, 1, so p = 5/6 and p_e = 2 * 5/6 * 1/6.
    result = gwet_ac1(count_values([[1, 1], [1, 2], [1, NAN]]))
    assert (result.value, result.n) == (pytest.approx((1 / 2 - 10 / 36) / (1 - 10 / 36)), 2)


def test_ac1_of_one_value_depends_on_the_scale():
    assert gwet_ac1(count_values([[1, 1]])).value is None
    assert gwet_ac1(count_values([[1, 1]], values=[-1, 0, 1])).value == 1.0
    assert gwet_ac1(count_values([[1, NAN]], values=[0, 1])).reason == "no item was rated by two people"


@pytest.mark.parametrize("ratings", [[1, 2], 3.0])
def test_ratings_that_are_not_a_table_are_an_error(ratings):
    with pytest.raises(ShapeError, match="expected \\(items, raters\\)"):
        count_values(ratings)


def test_counts_that_do_not_fit_their_values_are_an_error():
    with pytest.raises(ShapeError, match=r"\(3,\) and counts \(2, 2\)"):
        ValueCounts(np.arange(3.0), np.zeros((2, 2)))


# ── shares ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_share_of_independent_answers_has_the_interval_of_wilson():
    # 81 of 263: Newcombe 1998, table I, method 3. Between items of one answer each the variance is the binomial one, up
    # to 263/262. Half the correction for continuity is 1 / (4 * 263) = 0.00095.
    answers = [1] * 81 + [0] * 182
    result = share(answers, [1] * 263, unit="votes")
    assert (result.low, result.high) == pytest.approx((0.2553 - 0.00095, 0.3662 + 0.00095), abs=1e-4)
    assert (result.value, result.n, result.unit) == (pytest.approx(81 / 263), 263, "votes")


def test_interval_of_a_share_is_wider_where_answers_to_an_item_go_together():
    apart = share([2, 2] * 30, [4, 4] * 30, unit="votes")
    together = share([4, 0] * 30, [4, 4] * 30, unit="votes")
    single = share([1, 0] * 30, [1, 1] * 30, unit="votes")
    assert (together.low, together.high) == pytest.approx((single.low, single.high), abs=0.01)
    assert apart.high - apart.low < 0.6 * (together.high - together.low)


def test_interval_of_a_share_covers_the_truth_where_answers_go_together():
    # Three answers to each of 60 items, which copy one another in half of the items: 95 % or a little more.
    generator = np.random.default_rng(0)
    held = []
    for _ in range(1000):
        answers = generator.random((60, 3)) < 0.7
        answers[:30] = answers[:30, :1]
        result = share(answers.sum(axis=1), np.full(60, 3), unit="votes")
        held.append(result.low <= 0.7 <= result.high)
    assert 0.94 <= np.mean(held) <= 0.98


def test_share_of_nothing_says_so():
    assert share([0.0], [0.0], unit="votes") == Statistic(None, unit="votes", reason="there are no votes")


def test_full_share_has_an_interval_all_the_same():
    # Each item counts once. Wilson's lower end for 20 of 20 is 0.8389 (Newcombe 1998), less a little for steps of 1/40.
    result = share([2] * 20, [2] * 20, unit="votes")
    assert (result.value, result.low, result.high, result.n) == (1.0, pytest.approx(0.829, abs=1e-3), 1.0, 40)


def test_a_share_has_the_interval_that_the_same_answers_have_everywhere():
    from rlhfkit.stats.intervals import rate_interval

    result = share([2, 1, 0, 3], [3, 1, 2, 3], unit="votes")
    values, items = [1, 1, 0, 1, 0, 0, 1, 1, 1], [0, 0, 0, 1, 2, 2, 3, 3, 3]
    assert (result.low, result.high) == rate_interval(values, items)


def test_answers_to_one_item_say_nothing_of_others():
    assert share([3], [4], unit="votes") == Statistic(0.75, 0.0, 1.0, 4, "votes")


@pytest.mark.parametrize(
    ("successes", "num"), [(0, 1), (5, 10), (52, 100), (1348, 2592), (3, 20), (20, 20), (9000, 10_000)]
)
def test_binomial_test_equals_that_of_scipy(successes, num):
    assert binomial_p_value(successes, num) == pytest.approx(stats.binomtest(successes, num).pvalue, rel=1e-8)


def test_binomial_test_of_nothing_is_none():
    assert binomial_p_value(0, 0) is None


# ── the ceiling ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("agreement", "one", "three"),
    [(0.63, 0.755, 0.849), (0.657, 0.780, 0.876), (0.726, 0.836, 0.928), (0.773, 0.870, 0.953), (0.81, 0.894, 0.969)],
)
def test_accuracy_of_one_person_and_of_three_from_agreement(agreement, one, three):
    accuracy = annotator_accuracy(Statistic(agreement))
    assert accuracy.value == pytest.approx(one, abs=6e-4)
    assert majority_of_three(accuracy).value == pytest.approx(three, abs=6e-4)


def test_majority_of_three_agrees_with_one_more_as_computed():
    # Agreement .72: the majority of three and one more person agree in m q + (1 - m) (1 - q) = .782.
    accuracy = annotator_accuracy(Statistic(0.72))
    q, m = accuracy.value, majority_of_three(accuracy).value
    assert m * q + (1 - m) * (1 - q) == pytest.approx(0.782, abs=5e-4)


def test_interval_of_the_accuracy_ends_at_a_coin():
    # Agreement .5 is q = .5; agreement 1 is q = 1; agreement .625 is q = (1 + .5) / 2.
    accuracy = annotator_accuracy(Statistic(0.625, 0.4, 1.0, 80, "pairs of ratings"))
    assert accuracy == Statistic(0.75, 0.5, 1.0, 80, "pairs of ratings")
    assert majority_of_three(accuracy).low == 0.5


def test_agreement_below_a_coin_has_no_ceiling():
    accuracy = annotator_accuracy(Statistic(0.45, 0.4, 0.5, 100, "pairs of ratings"))
    assert (accuracy.value, accuracy.low, accuracy.high, accuracy.n) == (None, None, None, 100)
    assert "45.0%" in accuracy.reason
    assert majority_of_three(accuracy).reason == accuracy.reason


def test_no_agreement_no_ceiling():
    nothing = Statistic(None, reason="there are no pairs of ratings")
    assert annotator_accuracy(nothing) == nothing


@pytest.mark.parametrize(
    ("measured", "accuracy", "true"),
    [(0.7, 0.8, 5 / 6), (0.8, 0.8, 1.0), (0.5, 0.8, 0.5), (0.9, 0.8, 1.0), (0.1, 0.8, 0.0), (0.6, 1.0, 0.6)],
)
def test_true_accuracy_behind_a_measured_one(measured, accuracy, true):
    assert accuracy_without_noise(measured, accuracy) == pytest.approx(true)


def test_labels_of_coins_tell_nothing_of_the_true_accuracy():
    assert accuracy_without_noise(0.5, 0.5) is None


def test_statistic_goes_into_json():
    assert json.loads(json.dumps(Statistic(0.5, n=3).as_dict())) == {
        "value": 0.5,
        "low": None,
        "high": None,
        "n": 3,
        "unit": "ratings",
        "reason": "",
    }


def test_ceiling_of_majorities_by_hand():
    assert ceiling_of_majorities(0.75, [1, 1, 1]) == pytest.approx(0.75)  # single votes
    # Of 64 triples of votes 28 are unanimous (0.75³ + 0.25³ = 28/64): 27/28 of those are right, and 3/4 of the others.
    assert ceiling_of_majorities(0.75, [3] * 28 + [1] * 36) == pytest.approx(0.84375)  # q³ + 3 q² (1 - q)
    assert ceiling_of_majorities(0.75, [2]) == pytest.approx(0.9)  # q² / (q² + (1 - q)²)
    assert ceiling_of_majorities(0.75, []) is None


@pytest.mark.parametrize("votes", [1, 2, 3, 4, 5])
def test_a_perfect_model_meets_the_ceiling_of_majorities(votes):
    generator = np.random.default_rng(votes)
    lead = 2 * generator.binomial(votes, 0.75, size=20_000) - votes  # votes for the better response less the others
    decided = lead[lead != 0]  # the others make no preference
    ceiling = ceiling_of_majorities(0.75, np.abs(decided).tolist())
    assert np.mean(decided > 0) == pytest.approx(ceiling, abs=0.01)  # three standard errors
