"""The recipe's sections: documented, with defaults that hold, and checked against each other."""

import importlib
import inspect
import pkgutil
import typing
from functools import partial

import pytest
from pydantic import ValidationError

from rlhfkit import config
from rlhfkit.config.data import DataConfig, RowsConfig
from rlhfkit.config.model import ScratchModelConfig
from rlhfkit.config.ppo import AdaptiveKLConfig, FixedKLConfig, PpoConfig
from rlhfkit.config.recipe import Recipe
from rlhfkit.config.section import Section, may_change
from rlhfkit.config.stages import STAGE_SPECS, Stage, readers_of_section, readers_of_table
from rlhfkit.config.tune import KnobConfig
from rlhfkit.errors import ConfigError

MODULES = [importlib.import_module(f"rlhfkit.config.{module.name}") for module in pkgutil.iter_modules(config.__path__)]
SECTIONS = [
    section
    for module in MODULES
    for _, section in inspect.getmembers(module, inspect.isclass)
    if issubclass(section, Section) and section is not Section and section.__module__ == module.__name__
]

ROWS = {"path": "rows.jsonl"}


def recipe(**changes):
    """A recipe with all stages on a pre-trained model, and `changes`."""
    data = ["demonstrations", "prompts", "test_prompts", "preferences", "judge_preferences"]
    sections = {
        "name": "example",
        "stages": ["sft", "reward_model", "judge", "ppo", "evaluate"],
        "model": {"path": "some/model"},
        "data": dict.fromkeys(data, ROWS),
    }
    return Recipe.model_validate(sections | changes)


def fault(**changes):
    with pytest.raises(ValidationError) as caught:
        recipe(**changes)
    return str(caught.value)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_has_help(section):
    assert section.__doc__
    silent = [name for name, field in section.model_fields.items() if not field.description]
    assert silent == []


@pytest.mark.parametrize("section", [section for section in SECTIONS if section is not KnobConfig])  # of two forms
def test_defaults_satisfy_their_own_checks(section):
    required = {name for name, field in section.model_fields.items() if field.is_required()}
    examples = {"type": typing.get_args(section.model_fields["type"].annotation)[0]} if "type" in required else {}
    if required <= examples.keys():
        default = section.model_validate(examples)
        assert section.model_validate(default.model_dump()) == default


def test_a_plain_recipe_is_valid_and_keeps_its_defaults():
    assert Recipe.model_validate(recipe().model_dump()) == recipe()
    assert recipe().ppo == PpoConfig()
    assert recipe().seed == 0


def test_values_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        recipe().seed = 1


def test_a_tilde_is_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert recipe(model={"path": "~/models/mine"}).model.path == "/home/ada/models/mine"
    assert recipe(model={"path": "owner/name"}).model.path == "owner/name"


def test_unknown_settings_are_refused():
    assert "Extra inputs" in fault(colour="red")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(value):
    with pytest.raises(ConfigError, match="finite"):
        PpoConfig(missing_eos_score=value)


def test_minibatch_must_divide_the_rollout():
    with pytest.raises(ConfigError, match="minibatch_episodes 48 does not divide rollout_episodes 64"):
        PpoConfig(minibatch_episodes=48)


def test_groups_must_divide_the_rollout():
    with pytest.raises(ConfigError, match="group_size 3 does not divide rollout_episodes 64"):
        PpoConfig(estimator="rloo", group_size=3)


@pytest.mark.parametrize("kind", ["k2", "k3"])
@pytest.mark.parametrize("controller", [FixedKLConfig, partial(AdaptiveKLConfig, type="adaptive")])
def test_only_k1_may_stand_in_the_reward(controller, kind):
    assert controller(estimator="k1").estimator == "k1"
    with pytest.raises(ConfigError, match=rf'estimator = "{kind}" does not hold the policy .*; leave it out'):
        controller(estimator=kind)


def test_critic_free_estimators_need_groups():
    with pytest.raises(ConfigError, match="set group_size to 2 or more"):
        PpoConfig(estimator="grpo")


def test_rewards_of_tokens_are_not_whitened_where_whole_responses_are_compared():
    with pytest.raises(ConfigError, match="leave whiten_rewards out"):
        PpoConfig(estimator="grpo", group_size=4, whiten_rewards=True)


def test_heads_must_divide_the_width_evenly():
    with pytest.raises(ConfigError, match="width 36 is not a multiple of 2 x num_heads = 8"):
        ScratchModelConfig(type="scratch", width=36, num_heads=4)


def test_stages_come_once_and_in_order():
    assert "not in order" in fault(stages=["ppo", "sft"])
    assert "names one twice" in fault(stages=["sft", "sft"])
    assert "at least 1" in fault(stages=[])


def test_a_model_from_scratch_needs_pretraining_and_the_other_way_round():
    texts = {"data": {"texts": ROWS, "demonstrations": ROWS}}
    assert "belong together" in fault(stages=["sft"], model={"type": "scratch"})
    assert "belong together" in fault(stages=["pretrain", "sft"], **texts)
    assert recipe(stages=["pretrain", "sft"], model={"type": "scratch"}, **texts)


@pytest.mark.parametrize(
    ("stage", "field"),
    [
        ("sft", "demonstrations"),
        ("preferences", "prompts"),
        ("reward_model", "preferences"),
        ("judge", "judge_preferences"),
        ("ppo", "prompts"),
        ("evaluate", "test_prompts"),
    ],
)
def test_a_stage_needs_its_data(stage, field):
    assert f'the stage "{stage}" reads data.{field}, which is not set' in fault(stages=[stage], data={})


def test_pairs_that_the_run_collects_need_no_file():
    assert recipe(stages=["preferences", "reward_model"], data={"prompts": ROWS})


def test_ppo_needs_a_reward_model_or_another_reward():
    assert 'add the stage "reward_model" or set reward.path' in fault(stages=["ppo"])
    own = {"type": "mix", "parts": [{"source": {"type": "reward_model"}}]}
    assert 'the stage "reward_model" or set reward.parts[0].source.path' in fault(stages=["ppo"], reward=own)
    assert recipe(stages=["ppo"], reward={"type": "function", "function": "rewards:length"})
    assert recipe(stages=["ppo"], reward={"type": "reward_model", "path": "some/model"})


def test_evaluation_needs_a_judge():
    reward, lexicon = {"type": "grammar"}, {"type": "lexicon", "path": "words.txt"}
    stages = ["ppo", "evaluate"]
    assert 'add the stage "judge" or set evaluation.judge' in fault(stages=stages, reward=reward)
    assert recipe(stages=stages, reward=reward, evaluation={"judge": lexicon})
    own = {"judge": {"type": "reward_model"}}
    message = fault(stages=stages, reward=reward, evaluation=own)
    assert 'add the stage "reward_model" or set evaluation.judge.path' in message


@pytest.mark.parametrize("metric", ["classification", "translation"])
def test_where_the_rows_give_the_right_responses_no_judge_is_needed(metric):
    assert recipe(stages=["ppo", "evaluate"], reward={"type": "match"}, evaluation={"metric": metric})
    assert "set evaluation.judge" in fault(stages=["ppo", "evaluate"], reward={"type": "match"})


def test_evaluation_needs_a_policy_to_evaluate():
    assert 'add the stage "ppo"' in fault(stages=["evaluate"], evaluation={"judge": {"type": "grammar"}})


def test_a_bag_of_words_of_this_run_needs_the_judge_that_is_one():
    own = {"type": "bag_of_words"}
    message = 'add the stage "judge" with judge.type = "bag_of_words" or set reward.path'
    assert message in fault(stages=["sft", "ppo"], reward=own)
    assert message in fault(stages=["judge", "ppo"], reward=own, judge={"type": "reward_model"})
    assert recipe(stages=["judge", "ppo"], reward=own)
    assert recipe(stages=["ppo"], reward=own | {"path": "some/judge"})


def test_a_critic_that_starts_from_the_reward_model_needs_one():
    reward, ppo = {"type": "grammar"}, {"value": {"init": "reward_model"}}
    assert 'add the stage "reward_model" or choose "policy"' in fault(stages=["ppo"], reward=reward, ppo=ppo)
    assert recipe(stages=["reward_model", "ppo"], reward=reward, ppo=ppo)


def test_a_response_without_eos_is_scored_anew_or_penalised_but_not_both():
    with pytest.raises(ConfigError, match=r"missing_eos_score -1 replaces .*; set one of the two"):
        PpoConfig(missing_eos_score=-1.0, missing_eos_penalty=0.5)
    assert PpoConfig(missing_eos_score=-1.0)
    assert PpoConfig(missing_eos_penalty=0.5)


def test_all_faults_between_sections_are_named_at_once():
    message = fault(stages=["sft", "ppo"], data={})
    assert "data.demonstrations" in message
    assert "data.prompts" in message
    assert "reward.path" in message


@pytest.mark.parametrize("rows", [":2000", "-312:", ":90%", "45%:90%", ":", "10:20"])
def test_rows_are_slices_in_rows_or_per_cent(rows):
    assert RowsConfig(path="x", rows=rows).rows == rows


@pytest.mark.parametrize("rows", ["", "90%", "1:2:3", "a:b", "5.5%:"])
def test_rows_that_are_no_slices_are_refused(rows):
    with pytest.raises(ConfigError, match="expected a text that matches"):
        RowsConfig(path="x", rows=rows)


def test_stage_names_are_those_of_their_sections():
    without_section = {"evaluate"}
    assert set(typing.get_args(Stage)) - without_section <= Recipe.model_fields.keys()


def test_every_stage_is_described_in_the_order_of_the_stages():
    assert tuple(STAGE_SPECS) == typing.get_args(Stage)


def test_what_a_stage_reads_are_tables_and_sections_of_a_recipe():
    for spec in STAGE_SPECS.values():
        assert set(spec.data) <= DataConfig.model_fields.keys()
        assert set(spec.sections) <= Recipe.model_fields.keys()


def test_a_section_is_read_by_the_stages_that_name_it_and_others_by_all():
    later = {"ppo", "evaluate", "probe", "raft", "compare"}
    assert readers_of_section("rollout") == {"preferences", "reward_model", "judge", *later}
    assert readers_of_section("reward_model") == {"reward_model", "judge"}
    assert readers_of_section("model") == set(typing.get_args(Stage))
    assert readers_of_table("test_prompts") == ("evaluate", "compare")
    assert readers_of_table("on_bad_row") == typing.get_args(Stage)


@pytest.mark.parametrize(
    ("reward", "judge", "words"),
    [
        (
            {"type": "mix", "parts": [{"source": {"type": "function", "function": "a:b"}}]},
            {"type": "function", "function": "a:b"},
            "evaluation.judge is what PPO maximises (reward.parts[0].source)",
        ),
        (
            {"type": "function", "function": "a:b"},
            {"type": "mix", "parts": [{"weight": 2.0, "source": {"type": "function", "function": "a:b"}}]},
            "evaluation.judge.parts[0].source is what PPO maximises (reward)",
        ),
        (
            {"type": "lexicon", "path": "words.txt"},
            {"type": "lexicon", "path": "./other/../words.txt"},
            "evaluation.judge is what PPO maximises (reward)",
        ),
        (
            {"type": "reward_model", "path": "rm"},
            {"type": "reward_model", "path": "rm/", "max_tokens": 99, "batch_tokens": 7},
            "evaluation.judge is what PPO maximises (reward)",
        ),
        (
            {"type": "http", "url": "http://Localhost:8000/score"},
            {"type": "http", "url": "http://localhost:8000/score/", "timeout_seconds": 3.0},
            "evaluation.judge is what PPO maximises (reward)",
        ),
    ],
)
def test_a_judge_that_computes_what_ppo_maximises_is_no_judge(reward, judge, words):
    assert words in fault(stages=["ppo", "evaluate"], reward=reward, evaluation={"judge": judge})


def test_a_judge_of_other_words_or_another_output_is_one():
    nothing = {"type": "mix", "parts": [{"source": {"type": "grammar"}}, {"weight": 0.0, "source": {"type": "match"}}]}
    for reward, judge in (
        ({"type": "lexicon", "path": "words.txt"}, {"type": "lexicon", "path": "other.txt"}),
        ({"type": "reward_model", "path": "rm", "label": 1}, {"type": "reward_model", "path": "rm", "label": 2}),
        (nothing, {"type": "match"}),  # what has no weight is not maximised
    ):
        assert recipe(stages=["ppo", "evaluate"], reward=reward, evaluation={"judge": judge})


def test_a_mix_in_which_nothing_counts_is_refused():
    parts = [{"weight": 0.0, "source": {"type": "match"}}, {"weight": 0.0, "source": {"type": "grammar"}}]
    assert "all weights are 0, so every score would be 0" in fault(reward={"type": "mix", "parts": parts})


def test_a_reward_model_of_this_run_is_read_as_long_as_it_was_trained():
    own = {"type": "reward_model", "max_tokens": 64}
    stages = ["reward_model", "ppo"]
    message = fault(stages=stages, reward=own, reward_model={"max_tokens": 128})
    assert "reward.max_tokens = 64, but the reward model is trained on sequences of up to" in message
    assert recipe(stages=stages, reward=own, reward_model={"max_tokens": 64})
    assert recipe(stages=stages, reward={"type": "reward_model"}, reward_model={"max_tokens": 128})


@pytest.mark.parametrize(
    ("name", "may"),
    [
        ("ppo.microbatch_tokens", True),
        ("ppo.minibatch_episodes", False),
        ("reward.timeout_seconds", True),
        ("reward.url", False),
        ("purpose", True),
        ("watchdog.action", True),
        ("evaluation.judge.path", False),
        ("ppo.no_such_setting", False),
    ],
)
def test_the_declaration_of_a_setting_says_whether_it_may_change_when_a_stage_has_read_it(name, may):
    http = {"type": "http", "url": "http://localhost:1/score"}
    assert may_change(recipe(reward=http, evaluation={"judge": {"type": "grammar"}}), name) is may
