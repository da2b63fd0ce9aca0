"""The update with the other members of the family: which gradient it follows, whatever it is cut into."""

import dataclasses

import numpy as np
import pytest
import torch

from rlhfkit.config.ppo import FixedKLConfig, PpoConfig, ValueConfig
from rlhfkit.config.presets import PRESETS
from rlhfkit.config.training import OptimConfig
from rlhfkit.errors import ConfigError
from rlhfkit.training.ppo import run_iteration
from tests.oracles import ppo as oracle
from tests.training import tiny
from tests.training.test_ppo_update import assert_same_gradient, gradient_of, make_batch

MEMBERS = {
    "higher clip": {"clip_range_high": 0.4},
    "mean of responses": {"loss_aggregation": "sequence"},
    "constant length": {"loss_aggregation": "constant", "loss_tokens": 11},
    "gspo": {"ratio": "sequence", "loss_aggregation": "sequence", "clip_range": 0.05},
    "gspo by tokens": {"ratio": "sequence", "clip_range": 0.05},
    "cispo": {"objective": "cispo", "clip_range": 1.0, "clip_range_high": 0.28},
    "cispo, mean of responses": {"objective": "cispo", "loss_aggregation": "sequence"},
}
members = pytest.mark.parametrize("settings", MEMBERS.values(), ids=MEMBERS)


def without_critic(**settings):
    config = {"estimator": "rloo", "group_size": 2, "rollout_episodes": 8, "minibatch_episodes": 8, "epochs": 1}
    return PpoConfig(**{**config, **settings})


def expected_gradient(settings):
    """By the oracle: its slopes in the logprobs, taken on to the weights by the model alone."""
    policy = tiny.policy(0, critic=None)
    experience, advantages, _ = make_batch(policy)
    logprobs = policy.evaluate(experience.inputs).logprobs
    arrays = [x.detach().double().numpy() for x in (logprobs, experience.old_logprobs, advantages)]
    mask = experience.mask.numpy()
    low = settings.get("clip_range", 0.2)
    terms, slopes = oracle.family_terms(
        *arrays,
        mask,
        low,
        settings.get("clip_range_high", low),
        objective=settings.get("objective", "clip"),
        ratio_of=settings.get("ratio", "token"),
    )
    how = settings.get("loss_aggregation", "token")
    _, slopes = oracle.aggregated(terms, slopes, mask, how, settings.get("loss_tokens"))
    assert np.count_nonzero(slopes) > 0
    torch.autograd.backward(logprobs, torch.from_numpy(slopes).float())
    return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


@members
def test_gradient_is_that_of_the_oracle(settings):
    assert_same_gradient(gradient_of(without_critic(**settings)), expected_gradient(settings))


@members
@pytest.mark.parametrize("microbatch_tokens", [24, pytest.param(1, marks=pytest.mark.thorough)])
def test_microbatches_do_not_change_the_gradient(microbatch_tokens, settings):
    settings = {**settings, "entropy_coef": 0.1}
    whole = gradient_of(without_critic(microbatch_tokens=10_000, **settings))
    assert_same_gradient(gradient_of(without_critic(microbatch_tokens=microbatch_tokens, **settings)), whole)


# ── the KL as a term of the loss ─────────────────────────────────────────────────────────────────────────────────────


def with_kl(estimator, **settings):
    kl = FixedKLConfig(coef=0.7, place="loss", estimator=estimator)
    return without_critic(kl=kl, **settings)


def far_reference(batch):
    """The batch with a reference that says something else, and no advantage."""
    experience, advantages, returns = batch
    rng = torch.Generator().manual_seed(3)
    ref_logprobs = experience.old_logprobs + 0.5 * torch.randn(experience.mask.shape, generator=rng)
    return dataclasses.replace(experience, ref_logprobs=ref_logprobs), 0 * advantages, returns


@pytest.mark.parametrize("how", ["token", "sequence"])
@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_the_kl_in_the_loss_has_the_gradient_of_the_oracle(estimator, how):
    policy = tiny.policy(0, critic=None)
    experience, *_ = far_reference(make_batch(policy))
    logprobs = policy.evaluate(experience.inputs).logprobs
    arrays = [x.detach().double().numpy() for x in (logprobs, experience.old_logprobs, experience.ref_logprobs)]
    mask = experience.mask.numpy()
    _, slopes = oracle.aggregated(*oracle.kl_terms(*arrays, mask, estimator), mask, how)
    torch.autograd.backward(logprobs, 0.7 * torch.from_numpy(slopes).float())
    expected = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    for microbatch_tokens in (10_000, 24):
        config = with_kl(estimator, loss_aggregation=how, microbatch_tokens=microbatch_tokens)
        assert_same_gradient(gradient_of(config, change=far_reference), expected)


@pytest.mark.parametrize("estimator", ["gae", "grpo"])
def test_the_kl_is_in_the_reward_or_in_the_loss(estimator):
    def rollout(**kl):
        config = PpoConfig(
            estimator=estimator,
            group_size=2,
            rollout_episodes=8,
            minibatch_episodes=8,
            kl=FixedKLConfig(coef=0.5, **kl),
        )
        trainer = tiny.trainer(config, reference_seed=3)
        return trainer, trainer.rollout.collect(0, kl_coef=0.5)

    _, paid = rollout()
    trainer, free = rollout(place="loss")
    assert paid.ref_logprobs is None
    torch.testing.assert_close(free.rewards.sum(1), free.scores, rtol=0, atol=0)
    torch.testing.assert_close(paid.rewards.sum(1), paid.scores - 0.5 * paid.ref_kl)
    torch.testing.assert_close((free.old_logprobs - free.ref_logprobs).mul(free.mask).sum(1), paid.ref_kl)
    assert run_iteration(trainer)[1]["ppo/kl_loss"] > 0


@pytest.mark.thorough
@pytest.mark.parametrize(
    "kl",
    [
        FixedKLConfig(coef=1.0),
        FixedKLConfig(coef=1.0, place="loss"),
        FixedKLConfig(coef=1.0, place="loss", estimator="k3"),
    ],
    ids=["reward", "k2", "k3"],
)
def test_the_kl_in_the_loss_holds_the_policy_as_that_in_the_reward_does(kl):
    """Without a score of any use only the leash acts: a policy far from the reference comes back to it."""
    config = PpoConfig(
        estimator="reinforce++",
        iterations=100,
        rollout_episodes=32,
        epochs=2,
        minibatch_episodes=32,
        kl=kl,
        optim=OptimConfig(learning_rate=1e-2, schedule="constant"),
    )
    trainer = tiny.trainer(config, reward=tiny.Scripted(lambda text: 0.0), reference_seed=3)
    distances = [run_iteration(trainer)[1]["ref_kl/sequence"] for _ in range(8)]
    assert distances[-1] < 0.6 * distances[0]


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_falling_clip_range_falls_on_both_sides():
    trainer = tiny.trainer(without_critic(iterations=4, clip_schedule="linear", clip_range_high=0.28))
    trainer.iteration = 3
    assert trainer.clip_range == pytest.approx(0.05)
    assert trainer.clip_range_high == pytest.approx(0.07)


def test_a_constant_length_is_by_default_that_of_the_longest_response():
    config = without_critic(loss_aggregation="constant")
    assert config.for_rollout(tiny.RolloutConfig(max_response_tokens=8)).loss_tokens == 8
    config = without_critic(loss_aggregation="constant", loss_tokens=5)
    assert config.for_rollout(tiny.RolloutConfig(max_response_tokens=8)).loss_tokens == 5
    with pytest.raises(ConfigError, match=r"set ppo\.loss_tokens"):
        gradient_of(without_critic(loss_aggregation="constant"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objective": "cispo", "ratio": "sequence"}, "objective 'cispo' clips the weight of each token"),
        ({"objective": "cispo", "dual_clip": 3.0}, "dual_clip 3 bounds what objective 'cispo' bounds"),
        ({"normalize_std": False}, "normalize_std = false .* estimator 'rloo' does not"),
        ({"loss_tokens": 5}, 'loss_tokens 5 is the length of loss_aggregation "constant"'),
        ({"entropy_target": 2.0}, "entropy_coef is 0, which no factor moves; set it to where"),
        ({"estimator": "reinforce++-baseline", "group_size": 1}, "set group_size to 2 or more"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        without_critic(**settings)


# ── presets ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.thorough
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_learns(preset):
    """The tiny model says "a" more often, which is what it is paid for."""
    config = PpoConfig(
        preset=preset,
        iterations=100,
        rollout_episodes=48,
        minibatch_episodes=48,
        optim=OptimConfig(learning_rate=1e-2, schedule="constant"),
        value=ValueConfig(optim=OptimConfig(learning_rate=1e-2)),
    ).for_rollout(tiny.RolloutConfig(max_response_tokens=8))
    trainer = tiny.trainer(config)
    metrics = [run_iteration(trainer)[1] for _ in range(6)]
    assert metrics[-1]["score/mean"] > metrics[0]["score/mean"] + 0.5
    assert (metrics[-1].get("ppo/kl_loss", 0) > 0) == (preset == "grpo")
