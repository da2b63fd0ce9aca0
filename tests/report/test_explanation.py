"""The page and the lines of an explanation: what holds is drawn, what does not is said, and text stays text."""

import json
import re

import pytest

from rlhfkit.report.explanation import panels_of, render_explanation, view_of, write_explanation
from rlhfkit.report.explanation_text import lines_of
from rlhfkit.report.page import render_report
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.explanations import Explanation
from tests.report.conftest import write_fake_run
from tests.report.explained import HOSTILE, SHARES, TEXTS, explained, explanation


@pytest.fixture(scope="module")
def page():
    return render_explanation(explanation(), name=f"run {HOSTILE}")


def test_text_of_models_stays_text(page):
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 10


def test_marks_have_a_line_and_a_number_beside_their_colour(page):
    assert '<span class="kl4" title="KL, nats: 1.4">won\u2060<sup aria-hidden="true">1.4</sup></span>' in page
    assert '<span class="up4" title="share of the score +1.3">derful\u2060<sup' in page
    assert re.search(r'<span class="down2" title="share of the score −0.4">&lt;script', page)
    for name in ("up4", "down4", "kl4"):
        assert re.search(rf"\.{name}[^{{]*{{[^}}]*text-decoration-(thickness|style|color)", page)


def test_colours_only_where_the_attribution_is_told_from_chance():
    good, bad = view_of(explained()), view_of(explained(is_faithful=False))
    assert good.drawn.method == "leaving out single tokens"
    assert [method.verdict for method in good.methods] == ["holds", "no better than chance"]
    assert bad.drawn is None
    assert bad.by_reward == []
    assert "No colours here" in render_explanation(explanation(explained(is_faithful=False)), name="x")


def test_gradients_that_do_not_add_up_are_not_drawn():
    one = explained()
    gradients = one.reasons.attributions[1]
    off = gradients.completeness.model_copy(update={"is_complete": False, "error": 0.2})
    checked = gradients.model_copy(update={"completeness": off, "check": one.reasons.attributions[0].check})
    view = view_of(one.model_copy(update={"reasons": one.reasons.model_copy(update={"attributions": (checked,)})}))
    assert view.drawn is None
    assert view.methods[0].verdict == "does not add up"
    assert "20\u202f% off" in view.methods[0].adds_up


def test_the_table_has_a_row_for_each_token_and_the_sums():
    view = view_of(explained())
    assert [name for name, _ in view.columns][:4] == ["logprob", "ref", "KL", "exact KL"]
    assert "ratio" not in dict(view.columns)
    assert len(view.rows) == len(TEXTS)
    by_name = dict(zip(dict(view.columns), view.sums, strict=True))
    assert by_name["KL"] == "2.69"
    assert by_name["leaving out single tokens"] == f"{sum(SHARES):.3g}"
    assert "2.69 nats" in view.adds_up


def test_the_lines_of_a_terminal_say_what_changed_and_what_is_paid():
    lines = list(lines_of(explanation()))
    assert lines[0] == "note: a note on all"
    text = "\n".join(lines)
    assert "changed   at 5, “won”, by 1.4 nats · likelier: “won” 2\u202f% → 31\u202f%" in text
    assert "paid for  “derful” +1.3, “won” +0.9" in text
    assert "paid for  cannot be said: no method tells it from chance" in text


def test_what_is_written_is_read_again(tmp_path):
    run, whole = RunDir(tmp_path), explanation()
    write_explanation(run, whole)
    assert Explanation.model_validate_json(run.explanation.read_text()) == whole
    assert run.explanation_page.read_text().lstrip().startswith("<!doctype html>")


@pytest.mark.thorough
def test_the_report_shows_the_panel_folded_and_as_text(tmp_path):
    run = write_fake_run(tmp_path / "run")
    assert "Token by token" not in render_report(run)
    ratio = {"ratio": tuple(1.0 + 0.1 * at for at in range(10)), "is_clipped": (False,) * 8 + (True,) * 2}
    lines = []
    for iteration in (1, 11, 21, 31, 41, 51):
        one = explained(iteration=iteration, reasons=None, lens=None, divergence=None)
        learnt = one.model_copy(update={"is_of_rollout": True, "tokens": one.tokens.model_copy(update=ratio)})
        rows = [row.model_dump(exclude_none=True) for row in (one, learnt)]
        lines.append({"stage": "ppo", "iteration": iteration, "kind": "explanation", "responses": rows})
    lines.append({"stage": "ppo", "iteration": 52, "kind": "explanation", "responses": [{"odd": 1}]})
    run.observations.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = render_report(run)
    section = report[report.index('id="panel"') :]
    assert "<details>" in section
    assert "<script" not in section
    assert [int(found) for found in re.findall(r"<h3>Iteration (\d+)</h3>", section)] == [1, 21, 31, 51]
    assert "What PPO paid for in iteration 51" in section
    assert "clipped" in section
    assert len(report) < 1.25 * len(render_report(write_fake_run(tmp_path / "other")))


def test_without_a_panel_there_is_none():
    assert panels_of([{"kind": "evaluation", "iteration": 3}]) is None
