"""The average of the policy's weights: the numbers of a calculation by hand, and a stopped run goes on with them."""

from pathlib import Path

import pytest
import torch

from rlhfkit.config.model import LoraConfig
from rlhfkit.config.ppo import PpoConfig, ValueConfig
from rlhfkit.config.training import OptimConfig
from rlhfkit.config.watch import WatchConfig
from rlhfkit.machine.interrupts import Paused
from rlhfkit.training.checkpoint import Checkpoints, subset
from rlhfkit.training.ema import averaged, share_of_start
from rlhfkit.training.memory import plan_of_ppo
from rlhfkit.training.ppo import run_iteration
from tests.tiny import Directory, builder, ppo_trainer
from tests.training import tiny
from tests.training.test_best_checkpoint import train
from tests.training.test_train_ppo import assert_identical, run, settings, weights

SHORT = {"iterations": 3, "rollout_episodes": 6, "minibatch_episodes": 3, "epochs": 2, "min_eos_rate": 0.0}


def test_an_average_is_that_of_a_calculation_by_hand():
    average, weight = torch.tensor([1.0, -2.0]), torch.tensor([2.0, -2.0])
    averaged([average], [weight], decay=0.9)
    torch.testing.assert_close(average, torch.tensor([1.1, -2.0]))  # 0.9 * 1 + 0.1 * 2
    averaged([average], [torch.tensor([4.0, 8.0])], decay=0.9)
    torch.testing.assert_close(average, torch.tensor([1.39, -1.0]))  # 0.9 * 1.1 + 0.1 * 4; 0.9 * -2 + 0.1 * 8
    assert share_of_start(0.5, 3) == 0.125


def of_every_update(trainer, num):
    """name → the policy's float32 weights before the first and after each update of `num` iterations."""
    optimizer, step = trainer.optimizers["policy"], trainer.optimizers["policy"].step
    seen = {name: [master.detach().clone()] for name, master in optimizer.masters.items()}

    def step_and_look():
        norm = step()
        for name, master in optimizer.masters.items():
            seen[name].append(master.detach().clone())
        return norm

    optimizer.step = step_and_look
    for _ in range(num):
        run_iteration(trainer)
    return seen


@pytest.mark.parametrize("network", ["separate", "shared"])
def test_the_average_is_over_every_update_of_the_policy_and_of_nothing_else(network):
    trainer = tiny.trainer(settings(ema=0.8, value=ValueConfig(network=network)))
    seen = of_every_update(trainer, 2)
    assert trainer.ema.averages.keys() == {name for name in seen if not name.startswith("critic.")}
    for name, average in trainer.ema.averages.items():
        assert len(seen[name]) == 1 + 8  # two iterations of two epochs of two minibatches
        expected = seen[name][0].double()
        for weight in seen[name][1:]:
            expected = 0.8 * expected + 0.2 * weight.double()
        assert (expected - seen[name][-1]).abs().max() > 1e-3
        torch.testing.assert_close(average.double(), expected, rtol=1e-6, atol=1e-7)


def test_a_policy_that_may_not_move_has_an_average_that_does_not():
    trainer = tiny.trainer(settings(ema=0.5, value=ValueConfig(warmup_iterations=1)))
    before = {name: average.clone() for name, average in trainer.ema.averages.items()}
    run_iteration(trainer)
    assert_identical(trainer.ema.averages, before)
    run_iteration(trainer)
    assert not torch.equal(next(iter(before.values())), next(iter(trainer.ema.averages.values())))


def trainer_of(directory, model, *, lora=None, num_trained_layers=None, dtype="float32", **changes):
    config = PpoConfig(**{**SHORT, "optim": OptimConfig(learning_rate=1e-3), "ema": 0.9, **changes})
    made = builder(model, directory, lora=lora, num_trained_layers=num_trained_layers, dtype=dtype, ppo=config)
    return ppo_trainer(made)


def test_an_average_of_bfloat16_weights_is_float32_and_moves_by_less_than_they_can(directory_of: Directory, tmp_path):
    trainer = trainer_of(
        tmp_path, directory_of("llama"), dtype="bfloat16", optim=OptimConfig(learning_rate=1e-5), estimator="rloo",
        group_size=2,
    )  # fmt: skip
    seen = of_every_update(trainer, 1)
    name, average = next((name, each) for name, each in trainer.ema.averages.items() if "q_proj" in name)
    assert average.dtype == torch.float32 and not torch.equal(average, average.bfloat16().float())
    expected = seen[name][0].double()
    for weight in seen[name][1:]:
        expected = 0.9 * expected + 0.1 * weight.double()
    assert (average.double() - expected).abs().max() < (expected - seen[name][0]).abs().max() / 5


@pytest.mark.parametrize(
    ("part", "learns"), [({"lora": LoraConfig(rank=2)}, ".lora_"), ({"num_trained_layers": 1}, "layers.1.")]
)
def test_what_does_not_learn_is_not_averaged_and_the_model_with_the_average_comes_and_goes(
    part, learns, directory_of: Directory, tmp_path
):
    trainer = trainer_of(tmp_path, directory_of("llama"), value=ValueConfig(network="shared"), **part)
    run_iteration(trainer)
    names = [name for name in trainer.ema.averages if learns in name]
    assert names and ("lora" not in part or len(names) == len(trainer.ema.averages))
    assert not any("layers.0." in name for name in trainer.ema.averages) or "lora" in part
    own = {name: parameter.detach().clone() for name, parameter in trainer.policy.named_parameters()}
    with trainer.ema.in_place(trainer.policy):
        there = dict(trainer.policy.named_parameters())
        assert_identical({name: there[name] for name in trainer.ema.averages}, trainer.ema.averages)
        assert not torch.equal(there[names[0]], own[names[0]])
    assert_identical(dict(trainer.policy.named_parameters()), own)


def test_a_stopped_run_goes_on_with_its_average_bit_for_bit(tmp_path):
    def averages(directory: Path, *, until=None):
        trainer = tiny.trainer(settings(iterations=2, ema=0.7))
        run(trainer, directory, until=until)
        return trainer.ema.averages

    whole = averages(tmp_path / "whole")
    with pytest.raises(Paused):
        averages(tmp_path / "cut", until=1)
    assert_identical(averages(tmp_path / "cut"), whole)


def test_an_average_changes_no_bit_of_the_policy(tmp_path):
    with_it, without = tiny.trainer(settings(ema=0.9)), tiny.trainer(settings())
    for trainer in (with_it, without):
        run_iteration(trainer)
    assert without.ema is None
    assert_identical(weights(with_it), weights(without))


def test_a_run_that_ends_with_its_best_weights_has_the_average_up_to_them(tmp_path):
    watch = WatchConfig(best_metric="-score/mean", best_every_iterations=1)  # that of the first, since it learns
    trainer = tiny.trainer(settings(iterations=3, ema=0.7, end_with="best", watch=watch))
    _, checkpoints = train(trainer, tmp_path)
    assert trainer.kept.iterations == 0
    best = Checkpoints(checkpoints.directory, warn=pytest.fail).load_best()
    assert_identical(trainer.ema.averages, dict(subset("ema", best.tensors)))
    assert_identical(trainer.ema.averages, {
        name: weight for name, weight in weights(trainer).items() if name in trainer.ema.averages
    })  # fmt: skip


def test_a_plan_counts_the_average_and_its_copy_in_a_checkpoint():
    def planned(**changes):
        trainer = tiny.trainer(settings(**changes))
        plan = plan_of_ppo(trainer.policy, prompt_tokens=8, rollout=trainer.rollout.rollout, ppo=trainer.config)
        numbers = sum(p.numel() for p in trainer.policy.language_model.parameters())
        return plan, numbers

    (without, _), (plan, numbers) = planned(), planned(ema=0.9)
    assert (without.ema, plan.ema) == (0, 4 * numbers)
    assert plan.fixed - without.fixed == 2 * 4 * numbers
