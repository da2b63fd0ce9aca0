"""verl's configuration as a recipe: its defaults, what is not understood, and there and back."""

import tomllib
from functools import reduce

import pytest

from rlhfkit import ConfigError, import_from
from rlhfkit.config.load import load_recipe
from rlhfkit.config.recipe import Recipe
from rlhfkit.handover.export import export_to

SAME = (
    "name", "seed", "data.max_prompt_tokens",
    "rollout.max_response_tokens", "rollout.temperature", "rollout.top_k", "rollout.top_p", "rollout.engine",
    "ppo.iterations", "ppo.rollout_episodes", "ppo.group_size", "ppo.minibatch_episodes", "ppo.epochs",
    "ppo.microbatch_tokens", "ppo.clip_range", "ppo.dual_clip", "ppo.estimator", "ppo.normalize_std", "ppo.objective",
    "ppo.ratio", "ppo.clip_range_high", "ppo.loss_aggregation", "ppo.loss_tokens", "ppo.gamma", "ppo.gae_lambda",
    "ppo.entropy_coef", "ppo.kl", "ppo.optim", "ppo.value.optim", "ppo.value.clip_range", "ppo.value.warmup_iterations",
    "ppo.clip_score", "ppo.missing_eos_score", "ppo.missing_eos_penalty", "ppo.length_penalty",
    "ppo.length_penalty_tokens", "ppo.brevity_penalty", "ppo.brevity_penalty_tokens", "model.lora", "reward.type",
)  # fmt: skip
"""Settings that come back as they went."""
ADAPTIVE = "ppo.kl={type='adaptive', coef=0.1, target=6.0, horizon_episodes=2000}"


def recipe_of(made):
    return Recipe.model_validate(tomllib.loads(made.text))


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        (ADAPTIVE, "ppo.dual_clip=3", "ppo.value.clip_range=0", "ppo.value.warmup_iterations=0"),
        ("model.lora={rank=4, alpha=8}", "ppo.kl.coef=0", "rollout={max_response_tokens=40, engine='vllm'}"),
        ("ppo.estimator=rloo", "ppo.missing_eos_score=-1", "ppo.gamma=1", "ppo.kl.coef=0.03", "ppo.value={}"),
        ("ppo.missing_eos_penalty=2", "ppo.length_penalty=0.01", "ppo.length_penalty_tokens=20", "ppo.clip_score=2.5"),
        ("ppo.brevity_penalty=0.1", "ppo.brevity_penalty_tokens=4", "seed=7"),
        ("ppo={preset='dapo', resample_rounds=0, optim={learning_rate=1e-6, schedule='constant'}}",),
        ("ppo={preset='dr_grpo', optim={learning_rate=1e-6, schedule='constant'}, loss_tokens=30}",),
        ("ppo={preset='gspo', optim={learning_rate=1e-6, schedule='constant'}}",),
        ("ppo={preset='cispo', optim={learning_rate=1e-6, schedule='constant'}}",),
        ("ppo={preset='grpo', optim={learning_rate=1e-6, schedule='constant'}, kl={coef=0.03}}",),
        ("ppo.estimator='reinforce++'", "ppo.value={}", "ppo.clip_range_high=0.3"),
    ],
    ids=str,
)
def test_there_and_back(overrides, run, tmp_path):
    went = load_recipe(run / "recipe.toml", overrides).recipe
    export_to("verl", run, overrides, directory=tmp_path, gpus=2, response_tokens=24)
    came = recipe_of(import_from("verl", tmp_path / "ppo.yaml", response_tokens=24))

    def of(recipe, name):
        found = reduce(lambda section, key: getattr(section, key), name.split("."), recipe)
        plain = found.model_dump() if hasattr(found, "model_dump") else found
        if name.endswith("optim"):
            plain["adam_eps"] = 1e-5 if plain["adam_eps"] == "auto" else plain["adam_eps"]
        return pytest.approx(plain) if isinstance(plain, float) else plain

    names = [name for name in SAME if went.ppo.estimator == "gae" or not name.startswith(("ppo.value", "ppo.gae"))]
    expected = {name: of(went, name) for name in names}
    found = {name: of(came, name) for name in names}
    if went.ppo.kl.type == "adaptive":
        assert found["ppo.kl"].pop("target") == pytest.approx(expected["ppo.kl"].pop("target"))
    if went.model.lora is not None:  # names of modules come back as a list
        assert found["model.lora"].pop("targets") is not None
        expected["model.lora"].pop("targets")
    assert {name: value for name, value in found.items() if value != expected[name]} == {}


def test_a_function_comes_back(run, tmp_path):
    reward = "reward={type='function', function='rlhfkit.rewards.examples:variety'}"
    export_to("verl", run, [reward], directory=tmp_path, gpus=2)
    assert recipe_of(import_from("verl", tmp_path / "ppo.yaml")).reward.function == "rlhfkit.rewards.examples:variety"


def test_what_an_export_changes_for_verl_alone_is_listed_when_it_comes_back(run, tmp_path):
    export_to("verl", run, directory=tmp_path, gpus=2)
    made = import_from("verl", tmp_path / "ppo.yaml")
    assert [line.partition(" = ")[0] for line in made.not_understood] == [
        "actor_rollout_ref.model.custom_chat_template",
        "critic.model.path",
        "data.shuffle",
    ]
    assert f'path = "{tmp_path.resolve()}/policy"  # actor_rollout_ref.model.path' in made.text


def test_what_is_not_said_is_as_verl_has_it():
    """Numbers of verl's own configuration, which are not the defaults here."""
    ppo = recipe_of(import_from("verl", {"algorithm": {"adv_estimator": "gae"}})).ppo
    assert (ppo.gamma, ppo.gae_lambda, ppo.kl.coef, ppo.dual_clip) == (1.0, 1.0, 0.0, 3.0)
    assert (ppo.rollout_episodes, ppo.minibatch_episodes, ppo.epochs) == (1024, 256, 1)
    assert (ppo.clip_range, ppo.value.clip_range, ppo.value.warmup_iterations) == (0.2, 0.5, 0)
    assert (ppo.optim.learning_rate, ppo.optim.weight_decay, ppo.optim.adam_eps) == (1e-6, 0.01, 1e-8)
    assert (ppo.value.optim.learning_rate, ppo.optim.schedule) == (1e-5, "constant")


def test_the_text_says_where_each_number_comes_from():
    text = import_from("verl", {"algorithm": {"gamma": 0.9}}).text
    assert "gamma = 0.9  # algorithm.gamma\n" in text
    assert "gae_lambda = 1.0  # verl's default of algorithm.lam\n" in text


@pytest.mark.parametrize(
    ("config", "ours", "expected"),
    [
        ({"data.train_batch_size": 32, "actor_rollout_ref.rollout.n": 4}, "ppo.rollout_episodes", 128),
        ({"data": {"train_batch_size": 8}, "actor_rollout_ref.actor.ppo_mini_batch_size": 64},
         "ppo.minibatch_episodes", 8),
        ({"actor_rollout_ref.actor.optim.lr": "1e-6"}, "ppo.optim.learning_rate", 1e-6),
        ({"actor_rollout_ref.actor.optim.lr": "${critic.optim.lr}", "critic.optim.lr": 3e-6},
         "ppo.optim.learning_rate", 3e-6),
        ({"actor_rollout_ref.actor.clip_ratio": 0.3, "actor_rollout_ref.actor.clip_ratio_low": None,
          "actor_rollout_ref.actor.clip_ratio_high": None}, "ppo.clip_range", 0.3),
        # It goes by the two others, whose default is 0.2.
        ({"actor_rollout_ref.actor.clip_ratio": 0.3}, "ppo.clip_range", 0.2),
        ({"actor_rollout_ref.actor.clip_ratio_c": 1e9}, "ppo.dual_clip", None),
        ({"critic.cliprange_value": 1e9}, "ppo.value.clip_range", 0.0),
        # Iterations are counted from 1 there, and the policy learns from number N on.
        ({"trainer.critic_warmup": 5}, "ppo.value.warmup_iterations", 4),
        ({"trainer.total_training_steps": 200, "actor_rollout_ref.actor.optim.lr_warmup_steps": 20},
         "ppo.optim.warmup_share", 0.1),
        ({"actor_rollout_ref.rollout.top_k": 20}, "rollout.top_k", 20),
        ({"actor_rollout_ref.rollout.top_k": -1}, "rollout.top_k", 0),
        ({"reward_model": {"enable": True, "model": {"path": "a/b"}}}, "reward.path", "a/b"),
        ({"reward.reward_model": {"enable": True, "model_path": "a/b"}}, "reward.path", "a/b"),
        ({"actor_rollout_ref.actor.clip_ratio_high": 0.28}, "ppo.clip_range_high", 0.28),
        ({"actor_rollout_ref.actor.policy_loss.loss_mode": "gspo"}, "ppo.ratio", "sequence"),
        ({"actor_rollout_ref.actor.policy_loss.loss_mode": "gspo"}, "ppo.dual_clip", None),
        ({"actor_rollout_ref.actor.policy_loss.loss_mode": "cispo",
          "actor_rollout_ref.actor.clip_ratio_low": 10}, "ppo.clip_range", 1.0),
        ({"actor_rollout_ref.actor.loss_agg_mode": "seq-mean-token-sum-norm",
          "actor_rollout_ref.actor.loss_scale_factor": 700}, "ppo.loss_tokens", 700),
        ({"actor_rollout_ref.actor.use_kl_loss": True, "actor_rollout_ref.actor.kl_loss_coef": 0.01},
         "ppo.kl.coef", 0.01),
        ({"algorithm.adv_estimator": "reinforce_plus_plus"}, "ppo.estimator", "reinforce++"),
        ({"data.prompt_key": "question"}, "data.prompts.columns", {"prompt": "question"}),
    ],
    ids=str,
)  # fmt: skip
def test_units(config, ours, expected):
    recipe = recipe_of(import_from("verl", config))
    assert reduce(getattr, ours.split("."), recipe) == expected


def test_an_adaptive_target_is_multiplied_by_the_length():
    config = {"algorithm": {"use_kl_in_reward": True, "kl_ctrl": {"type": "adaptive", "target_kl": 0.05}}}
    known = import_from("verl", config, response_tokens=80)
    assert recipe_of(known).ppo.kl.target == pytest.approx(4.0)
    guessed = import_from("verl", config)
    assert recipe_of(guessed).ppo.kl.target == pytest.approx(0.05 * 512)
    assert any("as the mean length is not known (--response-tokens N)" in line for line in guessed.not_understood)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"algorithm.use_pf_ppo": True}, "algorithm.use_pf_ppo = true: nothing here says this"),
        ({"algorithm.gamna": 1.0}, "algorithm.gamna = 1.0: nothing here says this"),
        ({"actor_rollout_ref.actor.use_kl_loss": True}, "its gradient is not that of the KL; k2, whose is, was taken"),
        ({"actor_rollout_ref.actor.use_kl_loss": True, "algorithm.use_kl_in_reward": True}, "and not in both"),
        ({"actor_rollout_ref.actor.loss_agg_mode": "seq-mean-token-sum"}, "the loss is one of token-mean, seq-mean"),
        ({"actor_rollout_ref.actor.policy_loss.loss_mode": "sapo"}, 'that of "vanilla", "gspo" or "cispo" here'),
        ({"critic.ppo_epochs": 4}, "critic.ppo_epochs = 4: the critic learns from the same"),
        ({"critic.loss_agg_mode": "seq-mean-token-mean"}, "its loss is a mean over tokens here"),
        ({"data.shuffle": False}, "prompts are always drawn at random here"),
        ({"algorithm.use_kl_in_reward": True, "algorithm.kl_penalty": "low_var_kl"}, "it is k1 here"),
        ({"critic.optim": {"lr_scheduler_type": "cosine", "min_lr_ratio": 0.1}}, "a cosine ends with 0 here"),
        ({"algorithm.lam": "${oc.select:some.thing}"}, "it is made of others"),
        ({"trainer.total_epochs": 3}, "trainer.total_epochs = 3: iterations are counted here"),
    ],
    ids=str,
)
def test_what_is_not_understood_is_listed(config, words):
    made = import_from("verl", {"data.train_batch_size": 8, **config})
    assert any(words in line for line in made.not_understood), made.not_understood


def test_what_is_about_machines_is_not_listed_one_by_one():
    made = import_from("verl", {"data.train_batch_size": 8, "trainer.nnodes": 2, "trainer.logger": ["console"]})
    assert made.left_out == ("trainer.nnodes", "trainer.logger")
    assert not any("nnodes" in line for line in made.not_understood)
    assert made.summary()[-1] == "left out (2), as they are about machines, memory, logs and files"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: a\n", "is no configuration of verl"),
        ("- 1\n- 2\n", "holds no settings"),
        ("a: [1\n", "is no YAML"),
        ("algorithm: {adv_estimator: remax}\n", "is none of gae, rloo, grpo, reinforce_plus_plus"),
    ],
)
def test_what_is_no_such_configuration(text, words, tmp_path):
    (tmp_path / "ppo.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        import_from("verl", tmp_path / "ppo.yaml")


def test_a_file_that_is_not_there_and_another_tool(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read: No such file"):
        import_from("verl", tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="choose verl"):
        import_from("trl", tmp_path / "none.yaml")


def test_yaml_runs_nothing(tmp_path):
    (tmp_path / "ppo.yaml").write_text("data: !!python/object/apply:os.system ['touch here']\n")
    with pytest.raises(ConfigError, match="is no YAML"):
        import_from("verl", tmp_path / "ppo.yaml")
