"""Which pairs are asked next, and when that is left to chance."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from scipy import optimize

from rlhfkit.errors import ConfigError, DataError, ShapeError
from rlhfkit.feedback.active.choose import choose_pairs
from rlhfkit.feedback.active.ensemble import bald, d_optimal_gain, fit_ensemble, greedy_d_optimal, variance
from rlhfkit.feedback.active.features import text_features
from rlhfkit.feedback.active.gain import accuracy_without_choosing, gain_of_choosing
from rlhfkit.feedback.active.labelled import LabelledPairs
from rlhfkit.records import Message
from tests.feedback.annotators import a_pair


def coins(num, *, seed=0, dimensions=4, **changes):
    """Labels that have nothing to do with the features."""
    generator = np.random.default_rng(seed)
    known = {
        "differences": generator.normal(size=(num, dimensions)),
        "labels": (generator.random(num) < 0.5).astype(float),
        "is_random": np.ones(num, dtype=bool),
        "prompts": list(range(num)),
    }
    return LabelledPairs(**known | changes)


def learnable(num, *, seed=0, dimensions=4, noise=0.1, **changes):
    """Labels by the sign of the first feature, but for some noise."""
    plain = coins(num, seed=seed, dimensions=dimensions)
    truth = plain.differences[:, 0] > 0
    wrong = np.random.default_rng([seed, 1]).random(num) < noise
    known = {
        "differences": plain.differences,
        "labels": (truth ^ wrong).astype(float),
        "is_random": plain.is_random,
        "prompts": plain.prompts,
    }
    return LabelledPairs(**known | changes)


def choose(labelled, *, num=20, num_candidates=200, seed=0, dimensions=4, prompts=None, **changes):
    generator = np.random.default_rng(seed)
    candidates = generator.normal(size=(num_candidates, dimensions))
    return choose_pairs(
        candidates, labelled, num=num, prompts=prompts or list(range(num_candidates)), generator=generator, **changes
    )


# ── scores ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("heads", "information", "spread"),
    [
        ((0.9, 0.1), 0.368064, 0.16),
        ((0.5, 0.5), 0, 0),
        ((0.6, 0.4), 0.020136, 0.01),
        ((0.9, 0.5, 0.1), 0.245376, 0.106667),
        ((0.99, 0.6, 0.7, 0.8), 0.076168, 0.020769),
        ((0.0, 1.0), math.log(2), 0.25),
        ((1.0, 1.0), 0, 0),
    ],
)
def test_bald_and_variance_have_the_values_computed_elsewhere(heads, information, spread):
    probabilities = np.array(heads)[:, None]
    assert bald(probabilities) == pytest.approx([information], abs=1e-6)
    assert variance(probabilities) == pytest.approx([spread], abs=1e-6)


@pytest.mark.parametrize(("p", "expected"), [(0.5, 0.810930), (0.9, 0.371563)])
def test_d_optimal_gain_has_the_value_computed_elsewhere(p, expected):
    assert d_optimal_gain([[1, 2]], [p], np.eye(2)) == pytest.approx([expected], abs=1e-6)


def test_d_optimal_gain_is_the_growth_of_the_log_determinant():
    generator = np.random.default_rng(0)
    root = generator.normal(size=(5, 5))
    v = root @ root.T + np.eye(5)
    d, p = generator.normal(size=(7, 5)), generator.random(7)
    expected = [
        np.linalg.slogdet(v + q * (1 - q) * np.outer(row, row))[1] - np.linalg.slogdet(v)[1]
        for row, q in zip(d, p, strict=True)
    ]
    assert d_optimal_gain(d, p, np.linalg.inv(v)) == pytest.approx(expected)


def test_greedy_choice_equals_one_that_inverts_the_matrix_every_time():
    generator = np.random.default_rng(1)
    d, p = generator.normal(size=(30, 4)), generator.random(30)
    v, expected = np.eye(4) / 2, []
    for _ in range(12):
        gains = d_optimal_gain(d, p, np.linalg.inv(v))
        gains[expected] = -1
        expected.append(int(gains.argmax()))
        q = p[expected[-1]]
        v = v + q * (1 - q) * np.outer(d[expected[-1]], d[expected[-1]])
    assert greedy_d_optimal(d, p, 2 * np.eye(4), num=12, prompts=range(30)) == expected


def test_greedy_choice_takes_another_direction_rather_than_the_same_again():
    # The first leaves 2.9² / (1 + 9/4) = 2.6 of the second, and all of the third's 2² = 4.
    d = [[3.0, 0.0], [2.9, 0.0], [0.0, 2.0]]
    assert greedy_d_optimal(d, [0.5] * 3, np.eye(2), num=2, prompts=range(3)) == [0, 2]


def test_greedy_choice_takes_a_prompt_twice_only_when_all_came_once():
    d = [[9.0], [8.0], [1.0], [0.5]]
    assert greedy_d_optimal(d, [0.5] * 4, np.eye(1), num=4, prompts=["p", "p", "q", "r"]) == [0, 2, 3, 1]
    assert greedy_d_optimal(d, [0.5] * 4, np.eye(1), num=2, prompts=["p", "p", "q", "r"], used=Counter("p")) == [2, 3]


def test_greedy_choice_of_more_than_there_is_takes_all_once():
    assert sorted(greedy_d_optimal(np.zeros((3, 2)), [0.5] * 3, np.eye(2), num=9, prompts="pqr")) == [0, 1, 2]


# ── the ensemble ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_heads_without_labels_are_draws_from_the_prior():
    ensemble = fit_ensemble(np.zeros((0, 3)), [], generator=np.random.default_rng(0), num_heads=3000, prior_scale=2.0)
    # 9,000 draws: standard error of the deviation .015.
    assert ensemble.weights.std() == pytest.approx(2.0, abs=0.05)
    assert abs(ensemble.weights.mean()) < 0.07


def test_head_is_the_minimum_that_scipy_finds():
    x, y = np.array([[1.0, 2.0], [0.5, -1.0], [-2.0, 0.3]]), np.array([1.0, 0.0, 0.5])
    ensemble = fit_ensemble(x, y, generator=np.random.default_rng(7), num_heads=1, prior_scale=2.0)
    again = np.random.default_rng(7)
    drawn = again.integers(3, size=3)
    start = again.normal(scale=2.0, size=2)

    def loss(w):
        p = 1 / (1 + np.exp(-x[drawn] @ w))
        return -(y[drawn] * np.log(p) + (1 - y[drawn]) * np.log(1 - p)).sum() + ((w - start) ** 2).sum() / 8

    assert ensemble.weights[0] == pytest.approx(optimize.minimize(loss, np.zeros(2), tol=1e-12).x, abs=1e-4)


def test_heads_differ_where_nothing_is_labelled_and_agree_where_much_is():
    generator = np.random.default_rng(0)
    x = np.zeros((500, 2))
    x[:, 0] = generator.normal(size=500)
    y = (generator.random(500) < 1 / (1 + np.exp(-x[:, 0]))).astype(float)
    probabilities = fit_ensemble(x, y, generator=generator, num_heads=20).probabilities([[1, 0], [0, 1]])
    assert variance(probabilities)[0] < 0.005
    assert variance(probabilities)[1] > 0.05


def test_ties_pull_towards_one_half():
    x = np.ones((200, 1))
    probabilities = fit_ensemble(x, np.full(200, 0.5), generator=np.random.default_rng(0)).probabilities([[1.0]])
    assert probabilities.ravel() == pytest.approx([0.5] * 5, abs=0.03)


def test_swapping_the_two_answers_swaps_the_probability():
    labelled = learnable(80)
    ensemble = fit_ensemble(labelled.differences, labelled.labels, generator=np.random.default_rng(0))
    d = np.random.default_rng(1).normal(size=(9, 4))
    assert ensemble.probabilities(-d) == pytest.approx(1 - ensemble.probabilities(d))


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e4])
def test_separable_labels_of_any_size_of_features_give_finite_heads(size):
    x = size * np.array([[1.0, 0.0], [2.0, 0.1], [-1.0, 0.0]])
    ensemble = fit_ensemble(x, [1.0, 1.0, 0.0], generator=np.random.default_rng(0))
    assert np.isfinite(ensemble.weights).all()


# ── choosing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_quarter_is_random_and_the_rest_is_chosen():
    selection = choose(learnable(200))
    assert selection.is_active
    assert Counter(one.reason for one in selection.chosen) == {"random": 5, "active": 15}
    assert {one.probability for one in selection.chosen if one.reason == "random"} == {5 / 200}
    assert {one.probability for one in selection.chosen if one.reason == "active"} == {None}
    assert len({one.index for one in selection.chosen}) == 20
    assert selection.message.startswith("5 at random, 15 for what they teach: the ensemble is right in ")


def test_candidates_in_a_direction_that_nobody_labelled_are_chosen():
    labelled = learnable(300)
    labelled.differences[:, 3] = 0.0
    candidates = np.random.default_rng(5).normal(size=(200, 4))
    candidates[:, 3] = 0.0
    unknown = np.arange(0, 200, 10)
    candidates[unknown] = [0.0, 0.0, 0.0, 2.0]
    selection = choose_pairs(
        candidates, labelled, num=20, prompts=range(200), generator=np.random.default_rng(0), random_share=0.05
    )
    active = [one.index for one in selection.chosen if one.reason == "active"]
    # A fair draw of 19 would hold two of the twenty.
    assert len(set(active) & set(unknown.tolist())) >= 5


def test_random_ones_are_drawn_from_all_candidates_alike():
    times = Counter()
    for seed in range(400):
        generator = np.random.default_rng(seed)
        candidates = np.linspace(-3, 3, 20)[:, None]
        labelled = LabelledPairs(np.ones((2, 1)), np.ones(2), np.ones(2, dtype=bool), "pq")
        selection = choose_pairs(
            candidates, labelled, num=6, prompts=range(20), generator=generator, random_share=0.5, cautious=False
        )
        times.update(one.index for one in selection.chosen if one.reason == "random")
    # 1,200 draws of 20 alike: 60 each, deviation 7.1; four deviations over all twenty.
    assert set(times) == set(range(20))
    assert max(abs(count - 60) for count in times.values()) < 29


def test_share_that_is_no_whole_number_is_kept_on_average():
    labelled = learnable(60)
    num_random = [
        sum(one.reason == "random" for one in choose(labelled, num=1, seed=seed, cautious=False).chosen)
        for seed in range(200)
    ]
    # 50 expected, deviation 6.1.
    assert abs(sum(num_random) - 50) < 20
    (random,) = next(
        selection.chosen
        for seed in itertools.count()
        if (selection := choose(labelled, num=1, seed=seed, cautious=False)).chosen[0].reason == "random"
    )
    assert random.probability == pytest.approx(0.25 / 200)


def test_no_prompt_comes_twice_while_others_have_not_come():
    prompts = [number // 10 for number in range(200)]
    selection = choose(learnable(200), num=20, prompts=prompts, random_share=0.05)
    # The 20 % that are known least need not hold all twenty prompts; those that they hold come first.
    active = Counter(prompts[one.index] for one in selection.chosen if one.reason == "active")
    assert len(active) >= 14
    assert max(active.values()) <= 3


def test_chosen_ones_are_others_than_the_random_ones_and_of_other_prompts():
    labelled, prompts = learnable(60), [number // 2 for number in range(100)]
    for seed in range(20):
        most = choose(labelled, num=18, num_candidates=20, seed=seed, random_share=0.5, cautious=False)
        assert len({one.index for one in most.chosen}) == 18
        few = choose(labelled, num=10, num_candidates=100, seed=seed, prompts=prompts, random_share=0.5, cautious=False)
        by_reason = {"random": set(), "active": set()}
        for one in few.chosen:
            by_reason[one.reason].add(prompts[one.index])
        assert not by_reason["random"] & by_reason["active"]


def test_the_same_generator_chooses_the_same():
    assert choose(learnable(200)) == choose(learnable(200))
    assert choose(learnable(200), seed=1).chosen != choose(learnable(200), seed=2).chosen


def test_scale_of_the_features_changes_nothing():
    labelled = learnable(200)
    larger = LabelledPairs(1024 * labelled.differences, labelled.labels, labelled.is_random, labelled.prompts)
    candidates = np.random.default_rng(0).normal(size=(100, 4))
    first, second = (
        choose_pairs(size * candidates, known, num=12, prompts=range(100), generator=np.random.default_rng(3))
        for size, known in ((1, labelled), (1024, larger))
    )
    assert first == second


def test_long_features_are_cut_to_their_leading_directions():
    generator = np.random.default_rng(0)
    directions = generator.normal(size=(4, 1000))
    labelled = learnable(200)
    wide = LabelledPairs(labelled.differences @ directions, labelled.labels, labelled.is_random, labelled.prompts)
    candidates = generator.normal(size=(100, 4)) @ directions
    assert choose_pairs(candidates, wide, num=12, prompts=range(100), generator=generator).is_active


def test_equal_features_everywhere_are_no_trouble():
    selection = choose_pairs(
        np.zeros((50, 3)),
        coins(60, dimensions=3, differences=np.zeros((60, 3))),
        num=8,
        prompts=range(50),
        generator=np.random.default_rng(0),
        cautious=False,
    )
    assert len({one.index for one in selection.chosen}) == 8


def test_fewer_candidates_than_asked_for_are_all_taken_and_none_is_chosen():
    selection = choose(learnable(200), num=300)
    assert sorted(one.index for one in selection.chosen) == list(range(200))
    assert {(one.reason, one.probability) for one in selection.chosen} == {("random", 1.0)}
    assert selection.message == "all 200 candidates: there is nothing to choose from"


def test_nothing_asked_for_gives_nothing():
    assert choose(learnable(200), num=0).chosen == []
    assert choose_pairs(np.zeros((0, 3)), None, num=5, prompts=[], generator=np.random.default_rng(0)).chosen == []


# ── falling back ─────────────────────────────────────────────────────────────────────────────────────────────────────


def expect_random(selection, reason):
    assert {(one.reason, one.probability) for one in selection.chosen} == {("random", 20 / 200)}
    assert len(selection.chosen) == 20
    assert not selection.is_active
    assert selection.message.startswith("all at random: ")
    assert reason in selection.message


def test_without_labels_all_are_random():
    expect_random(choose(None), "there are no labels yet")
    expect_random(choose(coins(0)), "there are no labels yet")


def test_few_random_labels_are_not_enough():
    expect_random(choose(learnable(49)), "49 random labels, and choosing needs 50")
    is_random = np.arange(200) < 49
    expect_random(choose(learnable(200, is_random=is_random)), "49 random labels")
    labels = learnable(100).labels
    labels[:51] = 0.5
    expect_random(choose(learnable(100, labels=labels)), "49 random labels")


def test_labels_that_nothing_can_be_learnt_from_fall_back_to_random():
    expect_random(choose(coins(300)), "not clearly more often than a coin")


def test_ensemble_that_knows_no_more_than_the_length_falls_back_to_random():
    labelled = learnable(300, noise=0.2)
    by_length = learnable(300, noise=0.2, length_differences=labelled.differences[:, 0])
    expect_random(choose(by_length), "more than the longer answer")
    useless = learnable(300, noise=0.2, length_differences=labelled.differences[:, 1])
    assert choose(useless).is_active


def test_chosen_labels_that_taught_nothing_fall_back_to_random():
    # The chosen ones were answered the wrong way round, so that they did harm.
    labelled = learnable(400)
    is_random = np.arange(400) < 280
    labels = np.where(is_random, labelled.labels, 1 - labelled.labels)
    expect_random(choose(learnable(400, labels=labels, is_random=is_random)), "more than as many random ones")


def test_labels_of_one_prompt_cannot_be_held_out():
    expect_random(choose(learnable(100, prompts=["p"] * 100)), "one prompt")


def test_incautious_choice_needs_only_a_label():
    assert choose(coins(1), cautious=False).is_active


def test_accuracy_of_the_ensemble_is_that_of_a_model_that_never_saw_the_labels():
    # With noise .1, a head that found the first feature is right in about .9; in 400 labels the standard error is .015.
    accuracy, lead = accuracy_without_choosing(learnable(400), generator=np.random.default_rng(0))
    assert accuracy.value == pytest.approx(0.9, abs=0.05)
    assert (accuracy.n, lead) == (400, None)
    # Many features, few labels: an ensemble that was tested on what it was fitted to would be right nearly always.
    accuracy, _ = accuracy_without_choosing(coins(100, dimensions=60), generator=np.random.default_rng(0))
    assert accuracy.low < 0.5


def test_prompt_is_on_one_side_only():
    # Each label is seen twice, under one prompt: by row, one of the two would give the other away.
    plain = coins(60, dimensions=60)
    twice = LabelledPairs(
        np.repeat(plain.differences, 2, axis=0),
        np.repeat(plain.labels, 2),
        np.ones(120, dtype=bool),
        [n // 2 for n in range(120)],
    )
    by_prompt, _ = accuracy_without_choosing(twice, generator=np.random.default_rng(0))
    by_row, _ = accuracy_without_choosing(
        LabelledPairs(twice.differences, twice.labels, twice.is_random, range(120)), generator=np.random.default_rng(0)
    )
    assert by_prompt.value < 0.65
    assert by_row.value > 0.8


def test_gain_is_measured_only_with_enough_chosen_labels():
    few = learnable(200, is_random=np.arange(200) < 151)
    gain = gain_of_choosing(few, generator=np.random.default_rng(0))
    assert (gain.value, gain.reason) == (None, "49 chosen labels; expected 50 or more")


def test_gain_is_positive_where_chosen_labels_tell_more_than_random_ones():
    # Of sixty features with a fifth of the answers wrong, random labels tell little; the chosen ones are all right.
    generator = np.random.default_rng(0)
    x, is_random = generator.normal(size=(600, 60)), np.arange(600) < 400
    wrong = is_random & (generator.random(600) < 0.2)
    labels = ((x.sum(axis=1) > 0) ^ wrong).astype(float)
    gain = gain_of_choosing(LabelledPairs(x, labels, is_random, range(600)), generator=generator)
    assert gain.low > 0
    assert gain.n == 400


# ── bad input ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["differences", "is_random", "prompts", "length_differences"])
def test_parts_of_different_lengths_are_an_error(name):
    parts = {"differences": np.zeros((3, 1)), "is_random": np.ones(3, dtype=bool), "prompts": "pqr"}
    parts |= {"length_differences": np.zeros(3)}
    parts[name] = parts[name][:2]
    with pytest.raises(ShapeError, match=f"2 {name} for 3 labels"):
        LabelledPairs(labels=np.zeros(3), **parts)


@pytest.mark.parametrize("label", [-1.0, 2.0, math.nan])
def test_label_outside_0_to_1_is_an_error(label):
    with pytest.raises(DataError, match="not between 0 and 1"):
        LabelledPairs(np.zeros((1, 1)), np.array([label]), np.ones(1, dtype=bool), "p")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite_are_an_error_that_names_the_pair(value):
    candidates = np.zeros((3, 2))
    candidates[1, 0] = value
    with pytest.raises(DataError, match="candidate pair 1 are not finite"):
        choose_pairs(candidates, None, num=1, prompts="pqr", generator=np.random.default_rng(0))
    with pytest.raises(DataError, match="labelled pair 1 are not finite"):
        coins(3, differences=candidates)


def test_features_that_are_no_table_are_an_error():
    with pytest.raises(ShapeError, match=r"\(3,\); expected \(pairs, d\)"):
        choose_pairs(np.zeros(3), None, num=1, prompts="pqr", generator=np.random.default_rng(0))


def test_features_of_different_models_are_an_error():
    with pytest.raises(ShapeError, match="of 4 numbers for candidates, of 5 for labelled pairs"):
        choose(coins(100, dimensions=5))


def test_missing_prompts_are_an_error():
    with pytest.raises(ShapeError, match="1 prompts for 200 candidates"):
        choose(None, prompts=["p"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num": -1}, "num is -1"),
        ({"random_share": 0.0}, "random_share is 0.0"),
        ({"random_share": 1.5}, "random_share is 1.5"),
        ({"num_heads": 1}, "num_heads is 1"),
    ],
)
def test_setting_out_of_range_is_an_error(changes, message):
    with pytest.raises(ConfigError, match=message):
        choose(None, **changes)


# ── features of texts ────────────────────────────────────────────────────────────────────────────────────────────────


def test_features_of_texts_tell_good_words_from_bad_ones():
    generator = np.random.default_rng(0)
    words = {1: ["superb", "tasty", "fresh"], 0: ["stale", "awful", "bland"]}
    labels = (generator.random(200) < 0.5).astype(int)
    pairs = [
        a_pair(
            f"p{number}",
            response_a=f"The soup was {generator.choice(words[label])}.",
            response_b=f"The soup was {generator.choice(words[1 - label])}.",
        )
        for number, label in enumerate(labels.tolist())
    ]
    labelled = LabelledPairs(text_features(pairs), labels.astype(float), np.ones(200, dtype=bool), range(200))
    accuracy, _ = accuracy_without_choosing(labelled, generator=generator)
    assert accuracy.value == 1.0


def test_features_change_sign_with_the_sides_and_are_the_same_again():
    pairs = [
        a_pair("p0", response_a="one two three", response_b="four\nfive"),
        a_pair("p1", response_a="六七", response_b="八"),
    ]
    turned = [a_pair(pair.id, response_a=pair.response_b, response_b=pair.response_a) for pair in pairs]
    features = text_features(pairs)
    assert (features == text_features(pairs)).all()
    # Only the lengths, since the leading directions of words may point either way.
    assert text_features(turned)[:, -3:] == pytest.approx(-features[:, -3:])
    assert np.isfinite(features).all()


def test_chinese_is_read_by_character():
    pairs = [
        a_pair("p0", response_a="很好吃", response_b="不好吃"),
        a_pair("p1", response_a="很好看", response_b="不好看"),
    ]
    words = text_features(pairs)[:, :-3]
    # The same two characters differ in both pairs, so the differences point the same way.
    cosine = words[0] @ words[1] / np.linalg.norm(words[0]) / np.linalg.norm(words[1])
    assert cosine > 0.6


def test_conversations_count_by_their_texts():
    conversation = (Message("user", "hello there"), Message("assistant", "general"))
    pairs = [a_pair("p0", response_a=conversation, response_b=(Message("user", "x"),)), a_pair("p1")]
    plain = [a_pair("p0", response_a="hello there\ngeneral", response_b="x"), a_pair("p1")]
    assert text_features(pairs) == pytest.approx(text_features(plain))


@pytest.mark.parametrize("responses", [("", ""), ("…", "!"), ("same", "same")])
def test_texts_without_words_or_differences_have_finite_features(responses):
    pairs = [a_pair(f"p{number}", response_a=responses[0], response_b=responses[1]) for number in range(2)]
    features = text_features(pairs)
    assert len(features) == 2
    assert np.isfinite(features).all()


def test_no_pairs_have_no_features():
    assert text_features([]).shape == (0, 3)
