import dataclasses

import gymnasium
import numpy as np
import pytest
import torch

from rlhfkit.config.control import ControlPpoConfig, ControlRecipe, EnvConfig, NetworkConfig
from rlhfkit.envs.control import make_envs
from rlhfkit.errors import EnvError
from rlhfkit.models.control import ControlPolicy
from rlhfkit.pipeline.control import control_trainer
from rlhfkit.rollout.control import ControlRollout, RunningMoments
from rlhfkit.training.advantages import advantages_and_returns
from rlhfkit.training.ppo import run_iteration
from tests.envs import scripted

GAMMA, LAMBDA = 0.9, 0.8


def seed_of_episode(n, k):
    return 100 * n + k


def make_rollout(env_id, *, num_envs=3, num_steps=10, **settings):
    torch.manual_seed(0)
    envs = make_envs(EnvConfig(id=env_id), num_envs, seed_of_episode)
    policy = ControlPolicy(envs.observations.shape[1], envs.action_space, NetworkConfig(hidden=(8,)))
    return ControlRollout(policy, envs, num_steps=num_steps, gamma=GAMMA, seed=0, **settings)


def replayed(env_id, n, actions):
    """What environment n alone gives for `actions`: a dict a step, with the observation that really followed."""
    env, episode, steps = gymnasium.make(env_id), 0, []
    observation, _ = env.reset(seed=seed_of_episode(n, episode))
    for action in actions:
        following, reward, terminated, truncated, _ = env.step(int(action))
        steps.append(
            {
                "before": observation,
                "after": following,
                "reward": reward,
                "terminated": terminated,
                "truncated": truncated,
            }
        )
        observation = following
        if terminated or truncated:
            episode += 1
            observation, _ = env.reset(seed=seed_of_episode(n, episode))
    return steps


def gae_by_hand(steps, value):
    """Advantages and returns of one environment's steps in float64, from the last to the first."""
    advantages, following = [], 0.0
    for step in reversed(steps):
        bootstrap = 0.0 if step["terminated"] else GAMMA * value(step["after"])
        delta = step["reward"] + bootstrap - value(step["before"])
        ended = step["terminated"] or step["truncated"]
        following = delta + (0.0 if ended else GAMMA * LAMBDA * following)
        advantages.append(following)
    advantages.reverse()
    return advantages, [a + value(step["before"]) for a, step in zip(advantages, steps, strict=True)]


@pytest.mark.parametrize("env_id", [scripted.TERMINATING, scripted.TRUNCATING])
def test_advantages_and_returns_are_those_of_a_float64_loop_over_each_environment_alone(env_id):
    rollout = make_rollout(env_id)
    experience = rollout.collect(0)
    config = ControlPpoConfig(gamma=GAMMA, gae_lambda=LAMBDA)
    whitened, returns = advantages_and_returns(experience, config)
    critic = make_rollout(env_id).policy.double()

    def value(observation):
        with torch.no_grad():
            return float(critic.values(torch.tensor(observation, dtype=torch.float64)))

    expected = [
        gae_by_hand(replayed(env_id, n, experience.inputs.actions[n]), value) for n in range(len(experience.mask))
    ]
    advantages = np.array([a for a, _ in expected])
    np.testing.assert_allclose(returns.numpy(), [r for _, r in expected], rtol=1e-5)
    np.testing.assert_allclose(
        whitened.numpy(), (advantages - advantages.mean()) / advantages.std(), rtol=1e-4, atol=1e-5
    )


def test_a_truncated_step_bootstraps_from_what_followed_and_a_terminated_one_does_not():
    rollout = make_rollout(scripted.TRUNCATING)
    experience = rollout.collect(0)
    cut = experience.ended & ~experience.terminated
    assert cut.sum(1).tolist() == [2, 2, 2]  # after steps 4 and 8 of 10
    last = torch.tensor([[float(seed_of_episode(n, k) % 7), 4.0] for n in range(3) for k in range(2)])
    with torch.no_grad():
        torch.testing.assert_close(experience.next_values[cut], rollout.policy.values(last))
    ended = make_rollout(scripted.TERMINATING).collect(0)
    assert ended.terminated.sum(1).tolist() == [3, 3, 3]
    assert torch.equal(ended.terminated, ended.ended)


def test_the_observation_after_a_reset_is_never_taken_for_what_followed():
    rollout = make_rollout(scripted.TRUNCATING)
    experience = rollout.collect(0)
    steps = experience.inputs.observations[0, :, 1]
    assert steps.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    with torch.no_grad():
        wrong = rollout.policy.values(experience.inputs.observations[:, 4])
    assert not torch.allclose(experience.next_values[:, 3], wrong)


def test_no_step_is_wasted_or_counted_twice_by_environments_of_their_own():
    rollout = make_rollout(scripted.TERMINATING)
    experience = rollout.collect(0)
    assert experience.mask.all()
    assert experience.metrics["env_steps"] == 30
    rewards = [step["reward"] for step in replayed(scripted.TERMINATING, 1, experience.inputs.actions[1])]
    assert experience.rewards[1].tolist() == rewards
    finished = [sum(rewards[start : start + 3]) for start in (0, 3, 6)]
    assert set(finished) <= {episode_return for episode_return, _ in rollout._last}


def test_the_reset_of_a_native_vector_environment_is_no_step():
    rollout = make_rollout("CartPole-v1", num_envs=4, num_steps=100)
    experience = rollout.collect(0)
    resets = (~experience.mask).nonzero().tolist()
    assert resets
    for n, t in resets:
        assert bool(experience.ended[n, t - 1])
        assert not bool(experience.ended[n, t])
    assert experience.metrics["env_steps"] == int(experience.mask.sum())
    assert experience.rewards[experience.mask].eq(1).all()
    weights = experience.old_values + 1
    single = dataclasses.replace(experience, importance_weights=weights).in_single_steps()
    assert torch.equal(single.importance_weights[:, 0], weights[experience.mask])
    assert experience.in_single_steps().importance_weights is None
    assert len(single.mask) == int(experience.mask.sum())
    assert torch.equal(single.inputs.observations[:, 0], experience.inputs.observations[experience.mask])


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", scripted.TRUNCATING])
def test_recorded_logprobs_are_those_of_the_update(env_id):
    rollout = make_rollout(env_id)
    experience = rollout.collect(0)
    with torch.no_grad():
        again = rollout.policy.evaluate(experience.in_single_steps().inputs)
    torch.testing.assert_close(again.logprobs[:, 0], experience.old_logprobs[experience.mask], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", scripted.TRUNCATING])
def test_a_rollout_goes_on_from_its_state_as_if_nothing_had_happened(env_id):
    settings = {"normalize_observations": True, "normalize_rewards": True}
    whole, first, second = (make_rollout(env_id, num_steps=7, **settings) for _ in range(3))
    for rollout in (whole, first):
        for iteration in range(3):
            rollout.collect(iteration)
    second.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    for iteration in (3, 4):
        expected, found = whole.collect(iteration), second.collect(iteration)
        for name in ("old_logprobs", "rewards", "next_values", "ended", "mask"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
        assert torch.equal(found.inputs.observations, expected.inputs.observations)
        assert found.metrics | {"time/environment_seconds": 0} == expected.metrics | {"time/environment_seconds": 0}


def test_an_environment_that_does_not_repeat_itself_begins_new_episodes_and_says_so():
    told = []
    first, second = (make_rollout(scripted.DRIFTING, num_steps=4, warn=told.append) for _ in range(2))
    first.collect(0)
    second.load_state(first.state())
    assert len(told) == 1
    assert "test/Drifting-v0, played again with the same seeds and actions, did not come to the same" in told[0]
    experience = second.collect(1)
    assert experience.ended.nonzero()[:, 1].tolist() == [2, 2, 2]  # whole episodes of three steps from here
    # of environment n, episode 0 was complete and episode 1 was running: this is episode 2
    starts = experience.inputs.observations[:, 0, 0].floor()
    assert starts.tolist() == [seed_of_episode(n, 2) % 7 for n in range(3)]


def test_a_reward_that_is_no_number_stops_the_run_with_its_environment():
    with pytest.raises(EnvError, match="returned a reward that is not a finite number: nan, in environment 0 of 3;"):
        make_rollout(scripted.POISONED).collect(0)


def test_running_moments_are_those_of_all_values_together():
    values = np.random.default_rng(0).normal(3.0, 2.0, (100, 4))
    moments = RunningMoments((4,))
    for part in np.split(values, [10, 11, 60]):
        moments.add(part)
    np.testing.assert_allclose(moments.mean, values.mean(0))
    np.testing.assert_allclose(moments.var, values.var(0))


def test_normalised_rewards_are_divided_by_the_deviation_of_the_discounted_return():
    plain = make_rollout(scripted.TERMINATING).collect(0)
    scaled = make_rollout(scripted.TERMINATING, normalize_rewards=True).collect(0)
    running, seen = np.zeros(3), []
    for rewards, ended in zip(plain.rewards.T.numpy(), plain.ended.T.numpy(), strict=True):
        running = running * GAMMA + rewards
        seen.append(running.copy())
        running[ended] = 0.0
    expected = plain.rewards.numpy() / np.sqrt(np.var(seen) + 1e-8)
    np.testing.assert_allclose(scaled.rewards.numpy(), expected, rtol=1e-5)


def test_observations_are_normalised_by_the_iterations_before():
    rollout = make_rollout(scripted.TRUNCATING, normalize_observations=True)
    first = rollout.collect(0)
    assert not rollout.policy.normalizes
    rollout.collect(1)
    seen = first.inputs.observations.reshape(-1, 2)
    torch.testing.assert_close(rollout.policy.observation_mean, seen.mean(0))
    torch.testing.assert_close(rollout.policy.observation_std, (seen.var(0, correction=0) + 1e-8).sqrt())


def test_the_same_seed_gives_the_same_bits():
    ppo = {"env_steps": 256, "num_envs": 4, "rollout_steps": 32, "minibatch_steps": 32}
    recipe = ControlRecipe(name="tiny", env=EnvConfig(id="CartPole-v1"), ppo=ControlPpoConfig(**ppo))
    weights = []
    for _ in range(2):
        trainer = control_trainer(recipe, 0)
        for _ in range(2):
            run_iteration(trainer)
        weights.append([parameter.clone() for _, parameter in trainer.policy.named_parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_the_ratio_is_one_before_the_first_update_and_moves_after():
    ppo = ControlPpoConfig(env_steps=512, num_envs=8, rollout_steps=64, minibatch_steps=128)
    trainer = control_trainer(ControlRecipe(name="tiny", env=EnvConfig(id="CartPole-v1"), ppo=ppo), 0)
    _, metrics = run_iteration(trainer)
    assert metrics["ppo/ratio_first_epoch_max_deviation"] < 1e-5
    assert metrics["ppo/approx_kl"] > 1e-6
