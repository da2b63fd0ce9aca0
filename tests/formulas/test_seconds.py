"""Time by formulas, beside the operations that the benchmarks count and numbers worked out by hand."""

from dataclasses import replace

import pytest

from rlhfkit.bench.limit import decode_bytes, generate_work, ppo_work
from rlhfkit.formulas.accelerators import ACCELERATORS
from rlhfkit.formulas.assumptions import Assumption
from rlhfkit.formulas.machine import machine_of
from rlhfkit.formulas.memory import Layout, memory_of
from rlhfkit.formulas.seconds import seconds_of
from tests.formulas.test_memory import WORK

ALL = Assumption(1.0, "for this test")
NOTHING = Assumption(0.0, "for this test")


def machine(ranks=1, **rates):
    """An H100 that reaches all that its data sheet promises, and whose layers cost nothing beside."""
    found = machine_of(ACCELERATORS["h100"], ranks)
    shares = dict.fromkeys(("training_share", "forward_share", "reading_share", "link_share"), ALL)
    return replace(found, assumptions=replace(found.assumptions, **shares, layer_seconds=NOTHING), **rates)


def seconds(work, where, sharding="none"):
    layout = Layout(where.ranks, sharding, on_cpu=False)
    return seconds_of(work, layout, memory_of(work, layout, where.assumptions, 10**13), where)


def test_operations_are_those_that_the_benchmarks_count():
    found = seconds(WORK, machine(flops=1e15))
    work = ppo_work(WORK.policy, episodes=64, prompt=256, response=256, epochs=4, num_minibatches=2, like_for_like=True)
    # The benchmarks leave attention out: 4 operations for a token, one it looks at, and a number of its heads.
    networks = 4 + 3 * 4 * 2
    attention = networks * 4 * (64 * 512) * 512 * 4096 * 32
    assert (found.scoring + found.update) * 1e15 == pytest.approx(work[1].operations + attention, rel=1e-6)
    prefill, decode = generate_work(WORK.policy, rows=64, prompts=64, prompt=256, sampled_tokens=64 * 256)
    assert found.prefill * 1e15 == pytest.approx(prefill.operations + 4 * (64 * 256) * 256 * 4096 * 32, rel=1e-6)
    computing = seconds(WORK, machine(flops=1e15, bandwidth=1e30))
    assert computing.decode * 1e15 == pytest.approx(decode.operations + 4 * (64 * 256) * 384 * 4096 * 32, rel=1e-6)


def test_sampling_reads_the_bytes_that_the_benchmarks_count():
    found = seconds(WORK, machine(flops=1e30, bandwidth=1e12))
    counted = decode_bytes(WORK.policy, 2, rows=64, prompt=256, response=256)
    assert found.decode * 1e12 == pytest.approx(counted, rel=0.01)  # the first token is of the prompt's pass


def test_evaluations_on_the_way_are_rollouts_that_nothing_learns_from_shared_out_among_iterations():
    assert seconds(WORK, machine()).evaluation == 0
    whole, twice = seconds(WORK, machine(2)), replace(WORK, iterations=20, evaluations=3, evaluated_prompts=64)
    found = seconds(twice, replace(machine(2), sampling_factor=2.0, other_factor=5.0))
    # As many prompts as a rollout has, in three of twenty iterations.
    assert found.evaluation == pytest.approx(3 / 20 * (2 * whole.sampling + 5 * whole.scoring))
    assert found.iteration == pytest.approx(found.sampling + found.other + found.exchange + found.evaluation)
    few = seconds(replace(twice, evaluated_prompts=7), machine(2, flops=1e11))
    many = seconds(replace(twice, evaluated_prompts=8), machine(2, flops=1e11))
    assert 0 < few.evaluation == many.evaluation  # two ranks answer four prompts each in both


def test_layers_that_are_computed_twice_cost_a_forward_pass_more():
    once, twice = (seconds(replace(WORK, recompute=value), machine()) for value in (False, True))
    assert 1.25 < twice.update / once.update < 4 / 3


def test_frozen_weights_cost_half_of_the_backward_pass():
    full, lora = seconds(WORK, machine()), seconds(replace(WORK, lora_rank=16), machine())
    assert lora.update == pytest.approx(full.update * 2 / 3, rel=1e-6)


def test_ranks_share_the_rows_and_exchange_gradients():
    one, two = seconds(WORK, machine()), seconds(WORK, machine(2, link=1e9))
    assert two.update == pytest.approx(one.update / 2)
    assert one.exchange == 0
    gradients = 4 * sum(WORK.trained_networks)
    assert two.exchange * 1e9 == pytest.approx(2 * 0.5 * gradients * WORK.updates)  # a ring: twice (N - 1) / N


def test_more_than_a_machine_of_gpus_goes_over_the_network():
    assert machine_of(ACCELERATORS["h100"], 8).link == 450e9
    assert machine_of(ACCELERATORS["h100"], 16).link == 50e9


def test_a_trial_stretches_what_was_tried_and_nothing_else():
    plain = machine(2)
    found, stretched = seconds(WORK, plain), seconds(WORK, replace(plain, sampling_factor=2.0, other_factor=3.0))
    assert stretched.sampling == pytest.approx(2 * found.sampling)
    assert stretched.other == pytest.approx(3 * found.other)
    assert stretched.exchange == found.exchange
