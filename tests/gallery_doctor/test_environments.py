"""A gallery of broken set-ups, each of which doctor names rightly, and of healthy ones, in which it names nothing.

The model is tiny, and has learnt to write the grammar's reviews, so that it is no stranger to its own texts.
: environments."""

import pytest
from gymnasium.envs.registration import register, registry

from tests.gallery_doctor.desk import (
    CONTROL,
    WORLD,
    named,
)


@pytest.mark.parametrize(
    ("world", "name", "verdict", "words"),
    [
        ("IgnoresItsSeed", "environment.episodes", "warning", "the environment ignores its seed"),
        ("Unseeded", "environment.contract", "fault", "gave another episode"),
        ("Endless", "environment.contract", "fault", "the reward of a step is None"),
    ],
)
def test_a_broken_text_environment_is_named(examine, world, name, verdict, words):
    found = examine(WORLD.format(world=world))
    assert named(found) == {name: verdict}
    assert words in found[name].seen


@pytest.fixture
def control_envs():
    """Environments of Gymnasium's kind, registered for one test."""
    names = ("Healthy", "IgnoresItsSeed", "Unseeded", "Huge")
    for name in names:
        register(f"Gallery{name}-v0", entry_point=f"tests.gallery_envs:{name}", max_episode_steps=20)
    yield
    for name in names:
        del registry[f"Gallery{name}-v0"]


@pytest.mark.parametrize(
    ("env", "expected", "words"),
    [
        ("Healthy", {}, "8 seeds, different episodes"),
        ("IgnoresItsSeed", {"environment.episodes": "warning"}, "the environment ignores its seed"),
        ("Unseeded", {"environment.contract": "fault"}, "gave another episode the second time"),
        ("Huge", {"environment.scale": "warning"}, "which networks read badly"),
    ],
)
def test_a_control_environment_is_judged(examine, control_envs, env, expected, words):
    found = examine(CONTROL.format(id=f"Gallery{env}-v0"))
    assert named(found) == expected
    name = next(iter(expected), "environment.episodes")
    assert words in found[name].seen


def test_a_run_of_other_settings_is_named(examine, desk):
    found = examine("pretrain.toml", "model.width=64", run_dir=desk / "run")
    assert named(found) == {"recipe.run_directory": "warning"}
    assert "model.width was 48, is now 64" in found["recipe.run_directory"].seen
    assert found["model.weights"].verdict == "skipped"  # those of the other run are not these


def test_a_directory_that_is_no_run_is_named(examine, desk):
    found = examine(run_dir=desk)
    assert named(found) == {"recipe.run_directory": "fault"}


def test_nothing_is_written(examine, tmp_path):
    examine()
    assert not (tmp_path / "run").exists()
