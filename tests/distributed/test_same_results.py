"""The number of ranks changes the time, not the result."""

import json

import pytest
import torch

from rlhfkit.config.ppo import AdaptiveKLConfig, FixedKLConfig, PpoConfig, RolloutConfig, ValueConfig
from rlhfkit.config.training import OptimConfig, RewardModelConfig, SftConfig
from rlhfkit.distributed.ranks import ranks
from rlhfkit.errors import TrainingError
from rlhfkit.machine.progress import Progress
from rlhfkit.rollout.multi_turn import MultiTurnRollout
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.log import RunLog
from rlhfkit.training.advantages import advantages_and_returns
from rlhfkit.training.checkpoint import Checkpoints
from rlhfkit.training.ppo import train_ppo
from rlhfkit.training.ptx import Ptx
from rlhfkit.training.reward_model import EncodedPair, measure, train_reward_model
from rlhfkit.training.sft import LearntText, train_sft
from rlhfkit.training.update import update
from tests.distributed.together import together
from tests.rollout.test_multi_turn import Script
from tests.training import tiny
from tests.training.test_ppo_update import make_batch

LENGTHS = (1, 60, 3, 8, 31, 5, 47, 2, 1, 17, 29)


class Recorder:
    """Stands where an optimizer stands, and keeps the gradient of all ranks instead of following it."""

    learning_rate = 0.0

    def __init__(self, module):
        self.module = module
        self.gradients = []

    def step(self):
        named = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        ranks().add_up_gradients(list(named.values()))
        self.gradients.append({name: p.grad.clone() for name, p in named.items() if p.grad is not None})
        for parameter in named.values():
            parameter.grad = None
        return 0.0


def batch(policy):
    """Responses of 1 to 60 tokens."""
    return make_batch(policy, lengths=LENGTHS)


def gradients_of(config, *, texts=False):
    trainer = tiny.trainer(config)
    if texts:
        trainer.ptx = Ptx(trainer.policy, TEXTS, 0.7, 5, tokens_per_pass=9, seed=0)
    recorder = Recorder(trainer.policy)
    trainer.optimizers = {"policy": recorder}
    metrics = update(trainer, *batch(trainer.policy))
    return recorder.gradients, metrics


def assert_close(found, expected, *, relative=1e-6):
    norm = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= relative * norm, name


@pytest.mark.parametrize("num", [2, pytest.param(3, marks=pytest.mark.thorough)])
@pytest.mark.parametrize(
    "settings",
    [
        {"value": ValueConfig(network="shared")},
        {"value": ValueConfig(network="separate"), "entropy_coef": 0.01},
        {"estimator": "rloo", "group_size": 11},
        {"estimator": "grpo", "group_size": 11, "microbatch_tokens": 64},
        pytest.param({"preset": "gspo", "group_size": 11, "microbatch_tokens": 64}, marks=pytest.mark.thorough),
        pytest.param({"preset": "cispo", "group_size": 11, "loss_aggregation": "sequence"}, marks=pytest.mark.thorough),
        pytest.param({"preset": "dr_grpo", "group_size": 11, "loss_tokens": 9}, marks=pytest.mark.thorough),
    ],
    ids=["shared critic", "separate critic", "rloo", "grpo in microbatches", "gspo", "cispo", "dr_grpo"],
)
def test_gradient_of_a_minibatch_is_that_of_one_process(settings, num, tmp_path):
    config = PpoConfig(rollout_episodes=11, minibatch_episodes=11, epochs=1, **settings)
    ((expected,), metrics) = gradients_of(config)
    for (found,), of_ranks in together(num, lambda: gradients_of(config), tmp_path):
        assert_close(found, expected)
        assert of_ranks == pytest.approx(metrics, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("num", [2, pytest.param(3, marks=pytest.mark.thorough)])
def test_gradient_with_texts_beside_is_that_of_one_process(num, tmp_path):
    config = PpoConfig(rollout_episodes=11, minibatch_episodes=11, epochs=1)
    ((expected,), metrics) = gradients_of(config, texts=True)
    assert metrics["ppo/ptx_loss"] > 0
    for (found,), of_ranks in together(num, lambda: gradients_of(config, texts=True), tmp_path):
        assert_close(found, expected)
        assert of_ranks == pytest.approx(metrics, rel=1e-5, abs=1e-7)


def test_a_minibatch_may_have_fewer_rows_than_there_are_ranks(tmp_path):
    config = PpoConfig(rollout_episodes=11, minibatch_episodes=1, epochs=1)
    expected, _ = gradients_of(config)
    for found, _ in together(3, lambda: gradients_of(config), tmp_path):
        assert len(found) == len(expected) == 11
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)


def run_ppo(directory, **settings):
    """Metrics and samples of a few iterations, as the first rank writes them, and the weights of each."""
    usual = {"iterations": 3, "rollout_episodes": 8, "minibatch_episodes": 4, "epochs": 2, "min_eos_rate": 0.0}
    config = PpoConfig(**{**usual, "optim": OptimConfig(learning_rate=1e-2), **settings})
    trainer = tiny.trainer(config)
    run = RunDir(directory / f"of-{ranks().size}")
    with (
        RunLog(run, writes=ranks().is_first) as log,
        Progress(quiet=True).stage("ppo", total=1, unit="iteration") as stage,
    ):
        checkpoints = Checkpoints(run.checkpoints / "ppo", warn=pytest.fail)
        train_ppo(trainer, log=log, checkpoints=checkpoints, progress=stage)
        ranks().wait()
    weights = {name: parameter.detach() for name, parameter in trainer.policy.named_parameters()}
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    samples = [json.loads(line)["response"] for line in run.samples.read_text().splitlines()]
    numbers = [{k: v for k, v in line.items() if not k.startswith("time/") and k != "stage"} for line in lines]
    return numbers, samples, weights


@pytest.mark.parametrize("num", [2, pytest.param(3, marks=pytest.mark.thorough)])
@pytest.mark.parametrize(
    "settings",
    [
        {"target_kl": 1e-3},
        {"kl": AdaptiveKLConfig(type="adaptive")},
        {"estimator": "grpo", "group_size": 4},
        pytest.param({"kl": FixedKLConfig(place="loss", estimator="k3", coef=0.5)}, marks=pytest.mark.thorough),
        pytest.param({"preset": "reinforce++"}, marks=pytest.mark.thorough),
        pytest.param({"preset": "dapo", "group_size": 4, "epochs": 2}, marks=pytest.mark.thorough),
    ],
    ids=["epochs end early", "adaptive KL", "groups", "KL in the loss", "reinforce++", "dapo"],
)
def test_ppo_ends_with_the_same_numbers_texts_and_weights(settings, num, tmp_path):
    numbers, samples, weights = run_ppo(tmp_path, **settings)
    assert {line["ppo/num_epochs"] for line in numbers} == ({1.0} if "target_kl" in settings else {2.0})
    for found, texts, theirs in together(num, lambda: run_ppo(tmp_path, **settings), tmp_path):
        assert texts == samples
        for line, expected in zip(found, numbers, strict=True):
            assert line == pytest.approx(expected, rel=1e-3, abs=1e-4)
        for name, tensor in weights.items():
            torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=2e-4)


def test_all_ranks_have_the_same_bits(tmp_path):
    first, *others = together(3, lambda: run_ppo(tmp_path)[2], tmp_path)
    for other in others:
        assert all(torch.equal(other[name], tensor) for name, tensor in first.items())


def test_episodes_of_several_turns_are_the_same(tmp_path):
    def played():
        config = PpoConfig(rollout_episodes=8, minibatch_episodes=8, min_eos_rate=0.0)
        policy = tiny.policy()
        rollout = MultiTurnRollout(
            policy,
            tiny.reference(),
            Script,
            reward=None,
            rollout=RolloutConfig(max_response_tokens=3),
            ppo=config,
            max_prompt_tokens=40,
            seed=0,
        )
        experience = rollout.collect(0, kl_coef=0.1)
        return experience.inputs.ids, experience.rewards, experience.metrics

    ids, rewards, metrics = played()
    for found, paid, told in together(3, played, tmp_path):
        assert torch.equal(found, ids)
        torch.testing.assert_close(paid, rewards, rtol=0, atol=1e-5)
        assert told["episode/turns"] == metrics["episode/turns"]


TEXTS = [LearntText([2 + (row * place) % 11 for place in range(2 + row % 7)] + [1], 1 + row % 2) for row in range(20)]
PAIRS = [EncodedPair([2 + row % 9, 3, 4, 1], [5] * (1 + row % 5) + [1], 0.0, prompt=row) for row in range(20)]


def supervised(directory, train, *arguments, model, config):
    run = RunDir(directory / f"of-{ranks().size}-{config.__class__.__name__}")
    with RunLog(run, writes=ranks().is_first) as log:
        validation = train(
            model,
            *arguments,
            config,
            stage="sft" if train is train_sft else "reward_model",
            seed=0,
            log=log,
            checkpoints=Checkpoints(run.checkpoints / "stage", warn=pytest.fail),
            progress=Progress(quiet=True),
        )
        ranks().wait()
    return validation, {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.thorough
@pytest.mark.parametrize("packing", [True, False])
def test_sft_ends_with_the_same_weights(packing, tmp_path):
    def trained():
        config = SftConfig(
            minibatch_sequences=5,
            max_tokens=12,
            validation_share=0.2,
            packing=packing,
            epochs=2,
            optim=OptimConfig(learning_rate=1e-3),
        )
        return supervised(tmp_path, train_sft, TEXTS, model=tiny.language_model(), config=config)

    validation, weights = trained()
    for found, theirs in together(3, trained, tmp_path):
        assert found == pytest.approx(validation, rel=1e-5)
        for name, tensor in weights.items():
            torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=2e-5)


def test_reward_model_ends_with_the_same_weights_and_is_measured_alike(tmp_path):
    def trained():
        config = RewardModelConfig(
            minibatch_pairs=4, validation_share=0.2, epochs=2, optim=OptimConfig(learning_rate=1e-3)
        )
        model = tiny.reward_model()
        validation, weights = supervised(tmp_path, train_reward_model, PAIRS, model=model, config=config)
        return validation, weights, measure(model, PAIRS, max_tokens=64)

    validation, weights, measured = trained()
    for found, theirs, of_ranks in together(3, trained, tmp_path):
        assert found == pytest.approx(validation, rel=1e-5)
        assert of_ranks["accuracy"] == measured["accuracy"]
        assert of_ranks["by_length_difference"] == measured["by_length_difference"]
        for name, tensor in weights.items():
            torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=2e-5)


def test_a_loss_that_is_not_finite_on_one_rank_ends_there(tmp_path):
    def trained():
        trainer = tiny.trainer(PpoConfig(rollout_episodes=11, minibatch_episodes=11, epochs=1))
        experience, advantages, returns = batch(trainer.policy)
        advantages[:] = float("nan") if ranks().rank == 1 else 1.0
        update(trainer, experience, advantages, returns)

    here, there = together(2, trained, tmp_path)
    assert isinstance(there, TrainingError)
    assert "not finite" in str(there)
    assert isinstance(here, Exception)  # what it was waiting for did not come


def test_whitening_is_over_the_rows_of_all(tmp_path):
    def whitened():
        trainer = tiny.trainer(PpoConfig(rollout_episodes=8, minibatch_episodes=8, min_eos_rate=0.0))
        experience = trainer.rollout.collect(0, kl_coef=0.1)
        return advantages_and_returns(experience, trainer.config)[0]

    expected = whitened()
    for found in together(2, whitened, tmp_path):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
