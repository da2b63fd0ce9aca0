"""From the rewards of a rollout to advantages and returns, with the KL of each token in them."""

import pytest
import torch

from rlhfkit.config.ppo import FixedKLConfig, PpoConfig, RolloutConfig, ValueConfig
from rlhfkit.padding import Sequences
from rlhfkit.ppo import next_token_values, token_rewards
from rlhfkit.rollout.experience import Experience
from rlhfkit.training.advantages import advantages_and_returns, raw_advantages_and_returns
from tests.training import tiny

MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)
SCORES = torch.tensor([1.0, -2.0, 0.5, 4.0])
KL = torch.tensor([[0.1, -0.2, 0.3], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, -1.0]])
VALUES = torch.tensor([[0.5, 0.25, 1.0], [-1.0, 9.0, 9.0], [0.0, 0.5, 9.0], [2.0, 2.0, 3.0]])


def made(*, kl_coef=0.0, scores=SCORES):
    """Four responses of 3, 1, 2 and 3 tokens; what stands at padding must not matter."""
    last = torch.tensor([[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.bool)
    return Experience(
        inputs=Sequences.join([[2]] * 4, [[2] * 3, [2], [2] * 2, [2] * 3], pad=0),
        mask=MASK,
        old_logprobs=KL,
        old_values=VALUES,
        next_values=next_token_values(VALUES, MASK),
        terminated=last,
        ended=last,
        rewards=token_rewards(scores, KL, torch.zeros(4, 3), MASK, kl_coef=kl_coef),
        scores=scores,
        ref_kl=(KL * MASK).sum(1),
    )


def test_returns_are_unwhitened_advantages_plus_old_values():
    # With gamma = gae_lambda = 1 the return of a token is the sum of the rewards from there on: here the score.
    _, returns = advantages_and_returns(made(), PpoConfig(gamma=1.0, gae_lambda=1.0))
    expected = torch.tensor([[1.0, 1.0, 1.0], [-2.0, 0, 0], [0.5, 0.5, 0], [4.0, 4.0, 4.0]])
    torch.testing.assert_close(returns * MASK, expected)


def test_returns_hold_the_kl_penalty_of_what_is_to_come():
    _, returns = advantages_and_returns(made(kl_coef=0.5), PpoConfig(gamma=1.0, gae_lambda=1.0))
    first = torch.tensor([1.0 - 0.5 * 0.2, -2.0 - 0.5 * 1.0, 0.5 - 0.5 * 1.0, 4.0 + 0.5 * 1.0])
    torch.testing.assert_close(returns[:, 0], first)


def test_one_step_advantages_by_hand():
    # gae_lambda = 0: A[t] = r[t] + V[t+1] - V[t]; raw: -.25 .75 0 | -1 | .5 0 | 0 1 1
    advantages, returns = advantages_and_returns(made(), PpoConfig(gamma=1.0, gae_lambda=0.0))
    raw = torch.tensor([-0.25, 0.75, 0.0, -1.0, 0.5, 0.0, 0.0, 1.0, 1.0])
    torch.testing.assert_close(returns[MASK], raw + VALUES[MASK])
    torch.testing.assert_close(advantages[MASK], (raw - raw.mean()) / raw.std(correction=0))


def test_advantages_are_whitened_over_all_tokens_of_the_rollout():
    advantages, _ = advantages_and_returns(made(kl_coef=0.3), PpoConfig())
    assert float(advantages[MASK].mean()) == pytest.approx(0, abs=1e-6)
    assert float(advantages[MASK].std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert float(advantages[~MASK].abs().max()) == 0


def test_whitened_rewards_keep_their_mean():
    # Raw rewards 0 0 1 | -2 | 0 .5 | 0 0 4: mean 3.5/9, biased deviation sqrt(mean of squares - mean^2).
    _, returns = advantages_and_returns(made(), PpoConfig(gamma=1.0, gae_lambda=1.0, whiten_rewards=True))
    mean = 3.5 / 9
    deviation = ((1 + 4 + 0.25 + 16) / 9 - mean**2) ** 0.5
    assert float(returns[1, 0]) == pytest.approx((-2 - mean) / deviation + mean, rel=1e-5)
    assert float(returns[2, 0]) == pytest.approx((0.5 - 2 * mean) / deviation + 2 * mean, rel=1e-5)


def test_rloo_compares_with_the_other_responses_to_the_prompt_kl_included():
    config = PpoConfig(estimator="rloo", group_size=2, rollout_episodes=4, minibatch_episodes=4)
    advantages, returns = advantages_and_returns(made(kl_coef=0.5), config)
    totals = torch.tensor([0.9, -2.5, 0.0, 4.5])  # score - 0.5 * KL summed over the response
    expected = torch.stack([totals[0] - totals[1], totals[1] - totals[0], totals[2] - totals[3], totals[3] - totals[2]])
    torch.testing.assert_close(advantages, expected[:, None] * MASK)
    assert not returns.any()


def grpo(experience):
    config = PpoConfig(estimator="grpo", group_size=4, rollout_episodes=4, minibatch_episodes=4)
    return advantages_and_returns(experience, config)[0]


def test_grpo_divides_the_scores_by_their_deviation_and_not_the_kl():
    # scores 1, -2, .5, 4: mean .875, squares .015625 + 8.265625 + .140625 + 9.765625 = 18.1875, sample variance 6.0625;
    # KL .2, 1, 1, -1: mean .3
    deviation = 6.0625**0.5 + 1e-4
    expected = [
        0.125 / deviation + 0.5 * 0.1,
        -2.875 / deviation - 0.5 * 0.7,
        -0.375 / deviation - 0.5 * 0.7,
        3.125 / deviation + 0.5 * 1.3,
    ]
    torch.testing.assert_close(grpo(made(kl_coef=0.5)), torch.tensor(expected)[:, None] * MASK)


@pytest.mark.parametrize("kl_coef", [0.01, 0.1])
def test_in_a_group_of_equal_scores_grpo_advantages_are_in_proportion_to_the_coefficient(kl_coef):
    advantages = grpo(made(kl_coef=kl_coef, scores=torch.full((4,), 0.1)))
    expected = kl_coef * torch.tensor([0.1, -0.7, -0.7, 1.3])
    torch.testing.assert_close(advantages, expected[:, None] * MASK, rtol=1e-4, atol=1e-7)


# ── with the rollout of text ─────────────────────────────────────────────────────────────────────────────────────────


def collect(*, reference_seed=None, kl_coef=0.0, reward=None, rollout=None, **settings):
    config = PpoConfig(rollout_episodes=8, minibatch_episodes=8, kl=FixedKLConfig(coef=kl_coef), **settings)
    trainer = tiny.trainer(config, reward=reward, reference_seed=reference_seed, rollout=rollout)
    return trainer.rollout.collect(0, kl_coef=kl_coef)


def test_kl_to_the_reference_is_0_at_the_start():
    experience = collect()
    assert float(experience.ref_kl.abs().max()) < 1e-5
    assert experience.metrics["ref_kl/sequence"] == pytest.approx(0, abs=1e-5)


def test_kl_is_a_penalty_where_the_policy_likes_a_token_more_than_the_reference():
    free, held = collect(reference_seed=1), collect(reference_seed=1, kl_coef=0.5)
    frozen = tiny.reference(1)
    ref_logprobs = frozen(held.inputs).detach()
    kl = (held.old_logprobs - ref_logprobs) * held.mask
    assert float(kl.abs().max()) > 0.5
    torch.testing.assert_close(held.rewards, free.rewards - 0.5 * kl)
    torch.testing.assert_close(held.ref_kl, kl.sum(1))
    assert held.metrics["ref_kl/sequence"] == pytest.approx(float(kl.sum(1).mean()), rel=1e-5)
    assert held.metrics["ref_kl/token"] == pytest.approx(float(kl.sum() / held.mask.sum()), rel=1e-5)


def test_score_stands_at_the_last_token_alone():
    experience = collect(reward=tiny.Scripted(lambda text: 2.0 + len(text)))
    for row, length in enumerate(experience.mask.sum(1).tolist()):
        assert experience.rewards[row].nonzero().flatten().tolist() == [length - 1]
        assert experience.terminated[row].nonzero().flatten().tolist() == [length - 1]
        assert float(experience.rewards[row, length - 1]) == float(experience.scores[row])


def test_each_prompt_comes_group_size_times_in_a_row_and_all_before_one_comes_again():
    config = PpoConfig(estimator="rloo", group_size=2, rollout_episodes=8, minibatch_episodes=8)
    rollout = tiny.trainer(config).rollout
    drawn = []
    for iteration in range(4):
        inputs = rollout.collect(iteration, kl_coef=0.0).inputs
        drawn += [tuple(row[:n]) for row, n in zip(inputs.ids.tolist(), inputs.prompt_tokens.tolist(), strict=True)]
    assert drawn[::2] == drawn[1::2]
    epochs = [drawn[0:16:2], drawn[16::2]]  # 8 prompts, of which an iteration draws 4
    assert [sorted(epoch) for epoch in epochs] == [sorted(prompt.ids for prompt in tiny.prompts())] * 2
    assert epochs[0] != epochs[1]


def test_the_same_iteration_draws_the_same_in_another_process_and_another_one_differs():
    config = PpoConfig(rollout_episodes=8, minibatch_episodes=8)
    first, again = (tiny.trainer(config).rollout.collect(3, kl_coef=0.0) for _ in range(2))
    other = tiny.trainer(config).rollout.collect(4, kl_coef=0.0)
    assert first.inputs.ids.tolist() == again.inputs.ids.tolist()
    assert first.inputs.ids.tolist() != other.inputs.ids.tolist()


# ── shaping of the score ─────────────────────────────────────────────────────────────────────────────────────────────

LENGTH = tiny.Scripted(lambda text: float(len(text)))


def unfinished(experience):
    """(B,) bool: eight tokens without an EOS at their end."""
    ends = experience.inputs.prompt_tokens + experience.mask.sum(1) - 1
    return experience.inputs.ids[torch.arange(8), ends] != tiny.EOS


def test_missing_eos_score_replaces_what_the_reward_says():
    plain, shaped = collect(reward=LENGTH), collect(reward=LENGTH, missing_eos_score=-1.0)
    cut = unfinished(plain)
    assert 0 < int(cut.sum()) < 8
    assert plain.metrics["eos_rate"] == 1 - float(cut.float().mean())
    assert plain.scores[cut].tolist() == [8.0] * int(cut.sum())
    assert shaped.scores[cut].tolist() == [-1.0] * int(cut.sum())
    assert shaped.scores[~cut].tolist() == plain.scores[~cut].tolist()
    assert shaped.metrics["score/mean"] == plain.metrics["score/mean"]  # what the reward said
    assert shaped.metrics["score/shaped_mean"] == pytest.approx(float(shaped.scores.mean()))


def test_a_reward_of_the_prompt_alone_shows_beside_what_a_missing_eos_costs():
    group = {"estimator": "rloo", "group_size": 4}
    experience = collect(reward=tiny.Scripted(lambda text: 3.0), missing_eos_score=-1.0, **group)
    assert float(experience.scores.std()) > 0  # some responses end, and some do not
    assert experience.metrics["score/within_prompt_std"] == 0


def test_missing_eos_penalty_is_subtracted():
    plain, shaped = collect(reward=LENGTH), collect(reward=LENGTH, missing_eos_penalty=2.5)
    torch.testing.assert_close(plain.scores - shaped.scores, 2.5 * unfinished(plain))


def test_length_penalty_counts_tokens_beyond_the_target():
    plain = collect(reward=LENGTH)
    shaped = collect(reward=LENGTH, length_penalty=0.25, length_penalty_tokens=5)
    lengths = plain.mask.sum(1)
    assert int(lengths.max()) > 5 > int(lengths.min())
    torch.testing.assert_close(plain.scores - shaped.scores, 0.25 * (lengths - 5).clamp(min=0))


def test_brevity_penalty_counts_tokens_missing_to_the_target():
    plain = collect(reward=LENGTH)
    shaped = collect(reward=LENGTH, brevity_penalty=0.25, brevity_penalty_tokens=5)
    lengths = plain.mask.sum(1)
    assert int(lengths.max()) > 5 > int(lengths.min())
    torch.testing.assert_close(plain.scores - shaped.scores, 0.25 * (5 - lengths).clamp(min=0))


def test_clip_score_bounds_the_score_and_reports_the_share():
    shaped = collect(reward=LENGTH, clip_score=3.0)
    plain = collect(reward=LENGTH).scores
    assert shaped.scores.tolist() == [min(score, 3.0) for score in plain.tolist()]
    assert shaped.metrics["score/clipped_share"] == pytest.approx(float((plain > 3).float().mean()))
    assert shaped.metrics["score/max"] == float(plain.max())


def test_a_missing_eos_costs_the_same_however_good_the_rest_is():
    shaped = collect(reward=LENGTH, missing_eos_score=-1.0, clip_score=0.5, length_penalty=1.0)
    assert set(shaped.scores[unfinished(shaped)].tolist()) == {-1.0}


def test_a_stop_token_ends_a_response_as_eos_does():
    shaped = collect(
        reward=LENGTH, missing_eos_score=-1.0, rollout=RolloutConfig(max_response_tokens=8, stop_tokens=("a", "b"))
    )
    plain = collect(reward=LENGTH)
    assert shaped.metrics["eos_rate"] > plain.metrics["eos_rate"]
    ended = [sample["finish_reason"] == "stop" for sample in shaped.samples]
    assert any(ended)
    assert all(
        sample["response"][-1:] in {"a", "b"} for sample, is_stop in zip(shaped.samples, ended, strict=True) if is_stop
    )


def test_grpo_may_leave_the_deviation_out():
    config = PpoConfig(estimator="grpo", group_size=2, rollout_episodes=4, minibatch_episodes=4, normalize_std=False)
    advantages, _ = advantages_and_returns(made(), config)
    expected = torch.tensor([1.5, -1.5, -1.75, 1.75])  # half of 1 - -2, and of 0.5 - 4
    torch.testing.assert_close(advantages, expected[:, None] * MASK)


def test_reinforce_is_what_a_token_still_earns_whitened():
    config = PpoConfig(estimator="reinforce++", rollout_episodes=4, minibatch_episodes=4)
    advantages, returns = advantages_and_returns(made(kl_coef=0.5), config)
    raw = torch.tensor([0.9, 0.95, 0.85, -2.5, 0.0, 0.25, 4.5, 4.5, 4.5])  # score - 0.5 * the KL from here on
    torch.testing.assert_close(raw_advantages_and_returns(made(kl_coef=0.5), config)[0][MASK], raw)
    torch.testing.assert_close(advantages[MASK], (raw - raw.mean()) / raw.std(correction=0))
    assert not returns.any()


def test_reinforce_with_a_baseline_subtracts_the_mean_score_of_the_group():
    config = PpoConfig(estimator="reinforce++-baseline", group_size=2, rollout_episodes=4, minibatch_episodes=4)
    advantages, returns = advantages_and_returns(made(kl_coef=0.5), config)
    raw = torch.tensor([1.4, 1.45, 1.35, -2.0, -2.25, -2.0, 2.25, 2.25, 2.25])  # means -0.5 and 2.25
    torch.testing.assert_close(raw_advantages_and_returns(made(kl_coef=0.5), config)[0][MASK], raw)
    torch.testing.assert_close(advantages[MASK], (raw - raw.mean()) / raw.std(correction=0))
    assert not returns.any()


def test_the_critic_may_have_a_lambda_of_its_own():
    value = ValueConfig(gae_lambda=1.0)
    advantages, returns = advantages_and_returns(made(kl_coef=0.3), PpoConfig(gae_lambda=0.5, value=value))
    expected, _ = advantages_and_returns(made(kl_coef=0.3), PpoConfig(gae_lambda=0.5))
    _, monte_carlo = advantages_and_returns(made(kl_coef=0.3), PpoConfig(gae_lambda=1.0))
    assert torch.equal(advantages, expected)
    assert torch.equal(returns, monte_carlo)
