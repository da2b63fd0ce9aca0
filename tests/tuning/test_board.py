import io

import pytest
from rich.console import Console

from rlhfkit.tuning.board import board, line, seconds_left
from rlhfkit.tuning.summary import results_of
from tests.tuning.stub import design
from tests.tuning.test_study import SHORT, searched


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return searched(tmp_path_factory.mktemp("study"), *SHORT, broken=frozenset({3}), failing=frozenset({1}))


def drawn(results, **known):
    console = Console(file=io.StringIO(), width=160)
    console.print(board(results, **known))
    return console.file.getvalue().splitlines()


def test_the_table_has_what_runs_first_then_the_best(study):
    results = results_of(study)
    trials = [each.model_copy(update={"state": "running"}) if each.number == 5 else each for each in results.trials]
    names, first, *others, last = drawn(results.model_copy(update={"trials": tuple(trials)}), left=90.0)
    assert names.split()[:5] == ["trial", "state", "iterations", "judge", "nats"] and "optim.learning_rate" in names
    assert first.split()[:2] == ["5", "running"]
    assert {tuple(row.split()[:2]) for row in others[-2:]} == {("1", "failed"), ("3", "infeasible")}
    scores = [float(row.replace("(recipe)", "").split()[3]) for row in others[:-2]]
    assert scores == sorted(scores, reverse=True) and len(scores) == 6
    assert last == line(results.model_copy(update={"trials": tuple(trials)}), left=90.0)


def test_many_trials_are_counted(study):
    results = results_of(study)
    many = [results.trials[2].model_copy(update={"number": number}) for number in range(20)]
    assert "and 8 other trials" in drawn(results.model_copy(update={"trials": tuple(many)}), left=None)


def test_the_line_says_where_it_is_and_how_long_it_takes(study):
    results = results_of(study)
    best = max(
        (each for each in results.trials if each.state in ("complete", "pruned")), key=lambda one: one.best.score
    )
    assert line(results, left=None) == (
        f"done: 9 of 9 trials begun · best so far trial {best.number}, {best.best.score:.3g} at {best.best.kl:.1f} nats"
    )
    assert line(results, left=90.0).endswith(" · about 1 min 30 s left")


def test_what_is_left_goes_by_the_pace_of_what_was_done(study):
    """Of the plan's iterations some were done, at 2 s each; two runs at a time halve what is left."""
    results = results_of(study)
    done = results.model_copy(
        update={"trials": results.trials[:2], "spent_seconds": 230.0, "base_seconds": 50.0, "jobs": 2}
    )
    assert [each.iterations for each in done.trials] == [90, 0]
    plan = 9 * 21 + 5 * 25 + 3 * 44 + 2 * 2 * 90 + 2 * 5 * 90
    assert seconds_left(done, design(*SHORT), runs_done=0) == pytest.approx(2 * (plan - 90) / 2)
    assert seconds_left(done.model_copy(update={"trials": ()}), design(*SHORT), runs_done=0) is None
