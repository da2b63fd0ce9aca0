"""`parallel.shard = "auto"`: whole weights where they fit into each rank's memory, parted ones else, and kept so."""

import json
from dataclasses import replace

import pytest

from rlhfkit.config.load import load_recipe
from rlhfkit.config.recipe import Recipe
from rlhfkit.distributed.ranks import ranks
from rlhfkit.errors import ModelError
from rlhfkit.formulas.shapes import NAMED
from rlhfkit.pipeline import shard_choice
from rlhfkit.pipeline.build import Given
from rlhfkit.pipeline.shard_choice import by_memory, choose_shard
from rlhfkit.rundir.directory import RunDir
from tests.distributed.together import together
from tests.formulas.test_memory import WORK

GIB = 2**30


@pytest.fixture
def recipe():
    """Of half a billion weights, which take about 12 GiB on each of two ranks."""
    return load_recipe("pairs", ["data.path=PAIRS.jsonl", "model.path=0.5B", "model.dtype=float32"]).recipe


def chosen(work, *, num, gib):
    return by_memory([work], num, on_cpu=False, memory_bytes=gib * GIB)


@pytest.mark.parametrize(
    ("num", "gib", "taken"),
    [
        (8, 400, "none"),  # 2 networks of 16 + 2 bytes a weight, and two of 2 bytes: 280 GiB
        (8, 140, "fsdp"),
        (8, 80, "fsdp"),
        (2, 20, "fsdp"),  # nothing fits, and parted ones need less
    ],
)
def test_weights_are_parted_where_whole_ones_do_not_fit(num, gib, taken):
    assert chosen(WORK, num=num, gib=gib).taken == taken


def test_what_was_chosen_says_why_in_numbers():
    assert chosen(WORK, num=8, gib=400).words().startswith("every process holds all weights: they need about 3")
    words = chosen(WORK, num=8, gib=140).words()
    assert words.startswith("weights, gradients and averages are parted among the processes (FSDP): whole, they need")
    assert "of the 140.0 GiB that each has; parted, about " in words


def test_a_stage_that_only_learns_needs_no_reference_and_no_copy_to_sample():
    """16 bytes for each of 3.1 billion weights are 46 GiB, which leave room in 80; PPO has two such networks."""
    stages = 'stages=["sft"]'
    data = ["data.path=PAIRS.jsonl", "model.path=3B", "sft.max_tokens=512"]
    for overrides, taken in (([*data, stages], "none"), (data, "fsdp")):
        recipe = load_recipe("pairs", overrides).recipe
        works = list(shard_choice._works(recipe, NAMED["3B"], 2))
        assert by_memory(works, 8, on_cpu=False, memory_bytes=80 * GIB).taken == taken


def test_parted_learning_needs_its_share_of_weights_and_averages():
    work = replace(WORK, only_learns=True, critic="none", reward_models=())
    assert chosen(work, num=8, gib=40).taken == "fsdp"


def choose(recipe, directory, *, free, fresh=False):
    """What all of two ranks choose, where `free` says what memory a rank has."""

    def work():
        shard_choice.available_bytes = lambda device, shared_by: free[ranks().rank]
        return choose_shard(recipe, RunDir(directory), fresh=fresh, given=Given())

    first, second = together(2, work, directory.parent)
    assert first == second
    return first


def test_the_rank_with_the_least_memory_decides_for_all(recipe, tmp_path):
    assert choose(recipe, tmp_path / "run", free=[400 * GIB, 400 * GIB]).taken == "none"
    assert choose(recipe, tmp_path / "run", free=[400 * GIB, 8 * GIB]).taken == "fsdp"


def test_a_run_that_goes_on_keeps_what_it_began_with(recipe, tmp_path):
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    run.manifest.write_text(json.dumps({"parallel": {"asked": "auto", "taken": "fsdp"}}))
    kept = choose(recipe, run.path, free=[400 * GIB, 400 * GIB])
    assert (kept.taken, kept.why) == ("fsdp", "the run began with it")
    assert choose(recipe, run.path, free=[400 * GIB, 400 * GIB], fresh=True).taken == "none"


@pytest.mark.parametrize("asked", ["none", "fsdp"])
def test_what_the_recipe_says_is_done(asked, recipe, tmp_path):
    recipe = Recipe(**{**recipe.model_dump(), "parallel": {"shard": asked}})
    assert choose(recipe, tmp_path / "run", free=[8 * GIB, 400 * GIB]).taken == asked


def test_one_process_has_nothing_to_choose(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_choice, "choose_device", pytest.fail)
    assert choose_shard(recipe, RunDir(tmp_path), fresh=False, given=Given()) is None


def test_where_the_model_is_of_unknown_shape_weights_stay_whole(recipe, tmp_path, monkeypatch):
    def unknown(model):
        raise ModelError("config.json has num_experts = 8")

    monkeypatch.setattr(shard_choice, "shape_of_recipe", unknown)
    found = choose(recipe, tmp_path / "run", free=[8 * GIB, 8 * GIB])
    assert found.taken == "none" and "num_experts = 8" in found.why
