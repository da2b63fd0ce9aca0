"""Lists of runs and studies."""

import json
import os
import time

import pytest

from rlhfkit.rundir import find
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.find import find_run, find_runs
from rlhfkit.rundir.lock import locked
from rlhfkit.rundir.tail import Mark, new_curves
from tests.feedback.run_directories import STAGES, append, make_older, make_run, ppo_row
from tests.report.studies import make_study, study


def test_runs_are_listed_newest_first_each_with_its_rounds(tmp_path):
    make_older(make_run(tmp_path / "old", finished=STAGES), 3600)
    make_older(make_run(tmp_path / "group" / "deep"), 60)
    whole = make_run(tmp_path / "loop", rounds=2)
    for number in (10, 2):
        make_run(whole.path / f"round-{number}")
    make_run(whole.path / "round-x")
    make_run(whole.path / "policy")
    make_older(whole, 7200)
    found = [(run.id, run.parent) for run in find_runs(tmp_path).runs]
    assert found == [
        ("loop", None),
        ("loop/round-2", "loop"),
        ("loop/round-10", "loop"),
        ("group/deep", None),
        ("old", None),
    ]


def test_state_says_stage_and_iterations_done_of_how_many(tmp_path):
    run = make_run(tmp_path / "demo")
    append(run.metrics, {"stage": "sft", "iteration": 29, "loss": 1.0}, ppo_row(0), ppo_row(1))
    with locked(run):
        state = find_runs(tmp_path).runs[0]
    assert (state.state, state.stage, state.num_done, state.num_planned) == ("running", "ppo", 2, 50)
    assert state.finished_stages == STAGES[:4]
    assert 0 <= state.age_seconds < 60


def test_seeds_of_a_control_run_count_one_after_another(tmp_path):
    # 100 steps, 3 environments x 10 steps: 4 iterations a seed, two seeds
    ppo = {"env_steps": 100, "num_envs": 3, "rollout_steps": 10}
    run = make_run(tmp_path / "pole", finished=(), stages=["control"], seed=7, num_seeds=2, ppo=ppo)
    append(run.metrics, {"stage": "control", "iteration": 1, "seed": 8, "env_steps": 60.0})
    state = find_runs(tmp_path).runs[0]
    assert (state.num_done, state.num_planned) == (6, 8)


def test_stage_without_a_plan_counts_updates_and_one_not_begun_counts_nothing(tmp_path):
    run = make_run(tmp_path / "demo", finished=STAGES[:1])
    append(run.metrics, {"stage": "sft", "iteration": 4, "loss": 1.0})
    assert [(state.num_done, state.num_planned) for state in find_runs(tmp_path).runs] == [(5, None)]
    run.stages.write_text(json.dumps({stage: {} for stage in STAGES[:2]}))
    assert [(state.stage, state.num_done) for state in find_runs(tmp_path).runs] == [("preferences", None)]


def test_run_without_news_for_ten_minutes_or_three_iterations_is_quiet(tmp_path):
    run = make_run(tmp_path / "demo")
    with locked(run):
        append(run.metrics, ppo_row(0))
        make_older(run, 590)
        assert find_runs(tmp_path).runs[0].state == "running"
        make_older(run, 20)
        assert find_runs(tmp_path).runs[0].state == "quiet"
        append(run.metrics, ppo_row(1, **{"time/iteration_seconds": 400.0}))
        make_older(run, 1100)
        assert find_runs(tmp_path).runs[0].state == "running"
        make_older(run, 200)
        assert find_runs(tmp_path).runs[0].state == "quiet"


def test_run_on_which_no_process_works_has_stopped_however_young_its_files_are(tmp_path):
    run = make_run(tmp_path / "demo")
    assert find_runs(tmp_path).runs[0].state == "stopped"
    with locked(run):
        assert find_runs(tmp_path).runs[0].state == "running"
    assert find_runs(tmp_path).runs[0].state == "stopped"


def test_a_pipe_in_place_of_the_lock_keeps_nobody_waiting(tmp_path):
    os.mkfifo(make_run(tmp_path / "demo").lock)
    assert find_runs(tmp_path).runs[0].state == "stopped"


def test_finished_run_says_so_and_why_ppo_ended_early(tmp_path):
    run = make_run(tmp_path / "demo", finished=STAGES)
    run.stages.write_text(json.dumps({stage: {"stopped": "KL ran away"} for stage in STAGES}))
    make_older(run, 10**6)
    state = find_runs(tmp_path).runs[0]
    assert (state.state, state.stage, state.stopped) == ("finished", None, "KL ran away")


@pytest.mark.parametrize("content", ["{", "[1]", "\ufffd" * 3, "[" * 100_000, '{"stages": ' + "9" * 5000 + "}"])
def test_damaged_config_is_shown_and_hides_no_other_run(tmp_path, content):
    make_run(tmp_path / "whole")
    make_run(tmp_path / "broken").config.write_text(content)
    by_id = {run.id: run for run in find_runs(tmp_path).runs}
    assert by_id["whole"].state == "stopped"
    assert by_id["broken"].state == "damaged"
    assert "config.json is damaged" in by_id["broken"].problem


def test_strange_values_in_the_files_do_no_harm(tmp_path):
    run = make_run(tmp_path / "demo", finished=(), stages="ppo", ppo=[1], name=None, num_seeds="x", seed=1e400)
    run.metrics.write_bytes(b'{"stage": "ppo", "iteration": NaN}\n{"iteration": 1e999}\n\xff\xfe\n[1]\n')
    state = find_runs(tmp_path).runs[0]
    assert (state.name, state.stages, state.num_done) == ("demo", (), None)
    assert new_curves(run, Mark()).num_damaged == 4


def test_directory_of_runs_may_be_one_run_be_empty_or_not_be_there(tmp_path):
    assert "there is no directory" in find_runs(tmp_path / "none").problem
    assert find_runs(tmp_path).runs == ()
    make_run(tmp_path / "demo")
    assert [run.id for run in find_runs(tmp_path / "demo").runs] == ["."]
    assert find_run(tmp_path / "demo", ".") is not None


def test_a_run_that_has_not_changed_is_not_read_again(tmp_path, monkeypatch):
    read = []
    said = find._said
    monkeypatch.setattr(find, "_said", lambda root, run, parent: read.append(run.path.name) or said(root, run, parent))
    runs = {name: make_run(tmp_path / name) for name in ("a", "b", "c")}
    known: find.Known = {}
    first = find_runs(tmp_path, known=known, now=time.time()).runs
    assert sorted(read) == ["a", "b", "c"]
    read.clear()
    append(runs["b"].metrics, ppo_row(0))
    runs["c"].stages.write_text(json.dumps({stage: {} for stage in STAGES}))
    by_id = {run.id: run for run in find_runs(tmp_path, known=known).runs}
    assert sorted(read) == ["b", "c"]
    assert (by_id["b"].num_done, by_id["c"].state) == (1, "finished")
    assert next(run for run in first if run.id == "a").stages == by_id["a"].stages
    runs["a"].path.rename(tmp_path.parent / "away")
    assert {run.id for run in find_runs(tmp_path, known=known).runs} == {path.name for path in known} == {"b", "c"}


def test_a_run_with_a_problem_is_read_again_since_only_rights_may_have_changed(tmp_path):
    run, known = make_run(tmp_path / "demo"), {}
    config = run.config.read_text()
    state = os.stat(run.config)
    run.config.write_text("{" + " " * (len(config) - 1))
    os.utime(run.config, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert find_runs(tmp_path, known=known).runs[0].state == "damaged"
    run.config.write_text(config)
    os.utime(run.config, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert find_runs(tmp_path, known=known).runs[0].state == "stopped"


def test_directory_with_other_settings_is_no_study(tmp_path):
    make_run(tmp_path / "group" / "demo")
    (tmp_path / "group" / "settings.json").write_text("{}")
    found = find_runs(tmp_path)
    assert ([run.id for run in found.runs], found.studies) == (["group/demo"], ())


def test_study_runs_while_a_process_holds_it_or_one_of_its_runs(tmp_path):
    directory = make_study(tmp_path / "tune", study(num_done=9))

    def state() -> str:
        (shown,) = find_runs(tmp_path).studies
        return shown.state

    assert state() == "stopped"
    with locked(directory.run("trial-000")):
        assert state() == "running"
        (shown,) = find_runs(tmp_path, now=time.time() + 3600).studies
        assert (shown.state, round(shown.age_seconds / 60)) == ("quiet", 60)
    with locked(RunDir(directory.path)):
        assert state() == "running"
