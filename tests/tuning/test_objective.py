import math

import pytest

from rlhfkit.config.tune import TuneConfig
from rlhfkit.rundir.study import Point
from rlhfkit.tuning.objective import broken, guards, points_of, points_of_control, score_within

POINTS = [
    Point(iteration=0, score=0.0, kl=0.0),
    Point(iteration=10, score=1.0, kl=3.0),
    Point(iteration=20, score=3.0, kl=9.0),
    Point(iteration=30, score=2.0, kl=5.0),
]


@pytest.mark.parametrize(
    ("kl", "until", "iteration"),
    [(100.0, None, 20), (9.0, None, 20), (8.9, None, 30), (8.9, 20, 10), (2.0, None, 0), (100.0, 10, 10)],
)
def test_best_score_within_the_budget(kl, until, iteration):
    best = score_within(POINTS, kl, until=until)
    assert best is not None and best.iteration == iteration


def test_nothing_is_within_a_budget_that_every_point_is_beyond():
    assert score_within(POINTS[1:], 1.0) is None
    assert score_within([], 1.0) is None


def test_a_score_that_is_not_finite_never_counts():
    assert score_within([*POINTS, Point(iteration=40, score=math.nan, kl=1.0)], 4.0).iteration == 10


def test_without_a_budget_the_last_point_counts():
    assert score_within(POINTS, None).iteration == 30
    assert score_within(POINTS, None, until=20).iteration == 20


def test_worth_never_falls_while_a_run_goes_on():
    worths = [score_within(POINTS, 9.0, until=until).score for until in (0, 10, 20, 30)]
    assert worths == sorted(worths)


def test_points_are_the_rows_that_were_evaluated():
    rows = [
        {"iteration": 0, "evaluation/judge": 0.5, "evaluation/ref_kl": 0.0, "evaluation/judge_error": 0.1},
        {"iteration": 1, "score/mean": 7.0},
        {"iteration": 5, "evaluation/judge": 0.7, "evaluation/ref_kl": 2.0},
    ]
    assert [(point.iteration, point.score, point.kl, point.score_error) for point in points_of(rows, "judge")] == [
        (0, 0.5, 0.0, 0.1),
        (5, 0.7, 2.0, None),
    ]


def test_returns_are_means_over_the_newest_tenth():
    rows = [{"iteration": at, "episode_return/mean": float(at)} for at in range(20)] + [{"iteration": 20}]
    points = points_of_control(rows, 20)
    assert [(point.iteration, point.score) for point in points[:2]] == [(2, 0.5), (3, 1.5)]
    assert points[-1].iteration == 20 and points[-1].score == 18.5


def row(**changes):
    values = {"response_tokens": 20.0, "distinct_2": 0.8, "eos_rate": 0.9, "ref_perplexity": 10.0} | changes
    return {f"evaluation/{name}": value for name, value in values.items()}


LIMITS = TuneConfig(max_length_ratio=2.0, max_distinct_loss=0.5, max_perplexity_ratio=3.0, max_eos_loss=0.3)


@pytest.mark.parametrize(
    ("changes", "guard", "value"),
    [
        ({"response_tokens": 60.0}, "length", 0.5),  # 3 times as long, 2 allowed
        ({"response_tokens": 5.0}, "length", 1.0),  # a quarter
        ({"response_tokens": 20.0}, "length", -0.5),
        ({"distinct_2": 0.2}, "distinct", 0.5),  # three quarters lost, half allowed
        ({"eos_rate": 0.3}, "eos", 1.0),
        ({"ref_perplexity": 36.0}, "perplexity", 0.2),
    ],
)
def test_guards_are_of_one_scale(changes, guard, value):
    assert guards(row(), row(**changes), LIMITS)[guard] == pytest.approx(value)


def test_guards_are_finite_where_nothing_is_said():
    found = guards(row(), row(response_tokens=0.0, distinct_2=0.0), LIMITS)
    assert all(math.isfinite(value) for value in found.values()) and broken(found) > 1


def test_only_what_is_broken_adds_up():
    assert broken({"length": 0.5, "eos": -3.0, "distinct": 0.25}) == 0.75
    assert broken({"length": 0.0}) == 0
