"""The page of a study: what it says in each state, that its numbers are those of study.json, that text stays text."""

import re
import xml.etree.ElementTree as ET
from dataclasses import fields

import pytest
from markupsafe import Markup

from rlhfkit.errors import CheckpointError
from rlhfkit.report.knobs import axes_of, broken_name, short_names, value_text
from rlhfkit.report.study import StudyCharts, charts_of, render_study, write_study_page
from rlhfkit.report.study_plots import front_chart, pareto_front, rank_of, score_at, seconds_by_trial
from rlhfkit.report.study_words import fixed, signed, words_of
from rlhfkit.report.svg import Chart
from rlhfkit.rundir.results import Estimate
from rlhfkit.rundir.study import KnobRange, Point, StudyDir, StudyResults, Trial
from tests.report.studies import control_study, study

HOSTILE = '<script>alert("x")</script>'


@pytest.fixture(scope="module")
def done():
    return study()


def written(results: StudyResults) -> str:
    """The page with a stroke in the place of each drawing, which take a tenth of a second each."""
    with pytest.MonkeyPatch.context() as patch:
        stroke = Chart("drawing", "caption", Markup("<svg></svg>"))
        patch.setattr("rlhfkit.report.study.charts_of", lambda _: StudyCharts(*[stroke] * len(fields(StudyCharts))))
        return render_study(results)


@pytest.fixture(scope="module")
def html(done):
    return written(done)


def text_of(html):
    return re.sub(r"[ \n]+", " ", re.sub(r"<[^>]+>", " ", html.partition("</style>")[2]))


def svgs(html):
    return re.findall(r"<svg.*?</svg>", html, flags=re.S)


# ── the result ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_gain_is_said_with_its_interval_seeds_and_command(done, html):
    comparison, text = done.comparison, text_of(html)
    assert 'class="verdict good"' in html
    assert f"Trial {comparison.winner} is better than the default: {signed(comparison.difference.mean)}" in text
    assert f"interval {signed(comparison.difference.low)} to {signed(comparison.difference.high)}, over 5 seeds" in text
    assert "128 prompts that the search has not used" in text
    assert "Probability of improvement 96\u202f%" in text
    assert "rlhfkit run studies/demo/best.toml --run-dir runs/demo-best" in text
    for seed in comparison.seeds:
        row = f"{seed.seed} {fixed(seed.default)} {fixed(seed.winner)} {signed(seed.winner - seed.default)}"
        assert row in text
    assert "KL, default → winner 5.13 → 6.61" in text


def test_no_evidence_is_as_prominent_as_a_gain():
    page = words_of(study(gain=0.02))
    assert (page.headline, page.tone) == ("No evidence of a gain: keep the default", "unclear")


def test_headline_is_the_first_thing_on_the_page_whatever_it_says(html):
    assert re.search(r'<section class="verdict good"[^>]*>\s*<h2>Trial 12 is better than the default', html)


def test_command_is_shown_where_there_is_a_gain_to_reproduce(html):
    assert "What reproduces the winner" in html
    assert "What reproduces the winner" not in written(study(gain=0.02))


def test_worse_winner_is_said_to_be_worse(done):
    worse = done.comparison.model_copy(
        update={"is_gain": False, "difference": Estimate(mean=-0.2, low=-0.3, high=-0.1), "words": "It is worse."}
    )
    page = words_of(done.model_copy(update={"comparison": worse}))
    assert page.tone == "bad"
    assert page.headline.startswith("Keep the default")
    assert "It is worse." in page.sentences


def test_interval_lies_on_its_side_of_no_difference(done):
    fact = words_of(done).facts[0]
    low, mean, high = fact.interval
    assert 50 < low < mean < high < 100
    even = done.comparison.model_copy(update={"difference": Estimate(mean=0.0, low=-1.0, high=1.0)})
    assert words_of(done.model_copy(update={"comparison": even})).facts[0].interval[1] == 50.0
    none = done.comparison.model_copy(update={"difference": Estimate(mean=0.1)})
    assert words_of(done.model_copy(update={"comparison": none})).facts[0].interval is None


def test_settings_of_the_winner_stand_beside_those_of_the_default(done):
    rows = {row.name: row for row in words_of(done).settings}
    winner = done.trials[done.comparison.winner].params
    rate, epochs = rows["ppo.optim.learning_rate"], rows["ppo.epochs"]
    assert (rate.default, rate.searched) == ("1e-5", "1e-6 to 3e-5, by its logarithm")
    assert rate.best == value_text(winner["ppo.optim.learning_rate"])
    assert rate.is_changed
    assert (epochs.default, epochs.best, epochs.is_changed) == ("4", "4", False)
    assert rows["ppo.whiten_rewards"].searched == "true, false"


# ── while it runs ────────────────────────────────────────────────────────────────────────────────────────────────────


def only(trials, **changes):
    return study(num_done=9, **changes).model_copy(update={"trials": tuple(trials)})


def states_of(results, **changes):
    return [trial.model_copy(update=changes) for trial in results.trials]


@pytest.mark.parametrize(
    ("results", "headline", "tone"),
    [
        (study(num_done=0), "Preparing: no trial has begun", "open"),
        (study(num_done=0, state="searching"), "Preparing: no trial has begun", "open"),
        (study(num_done=1), "Searching: 1 of 27 trials done, the default is best so far", "open"),
        (study(num_done=9), "Searching: 9 of 27 trials done, trial 5 is best so far", "open"),
        (
            only(states_of(study(num_done=1), state="running", points=(), best=None, iterations=0)),
            "Searching: 0 of 27 trials done, none with a score yet",
            "open",
        ),
        (
            only(states_of(study(num_done=9), state="infeasible")),
            "Searching: 9 of 27 trials done, none with a score within its limits yet",
            "open",
        ),
        (
            only(states_of(study(num_done=9), state="infeasible"), state="done"),
            "No trial kept all limits: keep the default",
            "bad",
        ),
        (study(num_done=1, state="done"), "Nothing better than the default in 1 trial: keep it", "unclear"),
        (
            study(num_done=9, state="stopped"),
            "Not tested: trial 5 looked best, keep the default until it is",
            "unclear",
        ),
        (study(comparison=None, state="testing"), "Testing: 25 of 27 trials done, trial 12 is best so far", "open"),
    ],
)
def test_headline_of_each_state(results, headline, tone):
    page = words_of(results)
    assert (page.headline, page.tone) == (headline, tone)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "results",
    [study(num_done=0), study(num_done=1), study(num_done=9), study(), control_study()],
    ids=["preparing", "one trial", "searching", "done", "control"],
)
def test_page_of_each_state_is_whole_and_its_drawings_well_formed(results):
    html = render_study(results)
    text = text_of(html)
    assert html.rstrip().endswith("</html>")
    assert not re.search(r"\b(None|nan|inf)\b", text)
    assert re.findall(r"#0000[0-9a-f]{2}", html) == [], "all colours are the style sheet's"
    assert bool(svgs(html)) == bool(results.trials)
    assert ("Return over steps" in html) == (results.metric == "return")
    for svg in svgs(html):
        assert not re.search(r"\bnan\b", svg)
        ET.fromstring(svg)


@pytest.mark.parametrize("num_done", [0, 1])
def test_what_is_not_known_yet_has_no_heading(num_done):
    html = written(study(num_done=num_done))
    assert 'id="finalists"' not in html
    assert ('id="front"' in html, 'id="rungs"' in html, 'id="trials"' in html) == (num_done > 0,) * 3
    assert "Settings of the default, and what is searched" in html


def test_stages_say_what_is_done_and_what_the_budget_left_out(done):
    def states(results):
        return [state for _, state, _ in words_of(results).stages]

    assert states(done) == ["done"] * 4
    assert states(study(num_done=9)) == ["done", "running", "to come", "to come"]
    stopped = words_of(study(num_done=9, state="stopped")).stages
    assert [note for _, _, note in stopped] == ["done", "9 of 27", "not done", "not done"]


def test_a_best_trial_that_is_not_tested_comes_with_a_warning():
    assert any("looks better than it is" in sentence for sentence in words_of(study(num_done=9)).sentences)
    assert not any("looks better than it is" in sentence for sentence in words_of(study()).sentences)


def test_control_task_has_return_over_iterations_and_no_word_of_kl():
    text = text_of(written(control_study()))
    assert "How the trials learnt" in text
    assert "KL" not in text
    assert "100\u202f000 steps each at most; what counts is the best return." in text
    assert "went on: 5 after 50\u202f000 steps" in text
    assert "iterations" not in text


# ── fronts, knobs, rungs ─────────────────────────────────────────────────────────────────────────────────────────────


def test_front_holds_what_no_other_point_beats_in_both():
    points = [(1.0, 0.2), (2.0, 0.5), (3.0, 0.4), (2.0, 0.3), (5.0, 0.6), (6.0, 0.6)]
    assert pareto_front(points) == [(1.0, 0.2), (2.0, 0.5), (5.0, 0.6)]
    assert pareto_front([]) == []


def test_score_at_a_rung_is_the_best_within_the_budget_up_to_there():
    points = [(6, 0.2, 2.0), (12, 0.4, 5.0), (18, 0.9, 9.0), (24, 0.3, 7.0)]
    trial = Trial(
        number=1,
        params={},
        seed=0,
        state="complete",
        points=tuple(Point(iteration=at, score=value, kl=kl) for at, value, kl in points),
    )
    assert [score_at(trial, rung, 8.0) for rung in (3, 6, 12, 24)] == [None, 0.2, 0.4, 0.4]
    assert score_at(trial, 24, None) == 0.9


def test_points_far_beyond_the_budget_are_counted_not_drawn():
    far = Point(iteration=6, score=5.0, kl=900.0)
    trials = [trial.model_copy(update={"points": (*trial.points, far)}) for trial in study(num_done=2).trials]
    chart = front_chart(only(trials), 0, width=720)
    num_far = 2 + sum(point.kl > 24 for trial in study(num_done=2).trials for point in trial.points)
    assert f"{num_far} evaluations beyond 24 nats are not drawn" in chart.caption
    assert "900" not in chart.svg


def test_names_are_as_short_as_they_can_be_told_apart():
    names = ("ppo.optim.learning_rate", "value.optim.learning_rate", "ppo.kl.coef", "ppo.epochs", "minibatches")
    assert short_names(names) == {
        "ppo.optim.learning_rate": "ppo.optim.learning_rate",
        "value.optim.learning_rate": "value.optim.learning_rate",
        "ppo.kl.coef": "kl.coef",
        "ppo.epochs": "ppo.epochs",
        "minibatches": "minibatches",
    }
    assert broken_name("ppo.optim.learning_rate") == ["ppo.optim.", "learning_rate"]
    assert broken_name("ppo.gae_lambda") == ["ppo.gae_lambda"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-5, "1e-5"),
        (3.34e-6, "3.34e-6"),
        (0.05, "0.05"),
        (True, "true"),
        (4, "4"),
        (None, "–"),
        ("x" * 99, "x" * 24 + "…"),
    ],
)
def test_values_are_written_as_in_a_recipe(value, text):
    assert value_text(value) == text


def place_of(knob: KnobRange, value: object) -> float | None:
    trial = Trial(number=0, params={} if value is None else {knob.name: value}, seed=0, state="running")
    results = study(num_done=0).model_copy(update={"space": (knob,), "trials": (trial,)})
    return axes_of(results)[0].place(trial)


def test_values_lie_where_the_axis_says():
    log = KnobRange(name="a", low=1e-6, high=1e-4, log=True)
    assert place_of(log, 1e-5) == pytest.approx(0.5)
    assert place_of(KnobRange(name="a", low=0.0, high=4.0), 1) == pytest.approx(0.25)
    assert place_of(log, 1e-2) == pytest.approx(1.0)  # the default may lie outside what is searched
    assert place_of(log, None) is None
    choice = KnobRange(name="a", choices=(1, 2, 4))
    assert [place_of(choice, value) for value in (1, 2, 4)] == pytest.approx([0, 0.5, 1])
    assert place_of(KnobRange(name="a", choices=("x",)), "x") == 0.5


def test_rank_goes_from_lowest_to_highest():
    assert [rank_of(score, (0.0, 1.0)) for score in (0.0, 0.3, 0.5, 0.99, 1.0)] == [1, 2, 3, 5, 5]
    assert rank_of(0.4, (0.4,)) == 5


def test_rungs_say_who_went_on_and_who_did_not(done):
    page = words_of(done)
    rows = {row.trial.number: row for row in page.rung_rows}
    assert [cell.fate for cell in rows[12].cells] == ["promoted", "promoted", "complete"]
    assert [cell.fate for cell in rows[1].cells] == ["pruned", "", ""]
    assert [cell.fate for cell in rows[20].cells] == ["promoted", "paused", ""]
    assert [cell.fate for cell in rows[4].cells] == ["failed after 3 iterations", "", ""]
    assert page.rung_rows[0].trial.number == 12
    assert rows[12].cells[-1].score == done.trials[12].best.score
    assert "27 trials begun; went on: 14 after 12, 7 after 36 iterations; 2 paused, 14 pruned." in page.rung_summary


def test_failed_and_infeasible_trials_are_named_with_their_cause_and_guard(html):
    text = text_of(html)
    assert "trial 4 failed the GPU&#39;s memory is full (iteration 3)" in text
    assert "trial 13 infeasible length: 1.38 times its limit, distinct_2: 1.04 times its limit" in text
    assert "kl: " not in text.partition("trial 13")[2][:120]  # a guard that is kept is not named


# ── importance, finalists, time, all trials ──────────────────────────────────────────────────────────────────────────


def test_importance_is_warned_of_below_thirty_trials(done, html):
    assert "Only 23 trials finished" in text_of(html)
    assert "Only 23 trials finished: below 30" in words_of(done).importance_warning
    many = [done.trials[1].model_copy(update={"number": number}) for number in range(30)]
    assert words_of(done.model_copy(update={"trials": tuple(many), "comparison": None})).importance_warning == ""


def test_finalists_show_every_seed_and_their_worth(done, html):
    text = text_of(html)
    for finalist in done.finalists:
        for seed in finalist.seeds:
            assert f"{fixed(seed.best.score)} ({seed.seed})" in text
        assert f"{fixed(finalist.mean)} {fixed(finalist.std)} {fixed(finalist.worth)}" in text


def test_time_is_told_apart_and_adds_up(done):
    rows = {name: seconds for name, seconds, _ in words_of(done).money.rows}
    assert sum(rows.values()) == pytest.approx(done.spent_seconds)
    assert rows["further seeds of the finalists"] == pytest.approx(4 * 2 * 124.0)
    assert rows["test on fresh seeds"] == pytest.approx(5 * (128.0 + 131.0))
    assert seconds_by_trial(done)[0][2] == pytest.approx(5 * 131.0)
    more = words_of(done.model_copy(update={"spent_seconds": done.spent_seconds + 500.0})).money
    assert {name: seconds for name, seconds, _ in more.rows}["not told apart"] == pytest.approx(500.0)
    assert "Budget: 2 h 00 min." in more.note


def test_table_has_every_trial_with_its_directory(done, html):
    rows = re.findall(r"<tr>(?:(?!</tr>).)*runs/trial-(\d+)</code>", html.partition('id="trials"')[2], flags=re.S)
    assert [int(row) for row in rows] == [trial.number for trial in done.trials]


# ── text stays text, and the file ────────────────────────────────────────────────────────────────────────────────────


def hostile() -> StudyResults:
    whole = study(num_done=2)
    knob = KnobRange(name=f"a.{HOSTILE}", choices=(HOSTILE, "b\x00\x1b"), default=HOSTILE)
    trials = tuple(
        trial.model_copy(
            update={"params": {knob.name: HOSTILE}, "cause": HOSTILE, "run": HOSTILE, "violations": {HOSTILE: 0.5}}
        )
        for trial in whole.trials
    )
    return whole.model_copy(
        update={
            "name": HOSTILE,
            "metric": HOSTILE,
            "space": (knob,),
            "trials": trials,
            "importance": {knob.name: 1.0, "b": 0.5},
            "command": HOSTILE,
            "words": f"{HOSTILE} \ud800",
        }
    )


def test_text_of_settings_stays_text():
    html = written(hostile())
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 12


@pytest.mark.thorough
def test_text_of_settings_stays_text_in_drawings():
    charts = charts_of(hostile())
    for chart in (charts.knobs, charts.importance, charts.front, charts.rungs):
        assert "script&gt;" in chart.svg
        assert "<script" not in chart.svg
        ET.fromstring(chart.svg)


def test_page_loads_nothing_and_needs_no_script(html):
    assert "<script" not in html
    assert "http" not in html.replace("http-equiv", "")
    assert "default-src 'none'" in html


@pytest.mark.thorough
def test_page_is_written_from_the_file_alone_and_the_same_each_time(tmp_path):
    directory, results = StudyDir(tmp_path), study(num_done=1)
    directory.results.write_text(results.model_dump_json())
    path = write_study_page(directory)
    assert path == tmp_path / "study.html"
    assert path.read_text(encoding="utf-8") == render_study(results)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "has no study.json"),
        ("{", "study.json is damaged"),
        ('{"name": 1}', "study.json is damaged"),
        ('{"name": "a", "kl": NaN}', "not finite"),
    ],
)
def test_missing_or_damaged_results_are_an_error_in_words(tmp_path, content, words):
    directory = StudyDir(tmp_path)
    if content is not None:
        directory.results.write_text(content)
    with pytest.raises(CheckpointError, match=words):
        write_study_page(directory)
    assert not directory.page.exists()
