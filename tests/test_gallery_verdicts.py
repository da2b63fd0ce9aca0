"""What diagnosis says of real trainings in which something looks well and is not; the same as grids of results is in
test_verdict_and_diagnosis.py."""

import pytest

from rlhfkit.config.load import load_recipe
from rlhfkit.config.training import RewardModelConfig
from rlhfkit.diagnosis.diagnose import diagnose
from rlhfkit.errors import TrainingError
from rlhfkit.machine.progress import Progress
from rlhfkit.pipeline import run as pipeline
from rlhfkit.rundir.atomic import write_json
from rlhfkit.rundir.directory import RunDir
from rlhfkit.training.reward_model import EncodedPair, measure
from tests.doctor.test_rehearsal import RECIPE
from tests.test_gallery import NO_LEASH, named, random_letters
from tests.training import tiny
from tests.training.runs import four_letters, ppo_config, ppo_trainer, rate, rows, train, train_pairs


def mean(values):
    return sum(values) / len(values)


@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(4))
def test_of_a_score_that_moves_within_its_noise_no_rise_is_claimed(tmp_path, seed):
    run, _ = train(ppo_trainer(ppo_config(iterations=12, optim=rate(1e-5)), seed=seed), tmp_path)
    scores = [row["score/mean"] for row in rows(run)]
    assert len(set(scores)) > 6  # it moves, and the policy has not: 12 steps of 1e-5
    assert not any("rose" in line for line in diagnose(run).right)


@pytest.mark.thorough
def test_of_an_eos_rate_that_fell_it_is_not_said_that_responses_end_by_themselves(tmp_path):
    config = ppo_config(kl=NO_LEASH, optim=rate(1e-2))
    run, _ = train(ppo_trainer(config, lambda text: four_letters(text) + 5.0 * (len(text) == 8)), tmp_path)
    rates = [row["eos_rate"] for row in rows(run)]
    assert mean(rates[:3]) > 2 * mean(rates[-3:])
    found = diagnose(run)
    assert "eos_lost" in named(run) and "Nothing is wrong" not in found.conclusion()
    assert not any("end by themselves" in line for line in found.right)


def test_a_reward_model_that_was_trained_on_coins_is_at_chance_on_44_pairs(tmp_path):
    words = random_letters(2 * 144, 0)
    pairs = [EncodedPair([*a, 1], [*b, 1], 0.0) for a, b in zip(words[:144], words[144:], strict=True)]
    config = RewardModelConfig(epochs=1, minibatch_pairs=20, validation_share=0.0, optim=rate(1e-3))
    model = tiny.reward_model()
    run = train_pairs(pairs[:100], config, tmp_path, model=model)
    report = measure(model, pairs[100:], max_tokens=512)
    write_json(run.reward_model_report, {**report, "baselines": {}})
    assert "reward_model_at_chance" in named(run)
    found = diagnose(run)
    assert "Nothing is wrong" not in found.conclusion()
    assert not any("The reward model is right" in line for line in found.right)


@pytest.mark.thorough
def test_of_a_run_that_its_first_checks_stopped_nothing_is_said_to_be_well(tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE)
    few = ("rounds=1", 'stages=["pretrain", "ppo"]', "pretrain.epochs=1", 'reward.type="grammar"')
    recipe = load_recipe(tmp_path / "recipe.toml", [*few, "data.texts.num_rows=64", "ppo.min_eos_rate=0.99"])
    with pytest.raises(TrainingError, match="of the responses end by themselves, expected at least 99"):
        pipeline.run(recipe, tmp_path / "run", progress=Progress(quiet=True))
    run = RunDir(tmp_path / "run")
    assert named(run)[0] == "stopped_itself"
    found = diagnose(run)
    assert found.problems[0].finding.title == "It stopped itself before its first update"
    assert "Nothing is wrong" not in found.conclusion()
    assert not any("PPO" in line or "score" in line for line in found.right)
