"""The section about several processes: how long they waited, and what memory each one took."""

import json

import pytest

from rlhfkit.report.page import render_report
from rlhfkit.report.ranks import shared_work
from rlhfkit.rundir.contents import read_facts
from rlhfkit.rundir.directory import RunDir
from tests.report.test_page import Page, change

pytestmark = pytest.mark.thorough

MIB = 2**20


def share(run: RunDir, *peaks, taken="none", waiting=True):
    """Let the run look like one of as many processes as there are peaks, of PPO."""
    ranks = [
        {"rank": rank, "host": f"node-{rank}", "device": "cpu", "num_threads": 4, "measured_peak_bytes": peak}
        for rank, peak in enumerate(peaks)
    ]
    stages = json.loads(run.manifest.read_text())["stages"]
    stages["ppo"] |= {"ranks": ranks, "memory": {"predicted_peak_bytes": 1100 * MIB}}
    change(run.manifest, stages=stages, parallel={"asked": "auto", "taken": taken, "why": "", "num_ranks": len(ranks)})
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    for row in rows:
        if row["stage"] == "ppo" and waiting:
            row |= {"time/waiting_share_mean": 0.1, "time/waiting_share_max": 0.2}
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_one_process_has_no_such_section(fake_run: RunDir):
    assert shared_work(read_facts(fake_run)) is None
    assert "processes" not in Page(render_report(fake_run)).headings()


def test_each_process_has_its_place_and_its_memory(fake_run: RunDir):
    share(fake_run, 900 * MIB, 850 * MIB)
    found = shared_work(read_facts(fake_run))
    assert found.lead == "2 processes worked on this run. Each had all weights, and its share of the rows."
    assert [(row.rank, row.place, row.peaks) for row in found.rows] == [
        (0, "node-0, cpu, 4 threads", ["900 MiB"]),
        (1, "node-1, cpu, 4 threads", ["850 MiB"]),
    ]
    assert (found.stages, found.planned) == (["PPO"], ["1.1 GiB"])
    page = Page(render_report(fake_run))
    assert "processes" in page.headings()
    for words in ("Waiting for each other", "850 MiB", "Each had all weights"):
        assert words in page.text


def test_parted_weights_are_said(fake_run: RunDir):
    share(fake_run, 900 * MIB, 850 * MIB, taken="fsdp")
    assert "Each had its part of weights, gradients and averages" in Page(render_report(fake_run)).text


def test_what_is_not_known_is_left_open(fake_run: RunDir):
    """A kernel that does not forget peaks, and a run whose log has no times."""
    share(fake_run, 900 * MIB, None, waiting=False)
    found = shared_work(read_facts(fake_run))
    assert [row.peaks for row in found.rows] == [["900 MiB"], ["–"]]
    assert found.charts == []
    assert "processes" in Page(render_report(fake_run)).headings()
