"""The update of PPO: which gradient it follows, what it reports, and what each setting changes."""

import dataclasses
import itertools

import pytest
import torch

from rlhfkit.config.ppo import PpoConfig, ValueConfig
from rlhfkit.config.training import OptimConfig
from rlhfkit.errors import TrainingError
from rlhfkit.padding import Sequences
from rlhfkit.rollout.experience import Experience
from rlhfkit.training.advantages import advantages_and_returns
from rlhfkit.training.ppo import PpoTrainer, optimizers_for
from rlhfkit.training.update import update
from tests.oracles import ppo as oracle
from tests.training import tiny

LENGTHS = (1, 6, 3, 8, 2, 5, 4, 1)


class Recorder:
    """Stands where an optimizer stands, and keeps the gradient instead of following it."""

    learning_rate = 0.0

    def __init__(self, module):
        self.module = module
        self.gradients = []

    def step(self):
        named = list(self.module.named_parameters())
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})
        for _, parameter in named:
            parameter.grad = None
        return 0.0


def make_batch(policy, *, seed=5, lengths=LENGTHS):
    """(experience, advantages, returns) of responses of `lengths` tokens, whose ratios are far from 1."""
    rng = torch.Generator().manual_seed(seed)
    responses = [torch.randint(1, 14, (length,), generator=rng).tolist() for length in lengths]
    prompts = [prompt.ids for prompt, _ in zip(itertools.cycle(tiny.prompts()), responses, strict=False)]
    inputs = Sequences.join(prompts, responses, pad=tiny.PAD)
    mask = inputs.mask
    with torch.no_grad():
        output = policy.evaluate(inputs)

    def noisy(x, spread):
        return (x + spread * torch.randn(mask.shape, generator=rng)) * mask

    experience = Experience(
        inputs=inputs,
        mask=mask,
        old_logprobs=noisy(output.logprobs, 0.3),
        old_values=noisy(output.values, 0.3),
        next_values=torch.zeros(mask.shape),
        terminated=mask & False,
        ended=mask & False,
        rewards=torch.zeros(mask.shape),
        scores=torch.zeros(len(mask)),
        ref_kl=torch.zeros(len(mask)),
    )
    return experience, noisy(torch.zeros(mask.shape), 1.0), noisy(output.values, 0.5)


def gradient_of(config, *, change=lambda batch: batch, policy_seed=0, iteration=0):
    """The gradient of one minibatch, as the optimizer sees it."""
    trainer = tiny.trainer(config, policy_seed=policy_seed)
    recorder = Recorder(trainer.policy)
    trainer.optimizers, trainer.iteration = {"policy": recorder}, iteration
    update(trainer, *change(make_batch(trainer.policy)))
    (gradient,) = recorder.gradients
    return gradient


def one_minibatch(**settings):
    return PpoConfig(rollout_episodes=8, minibatch_episodes=8, epochs=1, **settings)


def assert_same_gradient(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5, msg=name)


def collected(config, **options):
    """A trainer with its first experience."""
    trainer = tiny.trainer(config, **options)
    experience = trainer.rollout.collect(0, kl_coef=config.kl.coef)
    return trainer, experience, *advantages_and_returns(experience, config)


# ── the gradient ─────────────────────────────────────────────────────────────────────────────────────────────────────


def plain_loss(policy, experience, advantages, returns, *, value_coef, clip_range, value_clip_range):
    """The loss by the papers' formulas, a row at a time from whole logits, without masks and padding."""
    causal_lm, critic = policy.language_model.causal_lm, policy.critic
    losses = []
    for row, length in enumerate(LENGTHS):
        prompt = int(experience.inputs.prompt_tokens[row])
        ids = experience.inputs.ids[row, : prompt + length]
        logits = causal_lm(input_ids=ids[None]).logits[0]
        logits = torch.cat([torch.full_like(logits[:, :1], -1e9), logits[:, 1:]], dim=1)  # PAD cannot be sampled
        hidden = critic.classifier.model(input_ids=ids[None]).last_hidden_state[0]
        for step in range(length):
            place = prompt + step - 1
            logprob = logits[place].log_softmax(-1)[ids[place + 1]]
            ratio = (logprob - experience.old_logprobs[row, step]).exp()
            advantage = advantages[row, step]
            actor = -torch.min(ratio * advantage, ratio.clamp(1 - clip_range, 1 + clip_range) * advantage)
            value, old = critic.head.linear(hidden[place])[0], experience.old_values[row, step]
            clipped = old + (value - old).clamp(-value_clip_range, value_clip_range)
            error = torch.max((value - returns[row, step]) ** 2, (clipped - returns[row, step]) ** 2)
            losses.append(actor + value_coef * 0.5 * error)
    assert len(losses) == sum(LENGTHS)
    return torch.stack(losses).mean()


def test_gradient_is_that_of_the_mean_over_all_tokens_of_the_minibatch():
    policy = tiny.policy(0)
    loss = plain_loss(policy, *make_batch(policy), value_coef=1.0, clip_range=0.2, value_clip_range=0.1)
    torch.autograd.backward(loss)
    expected = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    found = gradient_of(one_minibatch(clip_range=0.2, value=ValueConfig(clip_range=0.1)))
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 0.1
    assert_same_gradient(found, expected)


@pytest.mark.parametrize("microbatch_tokens", [8192, 16])
def test_importance_weights_scale_the_policy_loss_of_each_token_and_nothing_else(microbatch_tokens):
    def weighted(batch):
        experience, advantages, returns = batch
        weights = 0.25 + experience.inputs.ids.sum(1)[:, None] % 4 * torch.ones(experience.mask.shape)
        seen.append(weights)
        return dataclasses.replace(experience, importance_weights=weights), advantages, returns

    def scaled(batch):
        # Without clipping, a loss is linear in its advantage.
        experience, advantages, returns = batch
        return experience, advantages * seen[0], returns

    seen: list[torch.Tensor] = []
    config = one_minibatch(clip_range=0.999, microbatch_tokens=microbatch_tokens)
    found = gradient_of(config, change=weighted)
    assert len(seen[0].unique()) > 2
    assert_same_gradient(found, gradient_of(config, change=scaled))


@pytest.mark.parametrize("network", ["separate", "shared"])
@pytest.mark.parametrize(("microbatch_tokens", "num_parts"), [(48, 2), (16, 4), (1, 8)])
def test_microbatches_do_not_change_the_gradient(monkeypatch, network, microbatch_tokens, num_parts):
    settings = {"entropy_coef": 0.1, "value": ValueConfig(network=network)}
    whole = gradient_of(one_minibatch(microbatch_tokens=10_000, **settings))
    widths = []
    evaluate = tiny.TextPolicy.evaluate
    monkeypatch.setattr(
        tiny.TextPolicy,
        "evaluate",
        lambda self, inputs, **options: widths.append(len(inputs)) or evaluate(self, inputs, **options),
    )
    parts = gradient_of(one_minibatch(microbatch_tokens=microbatch_tokens, **settings))
    assert widths[0] == 8  # that made the batch
    assert len(widths[1:]) == num_parts
    assert sum(widths[1:]) == 8
    assert_same_gradient(parts, whole)


def test_row_order_does_not_change_the_gradient():
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])

    def permuted(batch):
        experience, advantages, returns = batch
        fields = ("inputs", "mask", "old_logprobs", "old_values")
        moved = {name: getattr(experience, name)[order] for name in fields}
        return dataclasses.replace(experience, **moved), advantages[order], returns[order]

    config = one_minibatch(microbatch_tokens=24)
    assert_same_gradient(gradient_of(config, change=permuted), gradient_of(config))


def test_padding_does_not_change_the_gradient():
    def padded(batch):
        experience, advantages, returns = batch
        pad = torch.nn.functional.pad
        inputs = Sequences(
            pad(experience.inputs.ids, (0, 5), value=7), experience.inputs.prompt_tokens, pad(experience.mask, (0, 3))
        )
        moved = {name: pad(getattr(experience, name), (0, 3), value=0.5) for name in ("old_logprobs", "old_values")}
        wide = dataclasses.replace(experience, inputs=inputs, mask=inputs.mask, **moved)
        return wide, pad(advantages, (0, 3), value=9.0), pad(returns, (0, 3), value=9.0)

    assert_same_gradient(gradient_of(one_minibatch(), change=padded), gradient_of(one_minibatch()))


def test_minibatches_are_cut_anew_each_epoch_and_cover_every_row():
    config = PpoConfig(rollout_episodes=8, minibatch_episodes=2, epochs=3)
    trainer = tiny.trainer(config)
    batch = make_batch(trainer.policy)
    seen = []
    evaluate = trainer.policy.evaluate
    trainer.policy.evaluate = lambda inputs, **options: seen.append(inputs.ids.tolist()) or evaluate(inputs, **options)
    update(trainer, *batch)
    all_rows = sorted(batch[0].inputs.ids.tolist())
    epochs = [list(itertools.chain(*seen[start : start + 4])) for start in (0, 4, 8)]
    assert [sorted(epoch) for epoch in epochs] == [all_rows] * 3
    assert epochs[0] != epochs[1] != epochs[2]


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def largest_difference(a, b):
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_entropy_bonus_pulls_towards_higher_entropy():
    with_bonus, without = gradient_of(one_minibatch(entropy_coef=0.5)), gradient_of(one_minibatch())
    policy = tiny.policy(0)
    experience, _, _ = make_batch(policy)
    torch.autograd.backward(policy.evaluate(experience.inputs).entropy.sum() / sum(LENGTHS))
    for name, parameter in policy.language_model.named_parameters(prefix="language_model"):
        torch.testing.assert_close(without[name] - with_bonus[name], 0.5 * parameter.grad, atol=1e-6, rtol=1e-4)


def test_dual_clip_bounds_what_one_bad_token_does():
    def one_bad_token(batch):
        experience, advantages, returns = batch
        old_logprobs = experience.old_logprobs.clone()
        old_logprobs[0, 0] -= 3.0  # ratio e^3 or so
        advantages = torch.zeros_like(advantages)
        advantages[0, 0] = -1.0
        return dataclasses.replace(experience, old_logprobs=old_logprobs), advantages, returns

    settings = {"estimator": "rloo", "group_size": 2}
    free = gradient_of(one_minibatch(**settings), change=one_bad_token)
    bounded = gradient_of(one_minibatch(dual_clip=3.0, **settings), change=one_bad_token)
    assert max(float(gradient.abs().max()) for gradient in free.values()) > 0.1
    assert all(float(gradient.abs().max()) == 0 for gradient in bounded.values())


def test_value_clip_range_stops_the_gradient_of_values_that_moved_far():
    def moved_towards_their_returns(batch):
        experience, advantages, returns = batch
        # Old -1, now 0, return 1: clipped to -0.8, the error is larger, and no longer depends on the value.
        old_values = experience.old_values * 0 - 1
        return dataclasses.replace(experience, old_values=old_values), advantages, returns * 0 + 1

    def critics(gradient):
        return {name: value for name, value in gradient.items() if name.startswith("critic.")}

    def with_clip(clip_range):
        config = one_minibatch(value=ValueConfig(network="shared", clip_range=clip_range))
        return critics(gradient_of(config, change=moved_towards_their_returns))

    assert all(float(value.abs().max()) > 0 for value in with_clip(0).values())
    assert all(float(value.abs().max()) == 0 for value in with_clip(0.2).values())


def test_shared_critic_is_weighed_by_its_coefficient_and_a_separate_one_is_not():
    def head(network, coef):
        gradient = gradient_of(one_minibatch(value=ValueConfig(network=network, coef=coef)))
        return next(value for name, value in gradient.items() if name.endswith("linear.weight"))

    torch.testing.assert_close(head("shared", 0.4), 4 * head("shared", 0.1))
    torch.testing.assert_close(head("separate", 0.4), head("separate", 0.1), rtol=0, atol=0)


@pytest.mark.parametrize("network", ["separate", "shared"])
def test_critic_warmup_moves_only_the_critic(network):
    optim = OptimConfig(learning_rate=1e-2, weight_decay=0.1)
    value = ValueConfig(network=network, optim=optim, warmup_iterations=1)
    config = PpoConfig(rollout_episodes=8, minibatch_episodes=4, iterations=2, optim=optim, value=value)
    trainer = tiny.trainer(config)
    batch = make_batch(trainer.policy)

    def moved_parts():
        before = {name: p.detach().clone() for name, p in trainer.policy.named_parameters()}
        update(trainer, *batch)
        after = dict(trainer.policy.named_parameters())
        return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}

    assert moved_parts() == {"critic"}
    assert trainer.optimizers["policy"].updates_done == (0 if network == "separate" else 8)
    trainer.iteration = 1
    assert moved_parts() == {"critic", "language_model"}


def test_critic_warmup_means_nothing_without_a_critic():
    config = PpoConfig(
        estimator="rloo", group_size=2, rollout_episodes=8, minibatch_episodes=8, value=ValueConfig(warmup_iterations=5)
    )
    trainer, *batch = collected(config)
    assert update(trainer, *batch)["policy/grad_norm"] > 0


def test_schedules_end_with_the_last_iteration_whatever_the_warmup():
    value = ValueConfig(warmup_iterations=2)
    config = PpoConfig(rollout_episodes=8, minibatch_episodes=4, epochs=3, iterations=5, value=value)
    optimizers = optimizers_for(tiny.policy(), config, seed=0)
    assert optimizers["policy"].num_updates == 3 * 3 * 2
    assert optimizers["value"].num_updates == 5 * 3 * 2
    shared = config.model_copy(update={"value": ValueConfig(network="shared")})
    assert {
        name: o.num_updates for name, o in optimizers_for(tiny.policy(critic="shared"), shared, seed=0).items()
    } == {"policy": 5 * 3 * 2}


# ── what it reports ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_first_update_has_the_published_shape():
    """Over the epochs of the first update approx_kl and clip fraction rise from 0, as in the N+ reference output."""
    reports = []
    for epochs in (1, 2, 3, 4):  # a report is of the last epoch
        config = PpoConfig(
            rollout_episodes=64, minibatch_episodes=64, epochs=epochs, optim=OptimConfig(learning_rate=2e-3)
        )
        trainer, *batch = collected(config)
        reports.append(update(trainer, *batch))
        assert reports[-1]["ppo/num_epochs"] == epochs
        assert reports[-1]["ppo/ratio_first_epoch_max_deviation"] < 1e-4
    approx_kl = [report["ppo/approx_kl"] for report in reports]
    clip_fraction = [report["ppo/clip_fraction"] for report in reports]
    assert abs(approx_kl[0]) < 1e-6
    assert clip_fraction[0] == 0
    assert approx_kl == sorted(approx_kl)
    assert clip_fraction == sorted(clip_fraction)
    assert 1e-3 < approx_kl[1] < approx_kl[3] < 0.1
    assert 0 < clip_fraction[3] < 0.5
    # The mean over the epochs falls below the first epoch's, whose ratio is 1 and whose advantages are centred: 0.
    assert abs(reports[0]["ppo/policy_loss"]) < 1e-6
    assert reports[3]["ppo/policy_loss"] < reports[1]["ppo/policy_loss"] < 0


def test_reported_numbers_equal_the_explicit_loops():
    trainer = tiny.trainer(one_minibatch(microbatch_tokens=24))
    experience, advantages, returns = make_batch(trainer.policy)
    with torch.no_grad():
        now = trainer.policy.evaluate(experience.inputs)
    report = update(trainer, experience, advantages, returns)
    mask, logprobs, old = (x.double().numpy() for x in (experience.mask, now.logprobs, experience.old_logprobs))
    mask = mask.astype(bool)
    ratio = torch.from_numpy(logprobs - old).exp().numpy()[mask]
    expected = {
        "ppo/policy_loss": oracle.policy_loss(logprobs, old, advantages.double().numpy(), mask, 0.2, None),
        "ppo/approx_kl": float((ratio - 1 - (logprobs - old)[mask]).mean()),
        "ppo/clip_fraction": float((abs(ratio - 1) > 0.2).mean()),
        "ppo/ratio_first_epoch_max_deviation": float(abs(ratio - 1).max()),
    }
    assert {name: report[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert 0.2 < report["ppo/clip_fraction"] < 0.8  # the batch is one in which that means something


def test_kl_and_clip_fraction_are_what_the_last_epoch_saw():
    def config(epochs):
        optim = OptimConfig(learning_rate=1e-2)
        return PpoConfig(rollout_episodes=64, minibatch_episodes=64, epochs=epochs, optim=optim)

    trainer, experience, *estimates = collected(config(1))
    update(trainer, experience, *estimates)
    with torch.no_grad():
        log_ratio = (trainer.policy.evaluate(experience.inputs).logprobs - experience.old_logprobs)[experience.mask]
    report = update(*collected(config(2)))
    assert report["ppo/approx_kl"] == pytest.approx((log_ratio.exp() - 1 - log_ratio).mean().item(), rel=1e-4)
    assert report["ppo/clip_fraction"] == pytest.approx(((log_ratio.exp() - 1).abs() > 0.2).float().mean().item())
    assert report["ppo/clip_fraction"] > 0.1


def test_target_kl_stops_the_epochs():
    settings = {"rollout_episodes": 64, "minibatch_episodes": 64, "epochs": 4, "optim": OptimConfig(learning_rate=2e-3)}
    trainer, *batch = collected(PpoConfig(**settings, target_kl=1e-4))
    report = update(trainer, *batch)
    assert report["ppo/num_epochs"] == 2  # the first epoch's KL is 0, the second's is above
    assert trainer.optimizers["policy"].updates_done == 2
    trainer, *batch = collected(PpoConfig(**settings, target_kl=10.0))
    assert update(trainer, *batch)["ppo/num_epochs"] == 4


# ── what is not finite ───────────────────────────────────────────────────────────────────────────────────────────────


def weights(trainer: PpoTrainer):
    return {name: parameter.detach().clone() for name, parameter in trainer.policy.named_parameters()}


def test_a_loss_that_is_not_finite_stops_before_the_weights_change():
    trainer = tiny.trainer(one_minibatch())
    trainer.iteration = 3
    experience, advantages, returns = make_batch(trainer.policy)
    advantages[4, 1] = torch.nan
    before = weights(trainer)
    with pytest.raises(TrainingError, match=r"PPO loss is not finite in iteration 3, epoch 0 \(policy nan, value \d"):
        update(trainer, experience, advantages, returns)
    torch.testing.assert_close(weights(trainer), before, rtol=0, atol=0)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change():
    trainer = tiny.trainer(one_minibatch())
    batch = make_batch(trainer.policy)
    before = weights(trainer)
    trainer.policy.language_model.causal_lm.lm_head.weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(TrainingError, match=r"gradient of the policy is (nan|inf) at update 0"):
        update(trainer, *batch)
    torch.testing.assert_close(weights(trainer), before, rtol=0, atol=0)
