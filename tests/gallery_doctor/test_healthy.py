"""A gallery of broken set-ups, each of which doctor names rightly, and of healthy ones, in which it names nothing.

The model is tiny, and has learnt to write the grammar's reviews, so that it is no stranger to its own texts.
: healthy."""

import pytest

from tests.gallery_doctor.desk import WORLD, named


@pytest.mark.thorough
def test_a_healthy_recipe_of_all_stages_is_not_accused(examine):
    found = examine()
    assert named(found) == {}
    assert found["model.temperature"].verdict == found["model.padding"].verdict == "ok"
    assert found["reward.length"].verdict == "ok"


@pytest.mark.thorough
def test_a_healthy_recipe_of_chats_is_not_accused(examine):
    found = examine("chat.toml")
    assert named(found) == {}
    assert found["model.template"].verdict == "ok"


@pytest.mark.thorough
def test_a_healthy_recipe_with_preferences_and_temperature_is_not_accused(examine):
    found = examine(
        "reviews.toml",
        "data.preferences.path=preferences.jsonl",
        "data.test_preferences.path=test_preferences.jsonl",
        'stages=["sft", "reward_model", "ppo", "evaluate"]',
        "rollout.temperature=0.7",
        "rollout.top_p=0.9",
    )
    assert named(found) == {}
    assert found["reward.accuracy"].verdict == "ok"


@pytest.mark.thorough
def test_a_healthy_environment_is_not_accused(examine):
    found = examine(WORLD.format(world="Healthy"))
    assert named(found) == {}
    assert found["environment.episodes"].verdict == "ok"


@pytest.mark.thorough
@pytest.mark.parametrize("recipe", ["demo", "guess", "cartpole"])
def test_healthy_shipped_recipes_are_not_accused(examine, recipe):
    assert named(examine(recipe)) == {}


@pytest.mark.thorough
def test_a_finished_run_is_looked_at_where_it_stands(examine, desk):
    found = examine("pretrain.toml", run_dir=desk / "run")
    assert named(found) == {}
    assert "pretrain" in found["recipe.run_directory"].seen
    assert found["model.likelihood"].verdict == "ok"
