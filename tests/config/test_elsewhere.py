"""Names of TRL and Stable-Baselines3 are answered with ours."""

import runpy
from functools import reduce
from pathlib import Path

import pytest

import rlhfkit
from rlhfkit.config.elsewhere import ELSEWHERE
from rlhfkit.config.load import load_recipe
from rlhfkit.config.ppo import AdaptiveKLConfig, PpoConfig

ROOT = Path(__file__).parents[2]

BEST_KNOWN = {
    "ppo_epochs": "epochs",
    "num_ppo_epochs": "epochs",
    "mini_batch_size": "minibatch_episodes",
    "per_device_train_batch_size": "minibatch_episodes",
    "init_kl_coef": "kl.coef",
    "kl_coef": "kl.coef",
    "learning_rate": "optim.learning_rate",
    "num_train_epochs": "iterations",
    "total_episodes": "iterations",
    "cliprange": "clip_range",
    "vf_coef": "value.coef",
    "lam": "gae_lambda",
    "response_length": "RolloutConfig.max_response_tokens",
}


@pytest.mark.parametrize(("theirs", "ours"), BEST_KNOWN.items())
def test_a_name_of_theirs_is_answered_with_ours_in_python(theirs, ours):
    with pytest.raises(rlhfkit.ConfigError, match=rf"PPOConfig\.{theirs}: no such setting; .* {ours}\b"):
        rlhfkit.PPOConfig(**{theirs: 1})


@pytest.mark.parametrize("name", ["target_kl", "gamma"])
def test_some_names_are_the_same(name):
    assert getattr(rlhfkit.PPOConfig(**{name: 0.5}), name) == 0.5


@pytest.mark.parametrize(
    ("recipe", "override", "words"),
    [
        ("demo", "ppo.ppo_epochs", "here it is ppo.epochs"),
        ("demo", "ppo.response_length", r"here it is rollout\.max_response_tokens"),
        ("demo", "num_train_epochs", r"here it is sft\.epochs or reward_model\.epochs or ppo\.iterations"),
        ("demo", "sft.per_device_train_batch_size", r"here it is sft\.minibatch_sequences"),
        ("cartpole", "ppo.n_steps", r"here it is ppo\.rollout_steps"),
        ("cartpole", "ppo.batch_size", r"here it is ppo\.minibatch_steps"),
    ],
)
def test_so_it_is_in_a_recipe(recipe, override, words):
    with pytest.raises(rlhfkit.ConfigError, match=words):
        load_recipe(recipe, [f"{override}=1"])


def test_each_of_ours_is_a_setting():
    recipes = [load_recipe("demo").recipe, load_recipe("cartpole").recipe]
    adaptive = recipes[0].model_copy(update={"ppo": PpoConfig(kl=AdaptiveKLConfig())})

    def is_setting(recipe, name):
        try:
            reduce(getattr, name.split("."), recipe)
        except AttributeError:
            return False
        return True

    unknown = [
        ours for names in ELSEWHERE for ours in names.ours if not any(is_setting(r, ours) for r in (*recipes, adaptive))
    ]
    assert unknown == []


def test_the_page_about_trl_has_the_same_table():
    made = runpy.run_path(str(ROOT / "docs" / "make_api.py"))
    text = (ROOT / "docs" / "from_trl.md").read_text()
    assert made["with_names_elsewhere"](text) == text, "run python docs/make_api.py"


@pytest.mark.parametrize(("episodes", "expected"), [(16, 16), (64, 64), (96, 48), (512, 64), (97, 97)])
def test_a_minibatch_that_nobody_set_divides_the_rollout(episodes, expected):
    assert PpoConfig(rollout_episodes=episodes).minibatch_episodes == expected
    recipe = load_recipe("demo", [f"ppo={{rollout_episodes={episodes}}}"]).recipe
    assert recipe.ppo.minibatch_episodes == expected


def test_a_minibatch_of_control_steps_that_nobody_set_divides_the_rollout():
    assert rlhfkit.ControlPPOConfig().minibatch_steps == 256
    assert rlhfkit.ControlPPOConfig(num_envs=3, rollout_steps=50).minibatch_steps == 150


def test_a_rollout_that_is_wrong_is_the_one_fault():
    with pytest.raises(rlhfkit.ConfigError) as caught:
        rlhfkit.PPOConfig(rollout_episodes=0)
    assert str(caught.value) == "PPOConfig.rollout_episodes = 0: expected a number above 0"


PUBLIC = [getattr(rlhfkit, name) for name in rlhfkit.__all__ if name.endswith("Config")]


@pytest.mark.parametrize("section", PUBLIC)
def test_a_section_knows_its_public_name(section):
    assert getattr(rlhfkit, section.public_name()) is section


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: rlhfkit.PPOConfig(optim=1e-5),
            "PPOConfig.optim = 1e-05: expected a dictionary or OptimConfig",
        ),
        (
            lambda: rlhfkit.PPOConfig(kl=2),
            "PPOConfig.kl = 2: expected a dictionary or FixedKLConfig or AdaptiveKLConfig",
        ),
        (lambda: rlhfkit.PPOConfig(whiten_rewards="so"), "PPOConfig.whiten_rewards = 'so': expected True or False"),
        (
            lambda: rlhfkit.PPOConfig(optim={"learning_rate": -1}),
            'PPOConfig.optim.learning_rate = -1: expected a number above 0 or "auto"',
        ),
    ],
)
def test_faults_in_python_name_the_class_and_the_types_of_python(make, words):
    with pytest.raises(rlhfkit.ConfigError) as caught:
        make()
    assert str(caught.value) == words


def test_a_class_that_is_one_kind_needs_no_type():
    assert AdaptiveKLConfig(target=4.0).type == "adaptive"
    assert rlhfkit.PPOConfig(kl=AdaptiveKLConfig(target=4.0)).kl.target == 4.0
    assert rlhfkit.PPOConfig(kl={"type": "adaptive"}).kl.target == 6.0
    assert rlhfkit.PPOConfig(kl={"coef": 0.1}).kl.type == "fixed"
    with pytest.raises(rlhfkit.ConfigError, match=r"reward\.type is required: give one of"):
        load_recipe("demo", ['reward={function="a:b"}'])
