"""Every remedy is a setting of the recipe that it is printed for, and changes it."""

import pytest

from rlhfkit.config.load import load_recipe
from rlhfkit.diagnosis import CONTROL_RULES, PPO_RULES, PRETRAIN_RULES, REWARD_MODEL_RULES, SUPERVISED_RULES, Curves
from tests.diagnosis.test_rules import HEALTHY, HEALTHY_CONTROL, line, rows_of

RECIPES = {
    "demo": ("demo", ()),
    "hh": ("hh", ("model.path=some/model",)),
    "classification": ("classification", ("model.path=some/model",)),
    "an adaptive leash": ("demo", ("ppo.kl={type='adaptive'}",)),
    "no leash": ("demo", ("ppo.kl.coef=0",)),
    "a score for a missing EOS": ("demo", ("ppo.missing_eos_score=-1",)),
    "a shared trunk": ("demo", ("ppo.value.network='shared'",)),
    "grpo": ("demo", ("ppo.estimator='grpo'", "ppo.group_size=4")),
    "one epoch, few rows": ("demo", ("ppo.epochs=1", "ppo.target_kl=0.1", "sft.epochs=1", "ppo.iterations=2")),
    "cut sampling": ("demo", ("rollout.top_k=5", "rollout.top_p=0.9", "rollout.temperature=0.05")),
    "bonuses and penalties": ("demo", ("ppo.entropy_coef=0.1", "ppo.length_penalty=1", "ppo.missing_eos_penalty=2")),
    "a clip": ("demo", ("ppo.clip_score=5",)),
    "cartpole": ("cartpole", ()),
    "acrobot with a bonus": ("acrobot", ("ppo.entropy_coef=0.1",)),
}
SCALED = {**HEALTHY, "score/shaped_std": line(1e4, 1e3)}
OF_A_CRITIC = {"critic_useless", "value_loss_growing"}


def remedies_of(recipe):
    """(rule, remedy) of every rule that may speak up in the recipe, on scores of two scales."""
    table = recipe.model_dump(mode="json")
    is_control = "control" in recipe.stages
    rules = CONTROL_RULES if is_control else PPO_RULES
    for curves in (HEALTHY_CONTROL,) if is_control else (HEALTHY, SCALED):
        for rule in rules:
            has_critic = table["ppo"].get("estimator", "gae") == "gae"
            if has_critic or rule.name not in OF_A_CRITIC:
                if not is_control:
                    curves = {**curves, "rollout/temperature": [table["rollout"]["temperature"]] * 40}
                for remedy in rule.remedies(Curves(rows_of(curves)), {**table["ppo"], "recipe": table}):
                    yield rule.name, remedy
    for stage, of_stage in (
        ("pretrain", PRETRAIN_RULES),
        ("sft", SUPERVISED_RULES),
        ("reward_model", REWARD_MODEL_RULES),
    ):
        if stage in recipe.stages:
            for rule in of_stage:
                for remedy in rule.remedies(Curves(), {**table[stage], "name": stage, "recipe": table}):
                    yield rule.name, remedy


def value_of(table, setting):
    for key in setting.split("."):
        table = table[key]
    return table


@pytest.mark.parametrize(("name", "overrides"), RECIPES.values(), ids=RECIPES)
def test_every_remedy_changes_the_recipe_that_it_is_printed_for(name, overrides):
    recipe = load_recipe(name, list(overrides)).recipe
    before, num = recipe.model_dump(mode="json"), 0
    for rule, remedy in remedies_of(recipe):
        changed = load_recipe(name, [*overrides, *remedy.overrides()]).recipe.model_dump(mode="json")
        assert value_of(changed, remedy.setting) != value_of(before, remedy.setting), (rule, remedy)
        if remedy.now is not None:
            now = value_of(before, remedy.setting)
            assert remedy.now in (str(now), f"{now:.3g}" if isinstance(now, int | float) else f'"{now}"'), (
                rule,
                remedy,
            )
        num += 1
    assert num > 5


def test_a_kl_coefficient_is_raised_to_the_scale_of_the_scores():
    rules = {rule.name: rule for rule in PPO_RULES}
    settings = {"kl": {"type": "fixed", "coef": 0.05}, "optim": {"learning_rate": 1e-4}}
    curves = Curves(rows_of(SCALED))
    # The first five of the forty values, on average: 1e4 less two steps of 9000 / 39.
    assert rules["kl_weightless"].remedies(curves, settings)[0].to == f"{0.05 * (1e4 - 2 * 9000 / 39):.3g}"
    assert float(rules["kl_exploding"].remedies(curves, settings)[0].to) > 400
