"""`SFTTrainer` and `RewardTrainer` do what the stages of `rlhfkit run` do, and hand on what they make."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhfkit import (
    ConfigError,
    DataError,
    DPOConfig,
    DPOTrainer,
    LoraConfig,
    OptimConfig,
    PPOConfig,
    PPOTrainer,
    Progress,
    RewardModelConfig,
    RewardTrainer,
    RolloutConfig,
    SFTConfig,
    SFTTrainer,
    evaluate,
    sample,
)
from rlhfkit.config.load import load_recipe
from rlhfkit.pipeline.run import run

QUIET = Progress(quiet=True)
ROWS = [{"prompt": f"{n} and 1 is", "completion": f" {n + 1}."} for n in range(12)]
PAIRS = [{"prompt": f"Say {n}", "chosen": " yes, yes", "rejected": " no"} for n in range(24)]
SFT = SFTConfig(minibatch_sequences=4, validation_share=0.25)
REWARD = RewardModelConfig(
    minibatch_pairs=4, epochs=2, optim=OptimConfig(learning_rate=1e-3), normalization_responses=0
)


def sft(model, **options):
    return SFTTrainer(model, **{"demonstrations": ROWS, "config": SFT, "seed": 3, "progress": QUIET, **options})


def reward_trainer(model, **options):
    usual = {"preferences": PAIRS, "config": REWARD, "rollout": RolloutConfig(max_response_tokens=8), "progress": QUIET}
    return RewardTrainer(model, **{**usual, **options})


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.thorough
def test_sft_trains_to_the_bits_of_the_command_line(model_dir, tmp_path):
    file = lines(tmp_path / "rows.jsonl", ROWS)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'name = "sft"\nstages = ["sft"]\nseed = 3\nmodel.path = "{model_dir}"\ndata.demonstrations.path = "{file}"\n'
        "[sft]\nminibatch_sequences = 4\nvalidation_share = 0.25\n"
    )
    run(load_recipe(recipe), tmp_path / "run", progress=QUIET)
    trained = sft(model_dir)
    metrics = trained.train()
    trained.save(tmp_path / "saved")
    one, other = (load_file(path / "model.safetensors") for path in (tmp_path / "run" / "sft", tmp_path / "saved"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert metrics["validation/loss"] > 0 and len(trained.history) > 1
    AutoModelForCausalLM.from_pretrained(tmp_path / "saved")


def test_a_reward_model_learns_which_is_preferred_and_scores(model_dir, tmp_path):
    trained = reward_trainer(model_dir, test_preferences=PAIRS[:8])
    trained.train()
    good, bad = trained.score(["Say 3", "Say 3"], [" yes, yes", " no"])
    assert good > bad
    assert trained.report["accuracy"] == 1.0 and trained.report["num_pairs"] == 8
    trained.save(tmp_path / "reward")
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").config.num_labels == 1


@pytest.mark.thorough
def test_ppo_takes_the_trainer_or_its_directory_as_its_reward(model_dir, tmp_path):
    trained = reward_trainer(model_dir)
    trained.train()
    trained.save(tmp_path / "reward")
    found = []
    for reward in (trained, str(tmp_path / "reward")):
        config = PPOConfig(iterations=1, rollout_episodes=8, minibatch_episodes=8, min_eos_rate=0.0)
        trainer = PPOTrainer(
            model_dir,
            prompts=["Say 3", "Say 4"],
            reward=reward,
            config=config,
            rollout=RolloutConfig(max_response_tokens=8),
            progress=QUIET,
        )
        found.append(next(trainer)["score/mean"])
    assert found[0] == found[1]


def test_what_is_not_trained_cannot_be_saved_or_score(model_dir, tmp_path):
    with pytest.raises(ConfigError, match=r"nothing is trained yet; call train\(\) first"):
        sft(model_dir).save(tmp_path / "saved")
    with pytest.raises(ConfigError, match=r"nothing is trained yet; call train\(\) first"):
        reward_trainer(model_dir).score(["a"], ["b"])
    with pytest.raises(DataError, match="1 prompts and 2 responses"):
        reward_trainer(model_dir).score(["a"], ["b", "c"])


def test_a_row_that_will_not_do_is_named(model_dir):
    with pytest.raises(DataError, match=r"demonstrations\[1\]: .*no response"):
        sft(model_dir, demonstrations=[ROWS[0], {"prompt": "alone"}])
    with pytest.raises(DataError, match=r"preferences\[0\]: chosen and rejected are equal"):
        reward_trainer(model_dir, preferences=[{"prompt": "a", "chosen": " b", "rejected": " b"}])


@pytest.mark.thorough
def test_without_rows_that_are_held_out_training_gives_its_last_loss(model_dir):
    trained = sft(model_dir, config=SFTConfig(minibatch_sequences=4, validation_share=0.0))
    metrics = trained.train()
    assert metrics["loss"] == trained.history[-1]["loss"] > 0 and "validation/loss" not in metrics
    scored = reward_trainer(model_dir, config=REWARD.model_copy(update={"validation_share": 0.0}))
    assert scored.train()["loss"] == scored.history[-1]["loss"]


@pytest.mark.thorough
def test_a_trainer_stands_wherever_its_model_may(model_dir, tmp_path):
    with sft(model_dir) as trained:
        trained.train()
        trained.save(tmp_path / "saved")
        usual = {"max_response_tokens": 4, "seed": 1}
        assert sample(trained, ["1 and 1 is"], **usual) == sample(tmp_path / "saved", ["1 and 1 is"], **usual)

        def reward(prompts, responses):
            return [float(len(response)) for response in responses]

        def ppo(model):
            config = PPOConfig(iterations=1, rollout_episodes=8, min_eos_rate=0.0)
            short = RolloutConfig(max_response_tokens=8)
            given = {"prompts": ["Say"], "reward": reward, "config": config, "rollout": short, "progress": QUIET}
            return PPOTrainer(model, dtype="float32", **given).train()

        before = trained.model.causal_lm.lm_head.weight.clone()
        from_trainer, from_directory = ppo(trained), ppo(str(tmp_path / "saved"))
        ours, theirs = from_trainer.model.causal_lm.lm_head.weight, from_directory.model.causal_lm.lm_head.weight
        assert torch.equal(ours, theirs) and not torch.equal(ours, before)
        assert torch.equal(trained.model.causal_lm.lm_head.weight, before)  # a copy was trained

        found = evaluate(
            trained,
            from_trainer,
            prompts=["One", "Two"],
            reward=reward,
            rollout=RolloutConfig(max_response_tokens=8),
            progress=QUIET,
        )
        assert abs(found.models["policy"].ref_kl) > 0
        assert reward_trainer(trained).train()["loss"] > 0
    assert sft(from_trainer).train()["loss"] > 0


@pytest.mark.thorough
def test_adapters_of_a_trainer_are_folded_into_the_copy(model_dir, tmp_path):
    config = PPOConfig(iterations=1, rollout_episodes=8, min_eos_rate=0.0, optim=OptimConfig(learning_rate=1e-2))
    tuned = PPOTrainer(
        model_dir,
        prompts=["Say"],
        reward=lambda prompts, responses: [float(len(response)) for response in responses],
        config=config,
        rollout=RolloutConfig(max_response_tokens=8),
        lora=LoraConfig(rank=2),
        progress=QUIET,
    ).train()
    tuned.save(tmp_path / "tuned")
    one, other = sft(tuned, dtype="float32"), sft(str(tmp_path / "tuned"), dtype="float32")
    one.train()
    other.train()
    ours, theirs = (load_file(trained.directory / "model.safetensors") for trained in (one, other))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name])


def test_what_has_no_language_model_is_refused_in_its_place(model_dir):
    scores = reward_trainer(model_dir)
    with pytest.raises(ConfigError, match=r"model is of type RewardTrainer; .* a reward model is given as reward="):
        sft(scores)
    with pytest.raises(ConfigError, match="model is of type RewardTrainer; expected a directory"):
        sample(scores, ["One"])
    with pytest.raises(ConfigError, match=r"nothing is trained yet; call train\(\) first"):
        PPOTrainer(sft(model_dir))
    with pytest.raises(ConfigError, match="tokenizer was given beside model = the SFTTrainer, which has its own"):
        trained = sft(model_dir)
        trained.train()
        sft(trained, tokenizer=AutoTokenizer.from_pretrained(model_dir))


@pytest.mark.thorough
def test_of_fast_paths_the_manifest_tells_and_no_line(model_dir, tmp_path, heard):
    sft(model_dir, run_dir=tmp_path / "run", progress=heard).train()
    assert heard.lines and not any("fast paths" in line for line in heard.lines)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["fast_paths"]


def test_they_show_their_curve(model_dir):
    trained = sft(model_dir)
    trained.train()
    assert trained._repr_html_().count("<polyline") == 1


def test_nothing_is_left_on_the_disk_without_a_run_directory(model_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    trained = sft(model_dir)
    trained.train()
    trained.close()
    assert list(tmp_path.iterdir()) == []


def test_dpo_learns_which_is_preferred_and_measures_how_far_it_goes(model_dir, tmp_path):
    config = DPOConfig(minibatch_pairs=8, epochs=2, optim=OptimConfig(learning_rate=3e-3))
    trained = DPOTrainer(
        model_dir,
        preferences=PAIRS,
        test_prompts=["Say 3", "Say 4"],
        config=config,
        rollout=RolloutConfig(max_response_tokens=8),
        progress=QUIET,
    )
    metrics = trained.train()
    assert metrics["validation/accuracy"] == 1.0 and metrics["evaluation/ref_kl"] != 0.0
    assert "evaluation/score" not in metrics  # there is no reward
    assert len(sample(trained, ["Say 3"], max_response_tokens=4)) == 1
