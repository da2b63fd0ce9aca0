"""Texts that are learnt beside PPO: the gradient is that of the sum of two losses, and their order goes on."""

import pytest
import torch

from rlhfkit.config.ppo import ValueConfig
from rlhfkit.errors import DataError
from rlhfkit.machine.interrupts import Paused
from rlhfkit.training.ppo import run_iteration
from rlhfkit.training.ptx import Ptx
from rlhfkit.training.update import update
from tests.training import tiny
from tests.training.test_ppo_update import (
    Recorder,
    assert_same_gradient,
    gradient_of,
    make_batch,
    one_minibatch,
)
from tests.training.test_sft import TEXTS, plain_loss
from tests.training.test_train_ppo import assert_identical, metrics, run, settings, weights


def with_texts(trainer, *, num=6, tokens=8192, coef=0.7, texts=TEXTS):
    trainer.ptx = Ptx(trainer.policy, texts, coef, num, tokens, seed=3)
    return trainer


def gradient_with_texts(config, *, iteration=0, **options):
    trainer = with_texts(tiny.trainer(config), **options)
    recorder = Recorder(trainer.policy)
    trainer.optimizers, trainer.iteration = {"policy": recorder}, iteration
    found = update(trainer, *make_batch(trainer.policy))
    return recorder.gradients[0], found


@pytest.mark.parametrize("tokens", [8192, pytest.param(9, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("network", ["separate", pytest.param("shared", marks=pytest.mark.thorough)])
def test_the_gradient_is_that_of_the_sum_of_the_two_losses(network, tokens):
    config = one_minibatch(value=ValueConfig(network=network))
    policy = tiny.policy(0, critic=network).double()
    loss = plain_loss(policy.language_model, TEXTS)  # token by token, in float64
    torch.autograd.backward(0.7 * loss)
    expected = gradient_of(config)
    assert max(float(p.grad.abs().max()) for p in policy.parameters() if p.grad is not None) > 0.01
    for name, parameter in policy.named_parameters():
        if parameter.grad is not None:
            expected[name] = expected[name] + parameter.grad.float()
    found, of_update = gradient_with_texts(config, tokens=tokens)
    assert_same_gradient(found, expected)
    assert of_update["ppo/ptx_loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_a_policy_that_may_not_move_learns_no_texts():
    trainer = with_texts(tiny.trainer(settings(value=ValueConfig(warmup_iterations=1))))
    _, first = run_iteration(trainer)
    _, second = run_iteration(trainer)
    assert ("ppo/ptx_loss" in first, "ppo/ptx_loss" in second) == (False, True)


def test_all_texts_are_learnt_before_one_comes_again():
    ptx = Ptx(None, TEXTS, 1.0, 4, 64, seed=0)
    learnt = [text for number in range(3) for text in ptx.texts_of(number)]
    for half in (learnt[:6], learnt[6:]):
        assert sorted(map(str, half)) == sorted(map(str, TEXTS))
    assert learnt[:6] != learnt[6:]
    with pytest.raises(DataError, match=r"ppo\.ptx has no rows"):
        Ptx(None, [], 1.0, 4, 64, seed=0)


def test_a_stopped_run_goes_on_with_the_texts_that_were_next(tmp_path):
    def trained(directory, *, until=None):
        trainer = with_texts(tiny.trainer(settings(iterations=2, epochs=1)), num=3)
        run(trainer, directory, until=until)
        return weights(trainer)

    whole = trained(tmp_path / "whole")
    with pytest.raises(Paused):
        trained(tmp_path / "cut", until=1)
    assert_identical(trained(tmp_path / "cut"), whole)
    losses = [row["ppo/ptx_loss"] for row in metrics(tmp_path / "cut")]
    assert losses[1] < losses[0]
