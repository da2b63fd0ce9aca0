"""What a trust report says of labels whose noise is known."""

import json
import math

import numpy as np
import pytest

from rlhfkit.errors import DataError
from rlhfkit.feedback.trust.compute import accuracy_by_degree, trust_report
from rlhfkit.feedback.trust.text import lines_of
from rlhfkit.records import Message
from tests.feedback.annotators import Labels, a_pair, a_vote, simulate

DILIGENT = 0.85


def labels_of(strengths, *, pairs=None):
    """Labels of people (rows) on pairs (columns) p0, p1, …; None is no vote."""
    pairs = pairs or [a_pair(f"p{number}") for number in range(len(strengths[0]))]
    votes = [
        a_vote(pair.id, f"person {person}", strength)
        for number, pair in enumerate(pairs)
        for person, row in enumerate(strengths)
        if (strength := row[number]) is not None
    ]
    return Labels(pairs, votes)


def table_of_feedback():
    """The example of three people, eight pairs and degrees -2 to 2."""
    return labels_of(
        [
            [2, 1, -1, 0, None, -2, 1, None],
            [1, 1, -2, 0, 1, -2, -1, None],
            [2, None, -1, 1, 1, -1, None, 2],
        ]
    )


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_agreement_has_the_values_computed_elsewhere():
    report = trust_report(table_of_feedback(), overlap=3)
    # On -4 to 4 as on -2 to 2, since the ordinal distance does not count values that nobody gave.
    assert report.alpha_degrees.value == pytest.approx(0.744674, abs=1e-6)
    assert report.alpha.value == pytest.approx(0.642105, abs=1e-6)
    assert report.alpha.low < report.alpha.value < report.alpha.high
    assert (report.alpha.n, report.num_shared_pairs) == (18, 7)
    assert report.agreement.value == pytest.approx(12 / 15)
    assert report.agreement_half.value == pytest.approx(13 / 15)
    assert report.agreement_without_ties.value == pytest.approx(11 / 12)
    # q = (1 + sqrt(2 * 11/12 - 1)) / 2
    assert report.ceiling.one.value == pytest.approx(0.956435, abs=1e-6)


def test_counts_of_everything():
    pairs = [a_pair("p0"), a_pair("p1"), a_pair("p2"), a_pair("p3")]
    votes = [
        a_vote("p0", "ann", 3, flags_a=("unsafe", "wrong")),
        a_vote("p0", "bob", kind="both_bad", flags_b=("unsafe",)),
        a_vote("p1", "ann", kind="tie", is_surplus=True),
        a_vote("p1", "bob", kind="skip"),
        a_vote("p2", "bob", kind="skip"),
    ]
    report = trust_report(Labels(pairs, votes))
    assert (report.num_pairs, report.num_labelled_pairs, report.num_votes) == (4, 2, 3)
    assert (report.num_preferences, report.num_ties, report.num_both_bad) == (1, 1, 1)
    assert report.skips == {"unclear": 2}
    assert report.flags == {"unsafe": 2, "wrong": 1}
    assert report.num_surplus == 1
    ann, bob = report.annotators
    assert (ann.name, ann.num_votes, ann.num_ties, ann.num_skips, ann.num_flags) == ("ann", 2, 1, 0, 2)
    assert (bob.name, bob.num_votes, bob.num_ties, bob.num_skips, bob.num_flags) == ("bob", 1, 1, 2, 1)


def test_a_tie_and_both_bad_are_the_same_rating():
    votes = [
        a_vote("p0", "ann", kind="tie"),
        a_vote("p0", "bob", kind="both_bad"),
        a_vote("p1", "ann", 1),
        a_vote("p1", "bob", 4),
    ]
    report = trust_report(Labels([a_pair("p0"), a_pair("p1")], votes))
    assert report.agreement.value == 1.0
    assert report.alpha.value == 1.0


def test_the_last_vote_of_a_person_on_a_pair_counts():
    votes = [a_vote("p0", "ann", 1), a_vote("p0", "bob", -1), a_vote("p0", "ann", -2, id="corrected")]
    report = trust_report(Labels([a_pair("p0")], votes))
    assert (report.num_votes, report.agreement.value) == (2, 1.0)


def test_agreement_comes_from_the_random_stream():
    # On the pairs chosen for being doubtful the two people differ, on all others they agree.
    pairs = [
        a_pair("random", reason="random", probability=0.1),
        a_pair("given"),
        a_pair("active", reason="active"),
        a_pair("calibration", reason="active", is_calibration=True),
    ]
    report = trust_report(labels_of([[1, -1, 1, 1], [2, -2, -1, 1]], pairs=pairs))
    assert (report.agreement.value, report.agreement.n) == (1.0, 3)
    assert (report.num_votes, report.num_random_votes, report.num_random_pairs) == (8, 6, 3)
    assert report.annotators[0].num_votes == 4
    assert report.annotators[0].agreement.n == 3


def test_votes_asked_for_by_disagreement_do_not_spoil_the_agreement():
    # People of accuracy .85 agree in .85² + .15² = .745; with a third vote on each disputed pair the pairs of ratings
    # would agree in 1 / (3 - 2 * .745) = .662.
    labels = simulate([DILIGENT] * 4, num_pairs=3000, votes_per_pair=2, seed=0, third_where_two_disagree=True)
    report = trust_report(labels, overlap=2)
    assert report.agreement.n == 3000
    assert report.agreement.low < 0.745 < report.agreement.high
    # 3,000 pairs: standard error .008.
    assert report.num_late_votes == len(labels.votes) - 6000 == pytest.approx(0.255 * 3000, abs=3 * 24)


def test_all_planned_votes_are_used():
    labels = labels_of([[1], [1], [-1]], pairs=[a_pair("p0", is_calibration=True)])
    assert trust_report(labels).agreement.n == 3
    assert trust_report(labels, calibration_overlap=2).agreement.n == 1
    labels = labels_of([[1], [1], [-1]])
    assert trust_report(labels).agreement.n == 1
    assert trust_report(labels, overlap=3).agreement.n == 3


def test_left_is_tested_against_a_fair_coin():
    # 9 of 10 preferences for the left: two-sided p = 2 * 11 / 1024. Ties do not count.
    pairs = [a_pair(f"p{number}") for number in range(11)]
    votes = [a_vote(f"p{number}", "ann", -2, shown_left="b") for number in range(9)]
    votes += [a_vote("p9", "ann", -2, shown_left="a"), a_vote("p10", "ann", 0)]
    report = trust_report(Labels(pairs, votes))
    assert (report.left.value, report.left.n) == (0.9, 10)
    assert report.left_p_value == pytest.approx(22 / 1024)
    assert report.annotators[0].left_p_value == report.left_p_value


def test_length_bias_and_the_baseline_of_always_the_longer():
    # Conversations count by their texts. Three of four differing lengths go to the longer; equal lengths count half.
    pairs = [
        a_pair("p0", response_a="longer", response_b="short"),
        a_pair("p1", response_a="no", response_b="yes"),
        a_pair(
            "p2", response_a=(Message("user", "abc"), Message("assistant", "de")), response_b=(Message("user", "abcd"),)
        ),
        a_pair("p3", response_a="x", response_b="xyz"),
        a_pair("p4", response_a="same", response_b="long"),
        a_pair("p5", response_a="x", response_b="xyz", reason="active"),
    ]
    report = trust_report(labels_of([[1, -1, 1, 1, 1, 1]], pairs=pairs))
    assert (report.longer.value, report.longer.n) == (3 / 4, 4)
    assert (report.always_longer.value, report.always_longer.n) == (3.5 / 5, 5)


def test_agreement_by_degree():
    # "much" was said twice, and the other person took the same side once; "negligibly" was said once, against a "much";
    # "better" met a tie.
    report = trust_report(labels_of([[4, -4, 3], [2, 1, 0]]))
    shares = {degree: (statistic.value, statistic.n) for degree, statistic in report.by_degree.items()}
    assert shares == {4: (0.5, 2), 2: (1.0, 1), 1: (0.0, 1), 3: (0.0, 1)}


def test_agreement_of_a_person_with_the_others():
    # The first agrees with the majority of the other two on p0, with no majority on p1 and p2, and p3 is a tie.
    report = trust_report(labels_of([[1, 2, 1, 0], [3, 1, 1, 1], [1, -1, -1, 1]]), overlap=3)
    first = report.annotators[0]
    assert (first.with_majority.value, first.with_majority.n) == (1.0, 1)
    assert (first.agreement.value, first.agreement.n) == (pytest.approx(4 / 6), 6)
    assert (first.others.value, first.others.n) == (0.5, 4)
    # The third one stands against both others on p1 and p2.
    third = report.annotators[2]
    assert (third.with_majority.value, third.with_majority.n) == (0.5, 4)
    assert (third.agreement.value, third.agreement.n) == (pytest.approx(3 / 7), 7)


def test_kappa_of_two_people_only_where_they_share_pairs():
    report = trust_report(labels_of([[1, 1, -1, -1, None], [1, -2, -3, -4, None], [None, None, None, None, 1]]))
    (both,) = report.people
    assert (both.first, both.second) == ("person 0", "person 1")
    # Sides: [[2, 0], [1, 1]], p_o = 3/4, p_e = 1/2.
    assert (both.kappa.value, both.kappa.n) == (pytest.approx(0.5), 4)
    assert both.weighted_kappa.value is not None


def test_rounds_are_reported_one_by_one():
    pairs = [a_pair("p0"), a_pair("p1"), a_pair("p2", round=2), a_pair("p3", round=2)]
    report = trust_report(labels_of([[1, -1, 1, -1], [1, -1, -1, 1]], pairs=pairs))
    assert [(one.round, one.num_pairs, one.num_votes) for one in report.rounds] == [(1, 2, 4), (2, 2, 4)]
    # Four ratings, two of each value: opposite everywhere is 1 - 3 * 4 / (2 * 2 * 2) = -.5.
    assert [one.alpha.value for one in report.rounds] == pytest.approx([1.0, -0.5])
    assert [one.agreement.value for one in report.rounds] == [1.0, 0.0]


def test_the_same_labels_give_the_same_report():
    labels = simulate([DILIGENT] * 3, num_pairs=50, votes_per_pair=2, seed=1)
    assert trust_report(labels) == trust_report(labels)
    other = trust_report(labels, generator=np.random.default_rng(5))
    assert other.alpha.value == trust_report(labels).alpha.value
    assert other.alpha.low != trust_report(labels).alpha.low


def test_vote_on_an_unknown_pair_is_an_error_that_names_it():
    with pytest.raises(DataError, match=r"vote 'p9/ann' is about pair 'p9'"):
        trust_report(Labels([a_pair("p0")], [a_vote("p9", "ann", 1)]))


# ── people with known accuracy ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.thorough
def test_careless_one_among_five_is_found_and_the_diligent_are_not():
    for seed in range(10):
        labels = simulate([DILIGENT] * 4 + [0.5], num_pairs=400, votes_per_pair=3, seed=seed)
        report = trust_report(labels, overlap=3)
        assert [person.is_careless for person in report.annotators] == [False] * 4 + [True], seed
        assert "agrees with another person in" in report.annotators[4].alarms[0]


@pytest.mark.thorough
def test_equally_good_people_raise_no_alarm():
    careless = []
    for seed in range(20):
        labels = simulate([DILIGENT] * 5, num_pairs=200, votes_per_pair=3, seed=seed)
        careless += [person.is_careless for person in trust_report(labels, overlap=3).annotators]
    assert sum(careless) == 0


@pytest.mark.thorough
def test_fifty_equally_good_people_raise_no_alarm():
    labels = simulate([DILIGENT] * 50, num_pairs=2500, votes_per_pair=2, seed=0)
    assert not any(person.is_careless for person in trust_report(labels).annotators)


@pytest.mark.thorough
@pytest.mark.parametrize("accuracy", [0.65, 0.75, 0.85, 0.95])
def test_ceiling_is_the_true_accuracy(accuracy):
    labels = simulate([accuracy] * 6, num_pairs=4000, votes_per_pair=2, seed=3)
    ceiling = trust_report(labels).ceiling
    assert ceiling.one.low < accuracy < ceiling.one.high
    assert ceiling.one.high - ceiling.one.low < 0.06
    # The majority of three independent people, counted out: all right, or one of the three wrong.
    assert ceiling.majority.low < accuracy**3 + 3 * accuracy**2 * (1 - accuracy) < ceiling.majority.high


@pytest.mark.thorough
def test_interval_of_the_ceiling_covers_the_truth():
    held = []
    for seed in range(100):
        one = trust_report(simulate([0.8] * 5, num_pairs=150, votes_per_pair=2, seed=seed)).ceiling.one
        held.append(one.low <= 0.8 <= one.high)
    # 95 % ± two standard errors of 100 draws.
    assert 0.905 <= np.mean(held) <= 0.995


def test_perfect_model_meets_the_ceiling_on_single_labels():
    labels = simulate([0.8] * 5, num_pairs=2000, votes_per_pair=2, seed=4)
    # The truth is not kept, but with five accurate people in its place the majority knows it.
    ceiling = trust_report(labels, measured_accuracy=0.8).ceiling
    assert ceiling.measured == 0.8
    assert ceiling.without_noise == pytest.approx(1.0, abs=0.05)
    # .62 = t * .8 + (1 - t) * .2 gives t = .7.
    assert trust_report(labels, measured_accuracy=0.62).ceiling.without_noise == pytest.approx(0.7, abs=0.05)


def people(careful, odd):
    """Labels of two careful people and an odd one, who each vote on all of 40 pairs as the functions say."""
    pairs = [a_pair(f"p{number}") for number in range(40)]
    votes = [careful(pair.id, name, number) for number, pair in enumerate(pairs) for name in ("ann", "bob")]
    return Labels(pairs, votes + [odd(pair.id, "odd", number) for number, pair in enumerate(pairs)])


def careful(pair_id, name, number):
    return a_vote(pair_id, name, 1 if number % 2 else -1, shown_left="ab"[(number // 2) % 2])


def test_person_who_is_much_faster_than_the_others_is_found():
    labels = people(
        careful,
        lambda pair_id, name, number: a_vote(
            pair_id, name, 1 if number % 2 else -1, shown_left="ab"[(number // 2) % 2], active_seconds=4.0
        ),
    )
    ann, _bob, odd = trust_report(labels, overlap=3).annotators
    assert odd.alarms == ("takes 4.0 active seconds for a pair (median), the others 30.0",)
    assert ann.alarms == ()


def test_person_who_always_takes_the_left_is_found():
    labels = people(careful, lambda pair_id, name, number: a_vote(pair_id, name, 1, shown_left="a"))
    *_, odd = trust_report(labels, overlap=3).annotators
    assert any("on the left in 40 of 40 preferences" in alarm for alarm in odd.alarms)
    labels = people(careful, lambda pair_id, name, number: a_vote(pair_id, name, -1, shown_left="a"))
    *_, odd = trust_report(labels, overlap=3).annotators
    assert any("on the right in 40 of 40 preferences" in alarm for alarm in odd.alarms)


def test_person_who_never_decides_is_found():
    labels = people(careful, lambda pair_id, name, number: a_vote(pair_id, name, 0))
    *_, odd = trust_report(labels, overlap=3).annotators
    assert odd.alarms == ("prefers neither in 40 of 40 votes; the others in 0.0 % of theirs",)


def test_person_who_reads_the_scale_the_wrong_way_is_found():
    labels = people(
        careful,
        lambda pair_id, name, number: a_vote(
            pair_id, name, -1 if number % 2 else 1, shown_left="ab"[(number // 2) % 2]
        ),
    )
    *_, odd = trust_report(labels, overlap=3).annotators
    assert odd.alarms == (
        "agrees with another person in 0.0 % of 80 pairs of ratings; the others with one another in 100.0 %",
    )


def test_one_slip_is_no_alarm():
    labels = people(
        careful,
        lambda pair_id, name, number: a_vote(
            pair_id, name, 1 if number % 2 or number == 0 else -1, shown_left="ab"[(number // 2) % 2]
        ),
    )
    assert not any(person.is_careless for person in trust_report(labels, overlap=3).annotators)


def test_few_votes_raise_no_alarm():
    labels = people(careful, lambda pair_id, name, number: a_vote(pair_id, name, 1, active_seconds=0.1))
    labels.votes = [vote for vote in labels.votes if vote.annotator != "odd" or int(vote.pair_id[1:]) < 19]
    *_, odd = trust_report(labels, overlap=3).annotators
    assert (odd.num_votes, odd.alarms) == (19, ())


# ── accuracy by degree ───────────────────────────────────────────────────────────────────────────────────────────────


def test_accuracy_of_predictions_by_degree():
    labels = labels_of([[4, -4, 1, 2, 0], [4, None, -1, None, None]])
    # Right on both "much" of p0, wrong on p1, right once of two on p2, half on p3 where the prediction is 0.
    accuracy = accuracy_by_degree(labels, {"p0": 0.3, "p1": 2.0, "p2": -1.0, "p3": 0.0, "p4": 1.0})
    assert (accuracy.by_degree[4].value, accuracy.by_degree[4].n) == (pytest.approx(2 / 3), 3)
    assert (accuracy.by_degree[1].value, accuracy.by_degree[1].n) == (0.5, 2)
    assert (accuracy.by_degree[2].value, accuracy.by_degree[2].n) == (0.5, 1)
    assert (accuracy.by_degree[3].value, accuracy.by_degree[3].reason) == (None, "there are no votes")
    assert (accuracy.all.value, accuracy.all.n) == (pytest.approx(3.5 / 6), 6)
    assert json.loads(json.dumps(accuracy.as_dict()))["by_degree"]["2"]["value"] == 0.5


def test_accuracy_uses_what_was_predicted_on_the_random_stream():
    labels = labels_of([[1, 1, 1]], pairs=[a_pair("p0"), a_pair("p1"), a_pair("p2", reason="active")])
    predictions = {"p0": 1.0, "p2": -1.0}
    assert accuracy_by_degree(labels, predictions).all.n == 1
    assert accuracy_by_degree(labels, predictions, only_random=False).all.value == 0.5


# ── little or odd data ───────────────────────────────────────────────────────────────────────────────────────────────


def nothing():
    return Labels()


def no_votes():
    return Labels([a_pair("p0")])


def only_skips():
    return Labels([a_pair("p0")], [a_vote("p0", "ann", kind="skip")])


def one_person():
    return labels_of([[1, -2, 0, 4]])


def all_ties():
    return labels_of([[0, 0, 0], [0, 0, 0]])


def one_category():
    return labels_of([[1, 2, 3], [1, 2, 4]])


def opposite():
    return labels_of([[1, -1, 1], [-1, 1, -1]])


def only_active():
    return labels_of([[1], [1]], pairs=[a_pair("p0", reason="active")])


@pytest.mark.parametrize(
    "make", [nothing, no_votes, only_skips, one_person, all_ties, one_category, opposite, only_active]
)
def test_little_or_odd_data_give_a_report_without_nan(make):
    labels = make()
    report = trust_report(labels, measured_accuracy=0.7)
    text = json.dumps(report.as_dict(), allow_nan=False)
    assert json.loads(text) == report.as_dict()
    assert not any("nan" in line for line in lines_of(report))
    assert accuracy_by_degree(labels, {}).all.value is None


def statistics_of(value):
    if isinstance(value, dict):
        if {"value", "low", "high", "n", "reason"} <= value.keys():
            yield value
        else:
            for item in value.values():
                yield from statistics_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from statistics_of(item)


@pytest.mark.parametrize("make", [nothing, no_votes, one_person, all_ties, one_category, opposite, table_of_feedback])
def test_a_number_that_is_missing_has_a_reason(make):
    for statistic in statistics_of(trust_report(make()).as_dict()):
        assert (statistic["value"] is not None and statistic["low"] is not None) or statistic["reason"], statistic


def test_people_who_only_differ_have_no_ceiling():
    report = trust_report(opposite(), measured_accuracy=0.7)
    assert report.ceiling.one.value is None
    assert report.ceiling.without_noise is None
    assert "less often (0.0%) than two coins" in report.ceiling.one.reason


def test_all_ties_leave_alpha_undefined_and_say_so():
    report = trust_report(all_ties())
    assert (report.alpha.value, report.alpha.reason) == (None, "all ratings have one and the same value")
    assert report.agreement.value == 1.0
    assert report.agreement_without_ties.value is None


# ── text ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_lines_tell_the_main_figures_with_their_numbers():
    report = trust_report(table_of_feedback(), overlap=3, measured_accuracy=0.7)
    text = "\n".join(lines_of(report))
    assert "18 votes" not in text
    assert text.startswith("19 votes on 8 of 8 pairs by 3 people: 17 preferences, 2 ties, 0 both bad")
    assert "alpha, which side:   0.642 (" in text
    assert "equal, without ties: 91.7 % (" in text
    assert "n = 12 pairs of ratings" in text
    assert "measured on single labels: 70.0 %" in text
    assert "later votes" not in text
    assert "Rounds" not in text


def test_lines_name_the_careless_and_the_votes_left_out():
    labels = simulate([DILIGENT] * 4 + [0.5], num_pairs=400, votes_per_pair=3, seed=0)
    text = "\n".join(lines_of(trust_report(labels, overlap=3)))
    assert text.count("look at this: agrees with another person") == 1
    assert "400 later votes are left out" in "\n".join(lines_of(trust_report(labels)))


@pytest.mark.thorough
def test_large_snapshot_is_reported_in_seconds():
    labels = simulate([DILIGENT] * 50, num_pairs=10_000, votes_per_pair=3, seed=0)
    report = trust_report(labels, overlap=3)
    assert math.isclose(report.ceiling.one.value, DILIGENT, abs_tol=0.02)
