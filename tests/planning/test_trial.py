"""A short trial takes the place of assumptions."""

import os

import pytest

from rlhfkit.config.load import load_recipe
from rlhfkit.errors import RlhfkitError
from rlhfkit.planning import lines_of, plan
from rlhfkit.planning.trial import _part_of_rank, threads_of_rank
from tests.doctor.test_rehearsal import RECIPE


def test_a_rank_has_its_share_of_the_rows():
    recipe = load_recipe("demo").recipe
    part = _part_of_rank(recipe, 2)
    assert (part.ppo.rollout_episodes, part.ppo.minibatch_episodes) == (
        recipe.ppo.rollout_episodes // 2,
        recipe.ppo.minibatch_episodes // 2,
    )
    assert part.stages[-1] == "ppo"


def test_threads_are_shared_out_unless_they_are_set(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_of_rank(2) == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    cores = len(os.sched_getaffinity(0))
    assert threads_of_rank(1) == cores
    assert threads_of_rank(2 * cores) == 1


@pytest.mark.parametrize(
    "processes", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.thorough)]
)
def test_what_a_trial_took_is_in_the_plan(processes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE, encoding="utf-8")
    found = plan(str(file), processes=processes, measure=True)
    assert found.measured is not None
    assert found.laid.seconds.sampling == pytest.approx(found.measured.sampling_seconds)
    assert found.laid.seconds.other == pytest.approx(found.measured.other_seconds)
    assert (found.laid.seconds.exchange > 0) == (processes == 2)
    assert 1 <= found.work.prompt_tokens <= 40
    text = "\n".join(lines_of(found))
    assert "by a trial" in text
    assert "training_share" not in text
    assert list(tmp_path.iterdir()) == [file]  # nothing is left behind


@pytest.mark.thorough
def test_a_recipe_that_cannot_be_tried_says_why(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "recipe.toml"
    there = 'prompts = { type = "grammar", num_rows = 60, seed_offset = 2 }'
    assert there in RECIPE
    file.write_text(RECIPE.replace(there, 'prompts = { path = "x.jsonl" }'), encoding="utf-8")
    with pytest.raises(RlhfkitError, match=r"x\.jsonl"):
        plan(str(file), measure=True)
    assert list(tmp_path.iterdir()) == [file]
