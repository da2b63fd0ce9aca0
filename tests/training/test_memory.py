import gc
import weakref

import pytest
import torch
from torch import nn

from rlhfkit.config.ppo import PpoConfig, RolloutConfig
from rlhfkit.errors import ConfigError
from rlhfkit.models.frozen_layers import Stem
from rlhfkit.models.language import TextPolicy
from rlhfkit.models.lora import unwrapped
from rlhfkit.training import memory
from rlhfkit.training.memory import MemoryPlan, bytes_kept, fits, plan_of_ppo, plan_of_supervised, tokens_that_fit
from tests.training import tiny

CPU = torch.device("cpu")


def plan(**changes) -> MemoryPlan:
    settings = {
        "held": 1000,
        "optimizer": 200,
        "per_token": 10,
        "head": 50,
        "sampling": 300,
        "scoring": 400,
        "stem": 0,
        "checkpoint": 20,
        "libraries": 10,
        "longest": 100,
        "minibatch_tokens": 1600,
    }
    return MemoryPlan(**{**settings, **changes})


def with_memory(monkeypatch, available: float) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device, shared_by: int(available / 0.8) + 1)


def test_peak_is_what_is_held_and_the_largest_of_update_sampling_and_scoring():
    held = 1000 + 200 + 20 + 10
    assert plan().peak(100) == held + 10 * 100 + 50
    assert plan(sampling=5000).peak(100) == held + 5000
    assert plan(scoring=6000).peak(100) == held + 6000
    assert plan().peak(10_000) == held + 10 * 1600 + 50  # a minibatch has no more tokens


def test_what_is_kept_for_the_backward_pass_is_counted_once_and_without_weights():
    first, second = nn.Linear(8, 16, bias=False), nn.Linear(16, 4, bias=False)
    x = torch.zeros(5, 8)

    def forward():
        return second(first(x).relu())

    # x (5, 8) for the first product, the result of relu (5, 16) for both relu and the second product; float32
    assert bytes_kept(forward, [*first.parameters(), *second.parameters()]) == 4 * (5 * 8 + 5 * 16)


def test_nothing_of_the_trial_stays():
    model = tiny.language_model()
    weights = [weakref.ref(parameter) for parameter in model.parameters()]
    plan_of_supervised(model, longest=12, minibatch_tokens=96)
    del model
    gc.collect()
    assert not any(weight() is not None for weight in weights)


def test_as_many_tokens_as_memory_has_room_for(monkeypatch):
    with_memory(monkeypatch, 230 + 50 + 10 * 1000)
    assert tokens_that_fit(plan(), CPU) == 960  # a multiple of 64


def test_no_more_tokens_than_a_minibatch_has(monkeypatch):
    with_memory(monkeypatch, 10**9)
    assert tokens_that_fit(plan(), CPU) == 1600
    assert tokens_that_fit(plan(minibatch_tokens=10**6), CPU) == 8192  # nor than a pass gains from
    assert tokens_that_fit(plan(minibatch_tokens=50), CPU) == 100  # but always a whole sequence


@pytest.mark.parametrize("changes", [{}, {"sampling": 10**6}, {"scoring": 10**6}])
def test_a_sequence_for_which_there_is_no_room_is_refused_with_numbers(monkeypatch, changes):
    with_memory(monkeypatch, 230 + 50 + 10 * 99)
    with pytest.raises(ConfigError, match=r"sequence of 100 tokens needs .* GiB .* GiB are free; set model.lora"):
        tokens_that_fit(plan(**changes), CPU)


def test_a_plan_fits_where_its_microbatches_do(monkeypatch):
    with_memory(monkeypatch, 230 + 50 + 10 * 500)
    assert fits(plan(), CPU, 500)
    assert not fits(plan(), CPU, 501)
    assert not fits(plan(), CPU, "auto")  # which would like 1024


def test_the_plan_of_a_policy_counts_what_learns():
    policy = tiny.policy()
    rollout, ppo = RolloutConfig(max_response_tokens=6, slots=4), PpoConfig(minibatch_episodes=8, rollout_episodes=8)
    found = plan_of_ppo(policy, prompt_tokens=10, rollout=rollout, ppo=ppo)
    num = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    assert found.optimizer == 12 * num  # Adam's two averages and the gradient, float32
    assert found.checkpoint == 12 * num  # the weights and the averages
    assert (found.longest, found.minibatch_tokens) == (16, 8 * 16)
    assert found.per_token > 0
    assert found.held > 10**7
    config = policy.language_model.config
    # keys and values of four slots with 16 places each, and three tensors of logits, float32
    per_place = 2 * config.num_hidden_layers * config.hidden_size
    assert found.sampling == 4 * 4 * (16 * per_place + 3 * config.vocab_size)
    # 8 sequences of 16 tokens: a layer's share of what is kept, and logits five times in float32
    kept = memory._kept_per_token(policy.language_model.causal_lm, 0, 16)
    assert found.scoring == 128 * kept // config.num_hidden_layers + 128 * config.vocab_size * 20


def test_the_plan_counts_what_the_layers_below_leave_for_two_iterations():
    model = tiny.language_model(num_layers=4)
    policy = TextPolicy(model, None, temperature=1.0)
    rollout, ppo = RolloutConfig(max_response_tokens=6, slots=4), PpoConfig(minibatch_episodes=8, rollout_episodes=8)
    whole = plan_of_ppo(policy, prompt_tokens=10, rollout=rollout, ppo=ppo)
    model.stem = Stem(unwrapped(model.causal_lm), num_trained_layers=1)
    found = plan_of_ppo(policy, prompt_tokens=10, rollout=rollout, ppo=ppo)
    assert (whole.stem, found.stem) == (0, 2 * 8 * 16 * model.width * 4)  # two of 8 sequences of 16 tokens, float32
    assert found.optimizer < whole.optimizer
    assert found.per_token < whole.per_token
    # A pass that keeps nothing for a gradient needs as much in a layer of either.
    assert found.scoring == pytest.approx(whole.scoring, rel=0.2)


def test_the_plan_of_a_supervised_stage_counts_masters_too():
    model = tiny.language_model(dtype=torch.bfloat16)
    found = plan_of_supervised(model, longest=12, minibatch_tokens=96)
    num = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert found.optimizer == 16 * num  # averages and gradient as above, and a float32 master
    assert found.checkpoint == 14 * num  # bfloat16 weights, averages, masters
    assert (found.longest, found.minibatch_tokens, found.sampling) == (12, 96, 0)
    assert found.head > 0
    assert plan_of_supervised(tiny.reward_model(), longest=12, minibatch_tokens=96).head == 0
