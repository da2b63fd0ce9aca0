"""The report's section on who worked, which only a run on a cluster has."""

import json

import pytest

from rlhfkit.report.page import render_report
from tests.report.test_page import HOSTILE, Page

pytestmark = pytest.mark.thorough


@pytest.fixture
def on_cluster(fake_run):
    """Two iterations of 10 s: sampling in the first 4 s of each, then training; scores take a second of that."""
    event = {"time": 0.0, "what": "lost", "who": "sampler-0", "why": "its machine has ended", "lost_seconds": 2.5}
    trainers = {**event, "time": 3600.0, "who": "trainers", "lost_seconds": 75.0}
    slow = {**event, "what": "overtaken", "why": "", "lost_seconds": 0.5}
    table = {"time": 1.0, "state": "done", "events": [event, trainers, {**event, "what": "joined"}, slow]}
    fake_run.cluster.write_text(json.dumps(table), encoding="utf-8")
    work = [[f"sampler-{at}", i, 10 * i, 10 * i + 4, at == 1] for i in range(3) for at in (0, 1)]
    waits = [["trainer", i, 10 * i, 10 * i + 4, False] for i in range(3)]
    scored = [["reward-worker-0", None, 10 * i + 2, 10 * i + 5, False] for i in range(2)]
    waits_for_scores = [["trainer", None, 10 * i + 4, 10 * i + 5, False] for i in range(2)]
    content = {
        "sampler": {"work": work, "waits": waits},
        "reward-worker": {"work": scored, "waits": waits_for_scores},
    }
    fake_run.cluster_timeline.write_text(json.dumps(content), encoding="utf-8")
    return fake_run


def test_the_picture_and_its_sentence_say_how_far_work_overlapped(on_cluster):
    page = Page(render_report(on_cluster))
    assert "cluster" in page.headings()
    words = (
        "In the last 2 whole iterations (20 s) the trainer waited 50 % of the time. Samplers worked 40 % of it, each "
        "of them 40 % on average. For 0 % of it training and sampling went on at the same time."
    )
    assert words in page.text.replace("\u202f", " ")
    (label,) = [a["aria-label"] for tag, a in page.elements if tag == "svg" and "at work" in str(a.get("aria-label"))]
    assert words in label.replace("\u202f", " ")
    for name in ("trainer", "sampler-0", "sampler-1", "reward-worker-0"):
        assert name in page.text
    legend = [a["class"].split()[-1] for tag, a in page.elements if tag == "i" and "stripe" in str(a.get("class"))]
    assert legend == ["training", "waiting", "sampling", "scoring", "lost"]


def test_what_was_lost_is_a_table_with_its_cost(on_cluster):
    text = Page(render_report(on_cluster)).text
    assert "3 losses, 1 min 18 s in all." in text
    assert "1970-01-01 01:00:00 UTC" in text
    assert "2.5 s" in text and "1 min 15 s" in text and "its machine has ended" in text


def test_a_run_on_one_machine_has_no_such_section(fake_run):
    html = render_report(fake_run)
    assert "cluster" not in Page(html).headings()
    assert "Who worked" not in html


def test_without_losses_and_whole_iterations_there_is_a_sentence_alone(fake_run):
    fake_run.cluster.write_text('{"time": 1.0}', encoding="utf-8")
    page = Page(render_report(fake_run))
    assert "Nothing was lost." in page.text
    assert "whole iteration" not in page.text


@pytest.mark.parametrize("name", ["cluster", "cluster_timeline"])
def test_a_damaged_file_costs_the_report_this_section_alone(on_cluster, name):
    getattr(on_cluster, name).write_text("{", encoding="utf-8")
    page = Page(render_report(on_cluster))
    assert f"{name}.json is damaged" in page.text
    assert "numbers" in page.headings()


def test_hostile_names_stay_text(on_cluster):
    table = json.loads(on_cluster.cluster.read_text(encoding="utf-8"))
    table["events"][0].update(who=HOSTILE, why=HOSTILE)
    on_cluster.cluster.write_text(json.dumps(table), encoding="utf-8")
    timeline = json.loads(on_cluster.cluster_timeline.read_text(encoding="utf-8"))
    timeline["sampler"]["work"][0][0] = HOSTILE
    on_cluster.cluster_timeline.write_text(json.dumps(timeline), encoding="utf-8")
    html = render_report(on_cluster)
    page = Page(html)
    assert not {"script", "img"} & {tag for tag, _ in page.elements}
    assert HOSTILE in page.text


def test_many_workers_are_counted_not_drawn(on_cluster):
    timeline = json.loads(on_cluster.cluster_timeline.read_text(encoding="utf-8"))
    timeline["sampler"]["work"] = [[f"sampler-{at}", 0, 0.0, 4.0, False] for at in range(100)]
    on_cluster.cluster_timeline.write_text(json.dumps(timeline), encoding="utf-8")
    text = Page(render_report(on_cluster)).text
    assert "sampler-15" in text and "sampler-16" not in text
    assert "Not shown: 84 further workers." in text
