"""One whole iteration of PPO, built as the pipeline builds it, for every architecture."""

import pytest
import torch

from rlhfkit.config.model import LoraConfig
from rlhfkit.config.ppo import PpoConfig, RolloutConfig, ValueConfig
from rlhfkit.config.training import OptimConfig
from rlhfkit.training.advantages import advantages_and_returns
from rlhfkit.training.checkpoint import trainable_tensors
from rlhfkit.training.ppo import PpoTrainer
from rlhfkit.training.update import update
from tests.tiny import FAMILIES, Directory, builder, ppo_trainer

ROLLOUT = RolloutConfig(max_response_tokens=12, temperature=0.7, slots=5)
FAST = OptimConfig(learning_rate=1e-3)


def settings(**more) -> PpoConfig:
    return PpoConfig(
        rollout_episodes=8,
        minibatch_episodes=4,
        epochs=2,
        microbatch_tokens=64,
        **{"optim": FAST, "value": ValueConfig(optim=FAST), **more},
    )


def weights(trainer: PpoTrainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainable_tensors(trainer.policy).items()}


def iterate(trainer: PpoTrainer) -> dict[str, float]:
    experience = trainer.rollout.collect(0, kl_coef=0.05)
    advantages, returns = advantages_and_returns(experience, trainer.config)
    return {**experience.metrics, **update(trainer, experience, advantages, returns)}


def check(trainer: PpoTrainer) -> None:
    before = weights(trainer)
    metrics = iterate(trainer)
    assert metrics["ppo/ratio_first_epoch_max_deviation"] < 1e-4
    assert metrics["sampler/logprob_max_difference"] < 1e-4
    assert metrics["ref_kl/sequence"] == pytest.approx(0, abs=1e-4)
    assert metrics["ppo/approx_kl"] > 1e-6  # of the last epoch, so after updates
    after = weights(trainer)
    for part in ("language_model.", "critic."):
        moved = {name: not torch.equal(before[name], after[name]) for name in before if name.startswith(part)}
        assert moved
        # Keys have no effect through their bias, since softmax does not see a constant.
        assert [name for name in moved if not moved[name] and not name.endswith("k_proj.bias")] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_iteration_starts_at_ratio_one_and_changes_every_weight(family, directory_of: Directory, tmp_path):
    check(ppo_trainer(builder(directory_of(family), tmp_path, ppo=settings(), rollout=ROLLOUT)))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_iteration_with_shared_trunk(family, directory_of: Directory, tmp_path):
    config = settings(value=ValueConfig(network="shared"))
    check(ppo_trainer(builder(directory_of(family), tmp_path, ppo=config, rollout=ROLLOUT)))


@pytest.mark.parametrize("network", ["separate", "shared"])
def test_iteration_with_adapters_moves_them_and_leaves_the_reference(network, directory_of: Directory, tmp_path):
    config = settings(value=ValueConfig(network=network, optim=FAST))
    made = builder(directory_of("llama"), tmp_path, ppo=config, rollout=ROLLOUT, lora=LoraConfig(rank=4))
    trainer = ppo_trainer(made)
    inputs = trainer.rollout.collect(0, kl_coef=0.0).inputs
    with torch.no_grad():
        before = trainer.policy.evaluate(inputs).logprobs
        assert torch.equal(trainer.rollout.reference(inputs), before)
    check(trainer)
    with torch.no_grad():
        assert torch.equal(trainer.rollout.reference(inputs), before)
        assert (trainer.policy.evaluate(inputs).logprobs - before).abs().max() > 1e-3
    assert trainer.rollout.collect(1, kl_coef=0.0).metrics["ref_kl/sequence"] != pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)])
@pytest.mark.parametrize("network", ["separate", "shared"])
def test_iteration_in_bfloat16(network, lora, directory_of: Directory, tmp_path):
    config = settings(value=ValueConfig(network=network, optim=FAST))
    made = builder(directory_of("mistral"), tmp_path, ppo=config, rollout=ROLLOUT, lora=lora, dtype="bfloat16")
    trainer = ppo_trainer(made)
    before = weights(trainer)
    experience = trainer.rollout.collect(0, kl_coef=0.05)
    for tensor in (experience.old_logprobs, experience.old_values, experience.rewards):
        assert tensor.dtype == torch.float32
    metrics = update(trainer, experience, *advantages_and_returns(experience, trainer.config))
    assert metrics["ppo/ratio_first_epoch_max_deviation"] < 0.1
    changed = [not torch.equal(before[name], after) for name, after in weights(trainer).items()]
    assert sum(changed) > 0.9 * len(changed)  # a few weights are too large for a step to reach the next bfloat16


@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
def test_iteration_without_critic(estimator, directory_of: Directory, tmp_path):
    config = settings(estimator=estimator, group_size=2)
    trainer = ppo_trainer(builder(directory_of("llama"), tmp_path, ppo=config, rollout=ROLLOUT))
    before = weights(trainer)
    metrics = iterate(trainer)
    assert metrics["ppo/ratio_first_epoch_max_deviation"] < 1e-4
    assert all(name.startswith("language_model.") for name in before)
    assert not any(torch.equal(before[name], after) for name, after in weights(trainer).items())


@pytest.mark.parametrize(
    ("family", "network"), [*((family, "separate") for family in FAMILIES), ("gpt2", "shared"), ("llama", "shared")]
)
def test_iteration_that_trains_the_last_layer(family, network, directory_of: Directory, tmp_path):
    config = settings() if network == "separate" else settings(value=ValueConfig(network="shared"))
    check(ppo_trainer(builder(directory_of(family), tmp_path, num_trained_layers=1, ppo=config, rollout=ROLLOUT)))
