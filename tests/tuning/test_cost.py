import json
import os
import subprocess
import sys
import time

import pytest

import rlhfkit.tuning.search as search
from rlhfkit.cli.tune import seconds_in
from rlhfkit.config.load import recipe_text
from rlhfkit.doctor.findings import ok
from rlhfkit.errors import ConfigError
from rlhfkit.machine.progress import Progress
from rlhfkit.rundir.study import StudyDir
from rlhfkit.tuning.claims import Claims
from rlhfkit.tuning.cost import Rates, cost_of, factor_of, fitting
from tests.tuning.stub import design


def test_cost_by_hand():
    """90 iterations in 90 s, rungs at 21, 46 and 90; of 27 trials 13 and then 7 go on, and the recipe; free starts."""
    cost = cost_of(design(), Rates(base=100.0, whole=90.0, evaluation=5.0, start=0.0))
    assert cost.base == 100
    assert cost.search == pytest.approx(27 * 21 + 14 * 25 + 8 * 44)
    assert cost.confirmation == pytest.approx(3 * 2 * 90)
    assert cost.test == pytest.approx(5 * 2 * 95)
    assert cost.total == cost.base + cost.search + cost.confirmation + cost.test


def test_each_stretch_costs_a_start_and_other_epochs_cost_more():
    plain = Rates(base=0.0, whole=90.0, start=0.0)
    with_starts = cost_of(design(), Rates(base=0.0, whole=90.0, start=2.0)).search
    assert with_starts - cost_of(design(), plain).search == pytest.approx(2 * (27 + 14 + 8))
    # The recipe has 4 epochs, trials 7/3 on average; updates are 60 % of the time.
    assert factor_of(design(), 0.6) == pytest.approx(0.4 + 0.6 * (7 / 3) / 4)


def test_the_start_of_a_process_is_timed_on_the_machine(tmp_path, monkeypatch):
    stages = {"preferences": 10.0, "ppo": 90.0, "evaluate": 5.0}
    findings = [ok(f"forecast.{stage}", "", seconds=seconds) for stage, seconds in stages.items()]
    monkeypatch.setattr(search, "examine_forecast", lambda *_: findings)
    monkeypatch.setattr(search, "seconds_to_start", lambda: 7.0)
    rates = search._measured(recipe_text("demo"), [], design(), StudyDir(tmp_path), Progress(quiet=True))
    assert (rates.base, rates.whole, rates.start, rates.evaluation) == (10.0, 90.0, 7.0, 5.0)


def test_a_budget_decides_the_number_of_trials():
    rates = Rates(base=0.0, whole=90.0, start=0.0)
    whole = cost_of(design(), rates).total
    assert fitting(design(), rates, budget=whole, jobs=1).tune.trials == 27
    assert fitting(design(), rates, budget=whole - 1, jobs=1).tune.trials == 18
    assert fitting(design(), rates, budget=whole / 2, jobs=2).tune.trials == 27
    with pytest.raises(
        ConfigError, match=r"--budget 1 min 00 s is too little: the smallest study, of 4 trials, takes about 30"
    ):
        fitting(design(), rates, budget=60, jobs=1)


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h", 7200), ("90min", 5400), ("1h30m", 5400), ("45s", 45), ("10", 10), ("1.5h", 5400)]
)
def test_budgets_in_words(text, seconds):
    assert seconds_in(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "2 weeks", "-1h", "0h", "h"])
def test_budgets_that_are_none(text):
    with pytest.raises(ConfigError, match=f"--budget {text!r}: expected"):
        seconds_in(text)


def test_one_process_has_a_claim_at_a_time(tmp_path):
    claims = Claims(StudyDir(tmp_path))
    with claims.take("trial-001"):
        assert claims.take("trial-001") is None and claims.taken() == {"trial-001"}
        with claims.take("trial-002"):
            assert claims.taken() == {"trial-001", "trial-002"}
    assert claims.taken() == set() and claims.take("trial-001") is not None


ORPHAN = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print(flush=True); time.sleep(60)"
)


def test_a_run_whose_search_is_gone_is_asked_to_end(tmp_path):
    """It holds the claim that it inherited until it has ended."""
    claims = Claims(StudyDir(tmp_path))
    claim = claims.take("trial-001")
    run = subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, pass_fds=(claim.fileno(),))
    claim.note(run.pid)
    with claim:
        assert claims.end_orphans() == []  # its search, this process, is there
        run.stdout.readline()
    facts = json.loads((tmp_path / "claims" / "trial-001").read_text())
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / "claims" / "trial-001").write_text(json.dumps({**facts, "search": gone.pid}))
    start = time.monotonic()
    assert claims.end_orphans() == ["trial-001"]
    assert run.wait() == 0 and time.monotonic() - start < 30 and claims.taken() == set()
    assert os.path.exists(tmp_path / "claims" / "trial-001")
