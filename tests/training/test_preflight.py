"""Each check before the first update fires on the fault that it is made for, and names it."""

import dataclasses

import pytest
import torch

from rlhfkit.config.ppo import PpoConfig, RolloutConfig
from rlhfkit.errors import TrainingError
from rlhfkit.models.language import TextPolicy
from rlhfkit.models.policy import PolicyOutput
from rlhfkit.training.preflight import check_first_experience, slow_critic
from tests.training import tiny

CONFIG = PpoConfig(rollout_episodes=8, minibatch_episodes=8)


@pytest.fixture
def trainer():
    return tiny.trainer(CONFIG)


def check(trainer, *, policy=None, reference=None, min_eos_rate=0.0, **changes):
    experience = dataclasses.replace(trainer.rollout.collect(0, kl_coef=0.0), **changes)
    return check_first_experience(
        experience, policy or trainer.policy, reference or tiny.reference(), min_eos_rate=min_eos_rate
    )


class Shifted(TextPolicy):
    """A policy whose logprobs are off by what `shift` says of its inputs."""

    def __init__(self, policy, shift):
        super().__init__(policy.language_model, policy.critic, temperature=policy.temperature)
        self.shift = shift

    def evaluate(self, inputs, *, with_entropy=True):
        output = super().evaluate(inputs, with_entropy=with_entropy)
        return PolicyOutput(output.logprobs + self.shift(inputs), output.entropy, output.values)


def test_a_healthy_start_passes_and_tells_what_was_measured(trainer):
    measured = check(trainer)
    assert measured.keys() == {
        "preflight/noise",
        "preflight/padding",
        "preflight/ratio",
        "preflight/reference",
        "preflight/sampler",
    }
    assert all(difference < 1e-5 for difference in measured.values())


def test_dropout_is_named(trainer):
    generator = torch.Generator().manual_seed(0)
    noisy = Shifted(trainer.policy, lambda inputs: 0.1 * torch.randn(inputs.mask.shape, generator=generator))
    with pytest.raises(TrainingError, match=r"before the first update: the same tokens get other logprobs .* dropout"):
        check(trainer, policy=noisy)


def test_a_model_that_sees_its_padding_is_named(trainer):
    # A row alone has no padding; among others it has.
    sees_padding = Shifted(trainer.policy, lambda inputs: 0.1 * (inputs.trimmed().ids == tiny.PAD).sum(1)[:, None])
    with pytest.raises(TrainingError, match=r"change with its neighbours.* padding .*\(largest difference 0\.\d+ nats"):
        check(trainer, policy=sees_padding)


def test_a_policy_that_is_not_the_one_of_the_rollout_is_named(trainer):
    with pytest.raises(TrainingError, match="ratio is not 1 from the start"):
        check(trainer, policy=Shifted(trainer.policy, lambda inputs: 0.01))


def test_another_temperature_in_the_update_is_named(trainer):
    cooler = TextPolicy(trainer.policy.language_model, trainer.policy.critic, temperature=0.7)
    with pytest.raises(TrainingError, match="ratio is not 1 from the start"):
        check(trainer, policy=cooler)


def test_another_reference_is_named(trainer):
    with pytest.raises(TrainingError, match=r"policy and reference differ .* KL to itself is not 0"):
        check(trainer, reference=tiny.reference(1))


def test_another_temperature_of_the_reference_is_named(trainer):
    with pytest.raises(TrainingError, match=r"policy and reference differ .* same temperature"):
        check(trainer, reference=tiny.reference(temperature=0.7))


def test_a_sampler_of_another_distribution_is_named(trainer):
    trainer.rollout.rollout = RolloutConfig(max_response_tokens=8, temperature=0.7)
    with pytest.raises(TrainingError, match="sampler's logprobs differ from the training pass's"):
        check(trainer)


def test_logprobs_that_are_nan_do_not_pass(trainer):
    with pytest.raises(TrainingError, match="largest difference nan"):
        check(trainer, policy=Shifted(trainer.policy, lambda inputs: torch.nan))


def test_responses_that_do_not_end_are_named(trainer):
    with pytest.raises(
        TrainingError, match=r"only [1-9]\d\.\d% of the responses end by themselves, expected at least 99\.0%"
    ):
        check(trainer, min_eos_rate=0.99)
    check(trainer, min_eos_rate=0.3)


def test_scores_that_are_all_the_same_are_named(trainer):
    with pytest.raises(TrainingError, match="all 8 scores are 2, so there is nothing to learn"):
        check(trainer, scores=torch.full((8,), 2.0))


def test_scores_that_the_rules_would_call_flat_are_refused_before_the_first_update(trainer):
    almost = torch.full((8,), 2.0, dtype=torch.float64)
    almost[0] += 5e-7
    with pytest.raises(TrainingError, match="all 8 scores are 2, so there is nothing to learn"):
        check(trainer, scores=almost)


def test_rounding_in_bfloat16_passes():
    trainer = tiny.trainer(CONFIG)
    trainer.policy.language_model.to(torch.bfloat16)
    frozen = tiny.language_model(dtype=torch.bfloat16)
    trainer.rollout.reference = lambda sequences: frozen.logprobs(sequences, temperature=1.0)
    check(trainer, reference=trainer.rollout.reference)


def test_scores_that_are_all_the_same_come_with_the_responses_that_got_them(trainer):
    long = "x" * 1000 + " ends so"
    samples = [{"prompt": p, "response": r, "score": 2.0} for p, r in ((long, ""), ("b", long), ("c", "d"), ("e", "f"))]
    with pytest.raises(TrainingError, match="nothing to learn") as caught:
        check(trainer, scores=torch.full((8,), 2.0), samples=samples)
    _, *shown = str(caught.value).splitlines()
    assert [line.rpartition("response ")[2][-13:] for line in shown] == [
        "'' → score 2",
        "x'… → score 2",
        "'d' → score 2",
    ]
    assert shown[0].startswith("  prompt …'xx") and "ends so' → response '' → " in shown[0]
    assert all(len(line) < 300 for line in shown)


@pytest.mark.parametrize(("scale", "clip_range", "said"), [(20.0, 0.2, True), (20.0, 0.0, False), (1.0, 0.2, False)])
def test_a_critic_that_clipping_keeps_far_from_its_returns_is_reported(scale, clip_range, said):
    config = PpoConfig(rollout_episodes=8, minibatch_episodes=8, gamma=1.0, gae_lambda=1.0)
    reward = tiny.Scripted(lambda text: scale)
    experience = tiny.trainer(config, reward=reward).rollout.collect(0, kl_coef=0.0)
    experience.old_values.zero_()
    returns = torch.full_like(experience.rewards, scale)
    told = slow_critic(experience, returns, clip_range)
    if said:
        assert told.startswith("returns are 20 away from the critic's values, which ppo.value.clip_range = 0.2 lets")
        assert "for 100 iterations; set ppo.value.clip_range = 0" in told
    else:
        assert told is None
