import pytest

from rlhfkit.tuning.agenda import DEFAULT, Standing, may_go_on, next_step, rungs_of

RUNGS = (10, 30, 90)


def at(rung, number, score, *, broken=0.0, **known):
    earlier = {below: (broken, score) for below in RUNGS if below <= rung}
    return Standing(number, earlier, **known)


@pytest.mark.parametrize(
    ("iterations", "every", "planned", "rungs"),
    [
        (90, 5, 27, (31, 90)),  # R / 9 = 10 is before 20, and 20 is near 31
        (300, 10, 27, (31, 101, 300)),
        (40, 10, 27, (21, 40)),
        (1000, 20, 27, (121, 341, 1000)),
        (1000, 20, 81, (41, 121, 341, 1000)),
        (300, 10, 9, (101, 300)),  # 9 / 3 = 3 finalists are left
        (300, 10, 6, (300,)),
        (20, 5, 27, (20,)),
    ],
)
def test_rungs(iterations, every, planned, rungs):
    assert rungs_of(iterations, every=every, least=20, reduction=3, planned=planned, finalists=3) == rungs


def test_the_best_third_goes_on():
    trials = [at(10, number, float(number)) for number in range(1, 7)]
    assert may_go_on(trials, RUNGS, reduction=3) == (6, 30)
    trials[5] = at(10, 6, 6.0, reaching=30)
    assert may_go_on(trials, RUNGS, reduction=3) == (5, 30)
    trials[4] = at(10, 5, 5.0, reaching=30)
    assert may_go_on(trials, RUNGS, reduction=3) is None


def test_those_that_went_on_count_among_those_that_came():
    trials = [at(10, 1, 1.0), at(10, 2, 2.0), at(90, 3, 3.0)]
    assert may_go_on(trials, RUNGS, reduction=3) is None  # of three one goes on, and it has


def test_no_more_than_a_third_go_on_however_good_the_later_ones_are():
    trials = [at(30, 1, 1.0), at(10, 2, 5.0), at(10, 3, 6.0)]
    assert may_go_on(trials, RUNGS, reduction=3) is None  # 1 has taken the place
    trials += [at(10, number, 0.0) for number in (4, 5, 6)]
    assert may_go_on(trials, RUNGS, reduction=3) == (3, 30)
    ended = [at(90, 1, 1.0, end="complete"), at(10, 2, 5.0), at(10, 3, 6.0)]
    assert may_go_on(ended, RUNGS, reduction=3) is None


def test_the_default_takes_nobodys_place():
    default = at(90, DEFAULT, 9.0, end="complete")
    trials = [default, *(at(10, number, float(number)) for number in (1, 2, 3)), at(10, 4, 0.0), at(10, 5, 0.5)]
    assert may_go_on(trials, RUNGS, reduction=3) == (3, 30)


def test_once_all_have_begun_the_best_go_on_though_others_had_the_places():
    trials = [at(30, 1, 1.0), at(10, 2, 5.0), at(10, 3, 6.0), at(10, 4, 7.0, broken=1.0)]
    step = {"reduction": 4, "finalists": 2}
    assert next_step(trials, RUNGS, planned=5, **step) == (None, 10)
    assert next_step(trials, RUNGS, planned=4, **step) == (3, 30)
    trials[2] = at(10, 3, 6.0, reaching=30)
    assert next_step(trials, RUNGS, planned=4, **step) == (2, 30)
    trials[1] = at(10, 2, 5.0, reaching=30)
    assert next_step(trials, RUNGS, planned=4, **step) == (1, 90)  # of those two that came to 30


def test_the_highest_rung_comes_first():
    trials = [at(10, number, float(number)) for number in range(1, 4)] + [at(30, number, 9.0) for number in (7, 8, 9)]
    assert may_go_on(trials, RUNGS, reduction=3) == (7, 90)


def test_the_default_always_goes_on():
    trials = [at(10, DEFAULT, -5.0), at(10, 1, 1.0)]
    assert may_go_on(trials, RUNGS, reduction=3) == (DEFAULT, 30)


def test_whoever_breaks_a_guard_stands_behind_all_others_and_does_not_go_on():
    trials = [at(10, 1, 99.0, broken=0.1), at(10, 2, 0.0), at(10, 3, 1.0)]
    assert may_go_on(trials, RUNGS, reduction=3) == (3, 30)
    assert may_go_on([at(10, number, 9.0, broken=1.0) for number in (1, 2, 3)], RUNGS, reduction=3) is None


def test_what_has_ended_does_not_go_on():
    trials = [at(10, 1, 1.0), at(10, 2, 2.0), at(10, 3, 3.0, end="failed")]
    assert may_go_on(trials, RUNGS, reduction=3) is None


def test_new_trials_are_begun_until_there_are_as_many_as_planned():
    trials = [at(10, 1, 1.0), at(10, 2, 2.0, broken=1.0)]
    step = {"reduction": 3, "finalists": 1}
    assert next_step(trials, RUNGS, planned=3, **step) == (None, 10)
    assert next_step([at(90, 1, 1.0, end="complete"), trials[1]], RUNGS, planned=2, **step) is None
