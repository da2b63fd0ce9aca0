"""benchmarks/cluster_simulation.py: the pool of a run, in a cluster that is simulated."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def simulation(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import cluster_simulation

    return cluster_simulation


@pytest.fixture
def plain(simulation):
    """Work whose times can be told by hand: a chunk takes 1 s, however long its responses are."""

    class Even(simulation.Simulation):
        def _seconds_of(self, piece):
            return 1.0

    work = replace(simulation.SMALL, call_seconds=0.0, latency=0.0, weight_bytes=0.0, gradient_bytes=0.0)

    def run(num, chunks, *, train_seconds=4.0, **given):
        one = Even(work, num, chunks=chunks, trainers=1, iterations=6, **given)
        one.train_seconds = train_seconds
        return one.run()

    return run


def test_an_iteration_takes_sampling_and_training_one_after_the_other(plain):
    row = plain(2, 6, staleness=0)
    assert row["iteration_seconds"] == pytest.approx(3.0 + 4.0)
    assert row["waits"] == pytest.approx(3 / 7)
    assert row["busy"] == pytest.approx(3 / 7)


def test_one_iteration_ahead_takes_the_longer_of_the_two(plain):
    assert plain(2, 6, staleness=1)["iteration_seconds"] == pytest.approx(4.0)
    row = plain(1, 6, staleness=1)
    assert row["iteration_seconds"] == pytest.approx(6.0)
    assert row["busy"] == pytest.approx(1.0)


def test_every_machine_pulls_the_weights_once_and_one_after_the_other(simulation):
    work = replace(simulation.SMALL, weight_bytes=1e9, network=1e9, samplers_a_machine=2)
    row = simulation.Simulation(work, 8, chunks=8, trainers=1, staleness=0).run()
    assert (row["weight_bytes"], row["network_seconds"]) == (4e9, 4.0)
    assert row["sampling_seconds"] > 4.0


def test_losses_cost_time_and_never_a_chunk(simulation, plain):
    faults = simulation.Faults(losses_an_hour=360.0)  # every 10 s; a chunk's place is checked by the simulation itself
    row = plain(4, 40, staleness=0, faults=faults)
    assert row["losses"] > 0
    assert row["iteration_seconds"] > 14.0


def test_a_slow_sampler_is_helped_by_the_others(simulation, plain):
    faults = simulation.Faults(slow_share=0.25, slow_factor=100.0)
    row = plain(4, 40, staleness=0, faults=faults)
    assert row["iteration_seconds"] < 10.0 / 0.75 + 4.0 + 5.0  # not 100 s
    assert row["second_answers"] + row["restarts"] > 0


def test_samplers_that_join_late_get_work(simulation, plain):
    faults = simulation.Faults(late_share=0.5, late_seconds=50.0)
    late = plain(4, 40, staleness=0, faults=faults)
    assert 14.0 < late["iteration_seconds"] < 24.0


@pytest.mark.thorough
def test_a_dry_run_prints_a_report_and_draws_a_picture(simulation, tmp_path, capsys):
    report = simulation.main(["--dry-run", "--out", str(tmp_path / "picture.svg")])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]).keys() == report.keys()
    assert (tmp_path / "picture.svg").read_text().startswith("<?xml")
    weak = [row for row in report["weak"] if row["work"] == "7B"]
    assert [row["chunks"] / row["samplers"] for row in weak] == [4, 4, 4]
    assert all(0 < row["tokens_share"] < 1.3 for row in report["weak"])
    ahead, after = (
        [row["iteration_seconds"] for row in report["strong"] if row["staleness"] == staleness] for staleness in (1, 0)
    )
    assert all(first < second for first, second in zip(ahead, after, strict=True))
