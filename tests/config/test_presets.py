"""What a preset sets, what wins over it, and what contradicts it."""

import pytest

from rlhfkit.config.load import load_recipe, with_overrides
from rlhfkit.config.ppo import AdaptiveKLConfig, FixedKLConfig, PpoConfig
from rlhfkit.config.presets import PRESETS, preset_words
from rlhfkit.errors import ConfigError

BY_HAND = {
    "ppo": {},
    "rloo": {"estimator": "rloo", "group_size": 4, "epochs": 1},
    "grpo": {
        "estimator": "grpo",
        "group_size": 8,
        "epochs": 1,
        "loss_aggregation": "sequence",
        "kl": FixedKLConfig(place="loss", coef=0.04),
    },
    "dr_grpo": {
        "estimator": "grpo",
        "group_size": 8,
        "epochs": 1,
        "loss_aggregation": "constant",
        "normalize_std": False,
        "kl": FixedKLConfig(coef=0),
    },
    "dapo": {
        "estimator": "grpo",
        "group_size": 8,
        "clip_range_high": 0.28,
        "resample_rounds": 3,
        "kl": FixedKLConfig(coef=0),
    },
    "gspo": {
        "estimator": "grpo",
        "group_size": 8,
        "ratio": "sequence",
        "clip_range": 3e-4,
        "clip_range_high": 4e-4,
        "loss_aggregation": "sequence",
        "kl": FixedKLConfig(coef=0),
    },
    "cispo": {
        "estimator": "grpo",
        "group_size": 8,
        "objective": "cispo",
        "clip_range": 1.0,
        "clip_range_high": 0.28,
        "kl": FixedKLConfig(coef=0),
    },
    "reinforce++": {"estimator": "reinforce++"},
}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_its_settings(preset):
    config = PpoConfig(preset=preset)
    assert config.model_copy(update={"preset": None}) == PpoConfig(**BY_HAND[preset])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_resolved_recipe_says_the_same_again(preset):
    config = PpoConfig(preset=preset, rollout_episodes=128)
    assert PpoConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("before", [None, "grpo", "dapo", "gspo"])
def test_a_preset_over_a_resolved_recipe_replaces_another_one(before, preset):
    given = PpoConfig(preset=before, rollout_episodes=128, gamma=0.9)
    table = {**load_recipe("demo").recipe.model_dump(mode="json"), "ppo": given.model_dump(mode="json")}
    found = with_overrides(table, [f"ppo.preset={preset}"], name="a run", is_resolved=True).ppo
    assert found == PpoConfig(preset=preset, rollout_episodes=128, gamma=0.9)


def test_what_was_set_by_hand_wins_over_a_preset_over_a_resolved_recipe():
    by_hand = {"group_size": 4, "clip_range": 0.1, "kl": {"coef": 0.3}}
    given = PpoConfig(preset="dapo", **by_hand)
    table = {**load_recipe("demo").recipe.model_dump(mode="json"), "ppo": given.model_dump(mode="json")}
    found = with_overrides(table, ["ppo.preset=grpo", "ppo.epochs=3"], name="a run", is_resolved=True).ppo
    assert found == PpoConfig(preset="grpo", epochs=3, **by_hand)
    table["ppo"]["estimator"], table["ppo"]["preset"] = "rloo", None
    with pytest.raises(ConfigError, match='and not "rloo"; leave estimator out, or set it alike'):
        with_overrides(table, ["ppo.preset=grpo"], name="a run", is_resolved=True)


def test_what_the_recipe_sets_itself_wins():
    overrides = ["ppo.preset=grpo", "ppo.group_size=4", "ppo.kl.coef=0.1", "ppo.loss_aggregation=token"]
    config = load_recipe("demo", overrides).recipe.ppo
    assert (config.group_size, config.loss_aggregation, config.normalize_std) == (4, "token", True)
    assert (config.kl.coef, config.kl.place) == (0.1, "loss")


@pytest.mark.parametrize("kl", [{"coef": 0.1}, FixedKLConfig(coef=0.1)], ids=["table", "section"])
def test_a_setting_of_the_kl_leaves_the_others_to_the_preset(kl):
    config = PpoConfig(preset="grpo", kl=kl)
    assert (config.kl.coef, config.kl.place, config.kl.estimator) == (0.1, "loss", "k2")


@pytest.mark.parametrize("kl", [{"type": "adaptive"}, AdaptiveKLConfig()], ids=["table", "section"])
def test_an_adaptive_kl_has_its_own_coefficient(kl):
    assert PpoConfig(preset="dapo", kl=kl).kl == AdaptiveKLConfig()


def test_a_clip_range_of_the_recipe_replaces_both():
    config = PpoConfig(preset="gspo", clip_range=1e-3)
    assert (config.clip_range, config.clip_range_high) == (1e-3, None)
    config = PpoConfig(preset="dapo", clip_range_high=0.4)
    assert (config.clip_range, config.clip_range_high) == (0.2, 0.4)


def test_the_words_say_what_was_set_and_what_was_changed():
    assert preset_words(PpoConfig()) is None
    words = preset_words(PpoConfig(preset="dapo", group_size=4, kl={"coef": 0.02}))
    assert words == (
        "preset dapo: estimator = grpo, objective = clip, ratio = token, normalize_std = true, clip_range = 0.2, "
        "clip_range_high = 0.28, loss_aggregation = token, resample_rounds = 3; "
        "by the recipe: group_size = 4, kl.coef = 0.02"
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"preset": "grop"}, "preset = 'grop': expected \"ppo\""),
        ({"preset": "grpo", "estimator": "gae"}, 'preset "grpo" is estimator "grpo", and not "gae"; leave estimator'),
        ({"preset": "gspo", "ratio": "token"}, 'preset "gspo" is ratio "sequence"'),
        ({"preset": "ppo", "objective": "cispo"}, 'preset "ppo" is objective "clip"'),
        ({"preset": "cispo", "dual_clip": 3.0}, "dual_clip 3 bounds"),
        ({"preset": "grpo", "group_size": 1}, "set group_size to 2 or more"),
        ({"preset": "grpo", "rollout_episodes": 12}, "group_size 8 does not divide rollout_episodes 12"),
        ({"preset": "grpo", "kl": {"estimator": "k1"}}, 'estimator = "k1" does not hold .* in a loss'),
    ],
)
def test_what_contradicts_a_preset_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        PpoConfig(**settings)


@pytest.mark.parametrize("controller", [FixedKLConfig, AdaptiveKLConfig])
def test_the_estimator_of_the_kl_goes_by_its_place(controller):
    assert controller().estimator == "k1"
    assert controller(place="loss").estimator == "k2"
    assert controller(place="loss", estimator="k3").estimator == "k3"
    with pytest.raises(ConfigError, match=r'estimator = "k1" does not hold .* set "k2" or "k3"'):
        controller(place="loss", estimator="k1")
