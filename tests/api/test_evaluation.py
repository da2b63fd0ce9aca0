"""`evaluate` compares two models as the stage does, and `sample` writes as `rlhfkit generate` does."""

from pathlib import Path

import pytest

from rlhfkit import ConfigError, DataError, ModelError, PPOConfig, PPOTrainer, Progress, RolloutConfig, evaluate, sample
from rlhfkit.pipeline.generate import generate
from tests.tiny import save_family

QUIET = Progress(quiet=True)
SHORT = RolloutConfig(max_response_tokens=8)
PROMPTS = ["One", "Two", "Three"]


def plainness(prompts, responses):
    return [float(sum(letter.isascii() for letter in response)) for response in responses]


@pytest.fixture(scope="module")
def other_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("other")
    return str(save_family("llama", directory, seed=1, max_position_embeddings=256))


def compared(before, after, **options):
    usual = {"prompts": PROMPTS, "reward": plainness, "rollout": SHORT, "progress": QUIET}
    return evaluate(before, after, **{**usual, **options})


def test_scores_are_those_of_the_responses(model_dir, other_dir):
    found = compared(model_dir, other_dir)
    assert found.num_prompts == 3 and found.models["policy"].ref_kl > 0
    for model, name in (("sft", "sft"), ("policy", "policy")):
        scores = plainness([], [getattr(pair, name) for pair in found.samples])
        assert found.models[model].score.mean == pytest.approx(sum(scores) / 3)


def test_a_judge_may_be_a_function(model_dir, other_dir):
    found = compared(model_dir, other_dir, judge=lambda prompts, responses: [float(len(r)) for r in responses])
    lengths = [len(pair.sft) for pair in found.samples]
    assert found.models["sft"].judge.mean == pytest.approx(sum(lengths) / 3)


def test_only_so_many_prompts_are_drawn(model_dir):
    assert compared(model_dir, model_dir, num_prompts=2).num_prompts == 2


def test_a_trainer_is_compared_with_the_weights_that_it_has(model_dir):
    config = PPOConfig(iterations=1, rollout_episodes=8, minibatch_episodes=8, min_eos_rate=0.0)
    trainer = PPOTrainer(model_dir, prompts=PROMPTS, reward=plainness, config=config, rollout=SHORT, progress=QUIET)
    assert compared(model_dir, trainer).models["policy"].ref_kl == pytest.approx(0.0, abs=1e-4)
    trainer.train()
    assert abs(compared(model_dir, trainer).models["policy"].ref_kl) > 1e-4
    assert len(sample(trainer, PROMPTS, max_response_tokens=4)) == 3


def test_it_shows_itself(model_dir, other_dir):
    found = compared(model_dir, other_dir)
    shown = found._repr_html_()
    assert shown.count("<tr>") == 2 + 4 and "http" not in shown and "score" in str(found)


def test_samples_are_those_of_the_command(model_dir):
    expected = list(generate(Path(model_dir), PROMPTS, max_response_tokens=6, seed=4))
    assert sample(model_dir, PROMPTS, max_response_tokens=6, seed=4) == expected
    assert sample(model_dir, PROMPTS, max_response_tokens=6, seed=5) != expected


def test_temperature_zero_takes_the_likeliest(model_dir):
    first, second = (sample(model_dir, ["One"], max_response_tokens=6, temperature=0, seed=seed) for seed in (1, 2))
    assert first == second


def test_faults_are_those_of_the_command_line(model_dir, tmp_path):
    with pytest.raises(ModelError, match="nowhere"):
        sample(tmp_path / "nowhere", ["One"])
    with pytest.raises(DataError, match=r"prompts\[0\]: a row of type int"):
        sample(model_dir, [1])
    with pytest.raises(ConfigError, match=r"^max_response_tokens = 500 leaves no room for a prompt"):
        sample(model_dir, ["One"], max_response_tokens=500)
    with pytest.raises(ConfigError, match="reward is of type NoneType; expected a function"):
        compared(model_dir, model_dir, reward=None)
    with pytest.raises(DataError, match=r"^prompts is empty"):
        compared(model_dir, model_dir, prompts=[])
