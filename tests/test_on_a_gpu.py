"""What should be the same on a GPU as on a CPU. Each test runs on a CPU too, which shows that it works itself."""

import copy

import pytest
import torch

from rlhfkit.config.ppo import PpoConfig, RolloutConfig
from rlhfkit.doctor.hardware import examine_gpu, torch_facts
from rlhfkit.machine.device import PeakMeter, available_bytes, held_bytes
from rlhfkit.machine.dtype import choose_dtype
from rlhfkit.padding import Sequences
from rlhfkit.ppo import masked_mean
from rlhfkit.rollout.generation import generate
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.log import RunLog
from rlhfkit.training.advantages import advantages_and_returns
from rlhfkit.training.checkpoint import Checkpoints
from rlhfkit.training.ppo import run_iteration
from rlhfkit.training.update import update
from tests.rollout.test_generation import NUM_PROMPTS, ending_early, some_prompts
from tests.tiny import Directory, builder, load, ppo_trainer

on_both = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
PPO = PpoConfig(iterations=4, rollout_episodes=8, minibatch_episodes=4, epochs=2, microbatch_tokens=200)


@on_both
@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma2", "gpt_oss"])
def test_a_device_samples_the_tokens_that_a_cpu_samples(family, device, directory_of: Directory):
    config = RolloutConfig(max_response_tokens=20, temperature=0.7, top_p=0.9, slots=4)
    expected, found = (
        generate(
            ending_early(load(directory_of(family), device=torch.device(each))),
            some_prompts(),
            config,
            seeds=range(NUM_PROMPTS),
        )
        for each in ("cpu", device)
    )
    assert [response.ids for response in found] == [response.ids for response in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


@on_both
def test_a_device_updates_weights_as_a_cpu_does(device, directory_of: Directory, tmp_path):
    """Both learn from the experience of the CPU, so that no token that rounding decided comes between them."""
    trainers = [ppo_trainer(builder(directory_of("qwen2"), tmp_path / d, ppo=PPO, device=d)) for d in ("cpu", device)]
    trainers[1].policy.language_model.causal_lm.set_attn_implementation("sdpa")  # so that a CPU rounds otherwise, too
    before = weights_of(trainers[0])
    experience = trainers[0].rollout.collect(0, kl_coef=0.1)
    for trainer, where in zip(trainers, ("cpu", device), strict=True):
        seen = moved(experience, torch.device(where))
        metrics = update(trainer, seen, *advantages_and_returns(seen, trainer.config))
        assert metrics["ppo/ratio_first_epoch_max_deviation"] < 1e-3
    expected, found = map(weights_of, trainers)
    # Other kernels on a CPU: 5e-6. A learning rate a tenth too high: 0.11; an epoch too few: 0.64.
    assert float((found - expected).norm() / (expected - before).norm()) < 1e-3


def weights_of(trainer) -> torch.Tensor:
    """All weights in a row, as they are now."""
    return torch.cat([weight.detach().cpu().double().flatten() for weight in trainer.policy.parameters()])


def moved(value, device: torch.device):
    """A copy of an experience with its tensors on `device`."""
    value = copy.copy(value)
    for name, each in vars(value).items():
        if isinstance(each, torch.Tensor):
            object.__setattr__(value, name, each.to(device))
        elif isinstance(each, Sequences):
            object.__setattr__(value, name, moved(each, device))
    return value


@on_both
@pytest.mark.parametrize("is_compiled", [False, pytest.param(True, marks=pytest.mark.gpu)])
def test_sampler_and_training_pass_agree_in_bfloat16(is_compiled, device, directory_of: Directory):
    model = load(directory_of("qwen2"), device=torch.device(device), dtype=torch.bfloat16)
    if is_compiled:
        model.run_compiled()
    responses = generate(model, some_prompts(), RolloutConfig(max_response_tokens=36), seeds=range(NUM_PROMPTS))
    sequences = Sequences.join(
        some_prompts(), [each.ids for each in responses], pad=model.encoder.pad_id, device=model.device
    )
    with torch.no_grad():
        trained = model.logprobs(sequences, temperature=1.0)
    sampled = torch.tensor([number for each in responses for number in each.logprobs], device=model.device)
    apart = (trained[sequences.mask] - sampled).abs()
    # On a CPU: 0; to float32 it is 0.04, and 0.12 where the training pass has a temperature of 1.1.
    assert float(apart.mean()) < 0.1
    assert float(masked_mean(trained, sequences.mask)) < -0.5  # the tokens are not certain, so that it says something


@on_both
def test_a_checkpoint_of_a_device_goes_on_on_a_cpu(device, directory_of: Directory, tmp_path):
    first = ppo_trainer(builder(directory_of("qwen2"), tmp_path / "a", ppo=PPO, device=device))
    run_iteration(first)
    with Checkpoints(tmp_path / "checkpoints", warn=pytest.fail) as checkpoints, RunLog(RunDir(tmp_path / "a")) as log:
        checkpoints.save(1, first.tensors(), {**first.state(), "log": log.position()})
        checkpoints.wait()
        second = ppo_trainer(builder(directory_of("qwen2"), tmp_path / "b", ppo=PPO))
        assert second.resume(checkpoints, log)
    assert second.iteration == 1
    for (_, found), (_, expected) in zip(
        second.policy.named_parameters(), first.policy.named_parameters(), strict=True
    ):
        assert torch.equal(found, expected.cpu())
    assert {str(tensor.device) for tensor in second.tensors().values()} == {"cpu"}
    _, metrics = run_iteration(second)
    assert metrics["policy/grad_norm"] > 0


@on_both
def test_memory_is_measured_where_it_is_taken(device):
    where, num_bytes = torch.device(device), 256 * 2**20
    held, meter = held_bytes(where), PeakMeter(where)
    tensor = torch.ones(num_bytes // 4, device=where)
    assert num_bytes * 0.9 < held_bytes(where) - held < num_bytes * 1.2
    del tensor
    assert held_bytes(where) - held < num_bytes * 0.2
    peak = meter.bytes()
    assert peak is None or peak >= num_bytes  # None where the kernel cannot forget an earlier one
    assert available_bytes(where) > num_bytes


@pytest.mark.gpu
def test_doctor_finds_the_gpu_and_that_it_works():
    (finding,) = examine_gpu(torch_facts())
    assert finding.verdict == "ok", finding


@pytest.mark.gpu
def test_auto_takes_bfloat16_on_a_gpu_that_has_it(monkeypatch):
    monkeypatch.delenv("RLHFKIT_NO_BFLOAT16")
    choice = choose_dtype("auto", torch.device("cuda"))
    assert choice.taken == ("bfloat16" if torch.cuda.get_device_capability() >= (8, 0) else "float32")
