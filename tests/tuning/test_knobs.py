import pytest

from rlhfkit.config.load import load_recipe
from rlhfkit.config.tune import KnobConfig
from rlhfkit.errors import ConfigError
from rlhfkit.tuning.design import Job, design_of, job_overrides
from rlhfkit.tuning.knobs import kl_budget, settings_of, space_of, usual_params

RATES = (3e-4, 1e-3)


def recipe_of(name="demo", *overrides):
    return load_recipe(name, overrides).recipe


def space(*overrides, name="demo"):
    return {knob.name: knob for knob in space_of(recipe_of(name, *overrides), RATES)}


def test_the_space_of_a_language_model():
    found = space()
    assert found.keys() == {
        "ppo.optim.learning_rate", "ppo.epochs", "minibatches", "ppo.kl.coef", "value_rate_ratio", "ppo.gae_lambda",
    }  # fmt: skip
    rate = found["ppo.optim.learning_rate"]
    assert (rate.where.low, rate.where.high, rate.where.log, rate.default) == (3e-5, 3e-3, True, 3e-4)
    assert found["value_rate_ratio"].default == pytest.approx(1e-3 / 3e-4)
    assert found["minibatches"].default == 2


def test_rates_are_searched_around_what_fits_the_model_not_around_what_the_recipe_says():
    assert space("ppo.optim.learning_rate=3e-6")["ppo.optim.learning_rate"].where.low == 3e-5


def test_what_is_steered_to_a_target_is_searched_by_its_target():
    found = space("ppo.kl.type=adaptive", "ppo.kl.target=8", "ppo.kl.horizon_episodes=1000")
    assert (found["ppo.kl.target"].where.low, found["ppo.kl.target"].where.high) == (2.0, 8.0)
    assert "ppo.kl.coef" not in found


def test_critic_knobs_go_with_the_critic():
    shared = space("ppo.value.network=shared")
    assert "value_rate_ratio" not in shared and "ppo.gae_lambda" in shared
    without = space("ppo.estimator=rloo", "ppo.group_size=4")
    assert not {"value_rate_ratio", "ppo.gae_lambda"} & without.keys()


def test_the_space_of_a_control_task():
    found = space(name="cartpole")
    assert found["rollout_steps"].default == 32 * 32 and found["network.activation"].default == "tanh"
    assert found["one_minus_gamma"].where == KnobConfig(low=1e-4, high=0.03, log=True)


def test_a_recipe_narrows_and_extends_the_space():
    found = space('tune.space={"ppo.epochs"="fixed", "ppo.clip_range"={low=0.1, high=0.3}}')
    assert "ppo.epochs" not in found and found["ppo.clip_range"].default == 0.2


@pytest.mark.parametrize(
    ("knob", "words"),
    [
        ('"sft.epochs"={choices=[1, 2]}', "sft.epochs cannot be searched; expected a setting of ppo or rollout"),
        ('"ppo.iterations"={choices=[10, 20]}', "ppo.iterations cannot be searched: it decides what a trial costs"),
        ('"ppo.clip_range"={low=0.5, high=3.0}', "ppo.clip_range = 3.0"),
        ('"ppo.nonsense"={low=0.5, high=3.0}', "ppo.nonsense"),
        ('"ppo.clip_range"="fixed"', "takes out what is not searched"),
        ('"ppo.epochs"={low=3, high=1}', "low 3 is not below high 1"),
        ('"ppo.epochs"={low=0, high=4, log=true}', "low 0 has no logarithm"),
        ('"ppo.epochs"={choices=[2, 2]}', "expected two or more different ones"),
        ('"ppo.epochs"={choices=[2, 4], low=1}', "stand alone"),
        ('"ppo.epochs"={low=1}', "expected low and high, or choices"),
        ('"ppo.optim.learning_rate"="fixed"', "value_rate_ratio goes with ppo.optim.learning_rate"),
    ],
)
def test_faults_of_a_space_are_told(knob, words):
    with pytest.raises(ConfigError, match=None) as caught:
        space(f"tune.space={{{knob}}}")
    assert words in str(caught.value)


def test_settings_of_values():
    recipe = recipe_of("demo", "ppo.rollout_episodes=96", "ppo.minibatch_episodes=48")
    params = {"ppo.optim.learning_rate": 1e-4, "value_rate_ratio": 3.0, "minibatches": 4, "ppo.epochs": 2}
    assert settings_of(params, recipe) == {
        "ppo.optim.learning_rate": 1e-4,
        "ppo.epochs": 2,
        "ppo.minibatch_episodes": 24,
        "ppo.value.optim.learning_rate": 3e-4,
    }
    assert settings_of({"minibatches": 5}, recipe) == {"ppo.minibatch_episodes": 24}  # 5 does not divide 96, 4 does


def test_minibatches_divide_the_rollout_that_is_searched_beside_them():
    settings = settings_of({"minibatches": 4, "rollout_steps": 512}, recipe_of("cartpole"))
    assert settings == {"ppo.rollout_steps": 16, "ppo.minibatch_steps": 128}
    assert settings_of({"one_minus_gamma": 0.02}, recipe_of("cartpole")) == {"ppo.gamma": 0.98}


@pytest.mark.parametrize(
    ("overrides", "budget"),
    [
        ([], 10.0),
        (["tune.kl=4"], 4.0),
        (["ppo.kl.type=adaptive", "ppo.kl.target=7", "ppo.kl.horizon_episodes=999"], 7.0),
    ],
)
def test_kl_budget(overrides, budget):
    assert kl_budget(recipe_of("demo", *overrides)) == budget


def test_a_control_task_has_no_kl_budget():
    assert kl_budget(recipe_of("cartpole")) is None
    with pytest.raises(ConfigError, match=r"tune.kl = 3: the control task cartpole has no reference"):
        design_of(recipe_of("cartpole", "tune.kl=3"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [(['stages=["pretrain", "sft"]'], 'has no stage "ppo"'), (["rounds=2"], "goes in 2 rounds; search with rounds=1")],
)
def test_recipes_that_cannot_be_searched(overrides, words):
    with pytest.raises(ConfigError, match=words):
        design_of(recipe_of("demo", *overrides))


def test_the_default_keeps_all_that_the_recipe_says():
    plan = design_of(recipe_of("demo", "ppo.optim.learning_rate=auto"))
    changed = job_overrides(plan, Job(0, 0, "search", plan.default_params))
    assert not [each for each in changed if "learning_rate" in each or "=stop" in each]
    other = job_overrides(plan, Job(1, 1, "search", plan.default_params))
    assert "ppo.optim.learning_rate=0.0003" in other and "ppo.watch.kl_exploding=stop" in other


def test_what_a_trial_is_made_of_is_a_recipe():
    plan = design_of(recipe_of("demo", "tune.kl=5"))
    for purpose in ("search", "confirmation", "test"):
        recipe = recipe_of("demo", *job_overrides(plan, Job(3, 7, purpose, plan.default_params)))
        assert recipe.seed == 7 and recipe.evaluation.seed == 0
        assert ("evaluate" in recipe.stages) == (purpose == "test")
        assert recipe.ppo.watch.best_max_ref_kl == 5 and recipe.ppo.max_ref_kl == 7.5
    control = design_of(recipe_of("cartpole"))
    assert recipe_of("cartpole", *job_overrides(control, Job(3, 7, "search", control.default_params))).num_seeds == 1


def test_the_second_trial_has_the_usual_settings_whatever_the_recipe_says():
    spoilt = ["ppo.optim.learning_rate=3e-6", "ppo.kl.coef=1.0", "ppo.epochs=1", "ppo.gae_lambda=0.5"]
    found = design_of(recipe_of("demo", *spoilt)).usual_params
    assert found == {
        "ppo.optim.learning_rate": 3e-4,
        "ppo.epochs": 4,
        "minibatches": 1,
        "ppo.kl.coef": 0.05,
        "value_rate_ratio": pytest.approx(10 / 3),
        "ppo.gae_lambda": 0.95,
    }


def test_usual_settings_lie_within_the_space():
    recipe = recipe_of("demo", "tune.space={'ppo.kl.coef'={low=0.1,high=0.2},'ppo.epochs'={choices=[1,3,9]}}")
    knobs = space_of(recipe, RATES)
    found = usual_params(knobs, recipe, RATES)
    assert (found["ppo.kl.coef"], found["ppo.epochs"]) == (0.1, 3)
    control = recipe_of("cartpole")
    found = usual_params(space_of(control, RATES), control, RATES)
    assert found["ppo.epochs"] in (5, 10) and found["network.activation"] == "tanh"


def test_a_recipe_of_usual_settings_has_no_such_trial():
    recipe = recipe_of("demo", "ppo.minibatch_episodes=64", "ppo.kl.coef=0.05", "ppo.value.optim.learning_rate=auto")
    assert design_of(recipe).usual_params is None
