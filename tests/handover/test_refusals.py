"""What a tool cannot say is refused, with the nearest that it can; nothing is left out in silence."""

import re

import pytest

from rlhfkit import ConfigError, export_to
from rlhfkit.config.watch import WatchConfig
from rlhfkit.handover.export import TARGETS
from rlhfkit.handover.export import export_to as export
from rlhfkit.handover.nowhere import WITHOUT_EFFECT
from rlhfkit.handover.translate import accounted_for, settings_of

ADAPTIVE = "ppo.kl={type='adaptive', coef=0.1, target=6.0, horizon_episodes=2000}"


@pytest.mark.parametrize("tool", TARGETS)
def test_every_setting_has_a_place(tool):
    """It is translated, refused, or named as without effect: a new setting fails here until it is."""
    assert [name for name in settings_of() if not accounted_for(TARGETS[tool], name)] == []


def test_what_has_no_effect_is_a_setting():
    names = settings_of()
    assert [key for key in WITHOUT_EFFECT if not any(name == key or name.startswith(f"{key}.") for name in names)] == []


@pytest.mark.parametrize("tool", TARGETS)
def test_tables_name_settings_that_there_are(tool):
    names = [*settings_of(), *WITHOUT_EFFECT, *(f"ppo.watch.{rule}" for rule in WatchConfig.model_fields)]
    rows = {ours for row in TARGETS[tool].rows for ours in (*row.ours, *row.shared)}
    rules = {ours for rule in TARGETS[tool].rules for ours in rule.ours}
    below = {".".join(name.split(".")[:end]) for name in names for end in range(1, name.count(".") + 2)}
    assert {name for name in rows | rules if name not in below and not name.startswith("data.")} == set()


@pytest.mark.parametrize("tool", TARGETS)
def test_no_line_is_said_twice(tool):
    names = [row.theirs for row in TARGETS[tool].rows]
    assert sorted(set(names)) == sorted(names)


ALL = ("verl", "openrlhf", "nemo-rl")
REFUSED = [
    (ALL, "rollout.max_staleness=1", "are those of now", "of now"),
    (ALL, "rollout={max_staleness=1, partial_tokens=4}", "no response is cut", "whole responses"),
    (ALL, "ppo.target_kl=0.05", "no epoch is left out there", "all epochs"),
    (ALL, "ppo.max_ref_kl=20", "nothing stops the run there", "no stop"),
    (ALL, "ppo.end_with=best", "no weights are ranked there", "the last weights"),
    (ALL, "ppo.clip_schedule=linear", "does not fall there", "the mean over the run"),
    (("verl",), "ppo={estimator='rloo', group_size=4, resample_rounds=2}", "do not give way", "teach nothing"),
    (ALL, "ppo.whiten_rewards=true", "are not scaled there", "as they are"),
    (ALL, "ppo.watch.kl_exploding=roll_back", "nothing there reacts", "no reaction"),
    (ALL, "ppo.value.network=shared", "a network of its own there", "= 3e-07 for its rate"),
    (ALL, "model.num_trained_layers=1", "cannot be kept", "all layers are trained"),
    (("openrlhf",), ADAPTIVE, "does not work there", "a fixed coefficient of 0.21, with which the run ended"),
    (("nemo-rl",), ADAPTIVE, "stays as it is there", "a fixed coefficient of 0.21"),
    (("verl",), "ppo.optim.schedule=linear", "constant or fall as a cosine", "a cosine to zero"),
    (("verl", "openrlhf"), "ppo.optim.schedule=step", "there", "constant rates"),
    (("verl", "openrlhf"), "model.dtype=float32", "bfloat16 there", "float32 masters"),
    (("openrlhf",), "rollout.top_k=20", "no argument for it", "all tokens"),
    (("nemo-rl",), "ppo.missing_eos_score=-1", "a factor of its score", "1 is subtracted"),
    (("openrlhf", "nemo-rl"), "ppo.missing_eos_penalty=2", "the greatest length", "the same penalty"),
    (("openrlhf", "nemo-rl"), "ppo.brevity_penalty=0.1", "no penalty on short responses", "none"),
    (("openrlhf",), "ppo.missing_eos_score=-5", "clipped after", "-4 for a response"),
    (("openrlhf",), "ppo.length_penalty=0.1", "clipped after the penalties", "the other order"),
    (("openrlhf",), "ppo.estimator=rloo", "within its group by its score alone", "their way"),
    (("verl",), "ppo.estimator=grpo", "by the deviation there", "within the normalised score"),
    (("openrlhf", "nemo-rl"), "ppo.loss_aggregation=constant", "no constant length", "the mean over tokens"),
    (("openrlhf", "nemo-rl"), "ppo.ratio=sequence", "over responses", "that mean"),
    (("verl",), "ppo.kl={place='loss', estimator='k3'}", "not weighed by the ratio", "k3+"),
    (("verl",), "ppo={estimator='reinforce++-baseline', group_size=4}", "within the group, too", "their way"),
    (("verl", "openrlhf"), "ppo.value.gae_lambda=1.0", "the lambda of the advantages there", "that one"),
    (("nemo-rl",), "ppo.entropy_coef=0.01", "no bonus for entropy", "none"),
    (ALL, "ppo.value.init=runs/other", "the critic of another run is in a checkpoint", "starts at the policy"),
    (ALL, "ppo.ema=0.99", "an average of the policy's weights is not handed over", "the policy alone"),
    (ALL, "ppo.ptx.coef=1", "texts are not learnt beside PPO", "PPO's loss alone"),
    (("verl", "openrlhf"), "ppo.entropy_target=2.0", "stays as it is there", "that of the start"),
]
WITHOUT_SUBSTITUTE = [
    (ALL, "rollout.stop_tokens=['.']", "ends with EOS alone", "leave rollout.stop_tokens out"),
    (ALL, "reward={type='chrf'}", "a reward|what scores", "write"),
    (ALL, "reward={type='answer', after='####'}", "a reward|what scores", "write"),
    (ALL, "reward={type='unit_tests', partial=true}", "a reward|what scores", "write"),
    (ALL, "reward={type='llm_judge', url='http://h/v1', model='m', rubric='r'}", "a reward|what scores", "write"),
    (("nemo-rl",), "reward={type='function', function='rlhfkit.rewards.examples:variety'}", "what scores", "an Env"),
    (("openrlhf", "nemo-rl"), "ppo.objective=cispo", "the clipped loss alone", "export to verl"),
    (("nemo-rl",), "ppo.estimator=rloo", "has a critic", "export to verl"),
    (("verl",), "ppo.minibatch_episodes=2", "whole prompts", "a multiple of ppo.group_size"),
    (("verl", "openrlhf"), "ppo.minibatch_episodes=4", "evenly", "a multiple of --gpus"),
    (("openrlhf",), "model.lora={alpha=1.5}", "a whole number", "set it"),
    (("openrlhf",), "ppo.missing_eos_score=0.5", "a factor of the score", "0 or less"),
    (ALL, "env={type='guess'}", "single prompts", "as an agent"),
]  # fmt: skip


def cases(table):
    return [(tool, *case) for tools, *case in table for tool in tools]


def quiet(tool):
    """What the recipe itself has that a tool cannot say."""
    return ["ppo.entropy_coef=0"] if tool == "nemo-rl" else []


@pytest.mark.parametrize(("tool", "setting", "why", "instead"), cases(REFUSED))
def test_it_is_refused_with_the_nearest(tool, setting, why, instead, run, tmp_path):
    overrides = [setting, *(quiet(tool) if "entropy" not in setting else [])]
    with pytest.raises(ConfigError) as refused:
        export(tool, run, overrides, directory=tmp_path / "out", gpus=2)
    words = str(refused.value)
    name = re.split(r"[={]", setting)[0]
    assert re.search(rf"\n  .*{name}.*: .*{why}.*; nearest: .*{instead}", words), words
    assert "--substitute takes what is nearest" in words
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("tool", "setting", "why", "remedy"), cases(WITHOUT_SUBSTITUTE))
def test_without_a_substitute_it_stays_refused(tool, setting, why, remedy, run, tmp_path):
    gpus = 8 if "evenly" in why else 2
    with pytest.raises(ConfigError) as refused:
        export(tool, run, [setting, *quiet(tool)], directory=tmp_path / "out", gpus=gpus, substitute=True)
    words = str(refused.value)
    assert re.search(f"({why}).*; .*{remedy}", words), words
    assert "has to be changed in the recipe first" in words
    assert not (tmp_path / "out").exists()


def test_a_substitute_is_listed_in_the_result_and_at_the_top_of_the_file_and_at_its_line(run, tmp_path):
    made = export("verl", run, ["ppo.optim.schedule=linear"], directory=tmp_path, gpus=2, substitute=True)
    (substitute,) = made.substitutes
    assert substitute.startswith('ppo.optim.schedule = "linear", ppo.value.optim.schedule = "constant": ')
    head, _, body = (tmp_path / "ppo.yaml").read_text().partition("defaults:")
    assert "# Substitutes, for what it cannot say:\n# - ppo.optim.schedule" in head
    (line,) = re.findall(r"((?: +#[^\n]*\n)+) +lr_scheduler_type: \"cosine\"", body)
    assert "SUBSTITUTE (rates are constant or fall as a cosine there): a cosine to zero" in re.sub(
        r"\n +# +", " ", line
    )


def test_the_reward_model_of_nemo_rl_needs_a_gpu_of_its_own(run, tmp_path):
    with pytest.raises(ConfigError, match=r"has a GPU of its own there.*give --gpus 2 or more"):
        export("nemo-rl", run, ["ppo.entropy_coef=0"], directory=tmp_path, gpus=1)


def test_in_python_the_words_are_a_programs(run, tmp_path):
    with pytest.raises(ConfigError, match="substitute=True takes what is nearest"):
        export_to("verl", run, ["ppo.target_kl=0.1"], directory=tmp_path, gpus=2)
    with pytest.raises(ConfigError, match="a multiple of gpus"):
        export_to("verl", run, ["ppo.minibatch_episodes=4"], directory=tmp_path, gpus=8)
    with pytest.raises(TypeError, match="did you mean substitute"):
        export_to("verl", run, substitutes=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("trl", "demo"), "'trl' is no tool that recipes or models are handed over to; choose openrlhf, verl, nemo-rl"),
        (("verl", "cartpole"), "cartpole is a control task, and those tools train language models"),
        (("verl", "demo"), "the recipe makes the model that is handed over .* run it first"),
        (("verl", "pairs", ["model.path=some/model", "data.path=x", "stages=['sft']"]), 'has no stage "ppo"'),
        (("verl", "nothing"), "neither a recipe nor a file"),
    ],
)
def test_what_cannot_be_handed_over(arguments, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        export(*arguments, directory=tmp_path)


def test_a_run_that_has_not_come_so_far_is_no_run_to_hand_over(run, tmp_path):
    from shutil import copytree, rmtree

    from rlhfkit import CheckpointError

    early = copytree(run, tmp_path / "early")
    rmtree(early / "reward_model")
    with pytest.raises(CheckpointError, match="has no reward_model/ yet; go on with the run"):
        export("verl", early, directory=tmp_path / "out", gpus=2)
