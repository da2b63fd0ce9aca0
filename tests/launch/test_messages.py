"""What trainers and samplers send each other, and what tells a liar."""

import math
from dataclasses import replace

import pytest
import torch

from rlhfkit.launch.messages import Probe, Sampled, Weights, checksum, packed, put_into, wrong
from rlhfkit.rollout.generation import Response

WEIGHTS = Weights(
    id="w",
    iteration=3,
    blueprint=[None],
    tensors=[None],
    checksum=17,
    probe=Probe((1, 2, 3), (-1.0, -2.0)),
    num_bytes=8,
)
GOOD = Sampled([], weights="w", checksum=17, probe=(-1.0, -2.0), seconds=1.0, pulled_seconds=0.0)


def said_of(**changes):
    return wrong(replace(GOOD, **changes), WEIGHTS, itemsize=4)


def test_what_the_right_weights_sampled_can_be_used():
    assert said_of() is None


@pytest.mark.parametrize("changes", [{"weights": "v"}, {"checksum": 18}])
def test_other_weights_are_told_by_their_id_and_by_their_sum(changes):
    assert said_of(**changes) == "sampled with other weights than those for iteration 3"


def test_logprobs_of_the_probe_may_be_apart_by_rounding_of_other_hardware_alone():
    assert said_of(probe=(-1.019, -2.0)) is None  # 0.0095 a token
    assert said_of(probe=(-1.021, -2.0)) is not None
    assert "0.5 nats a token apart: a broken device?" in said_of(probe=(-1.5, -2.5))


def test_bfloat16_may_round_more():
    sampled = replace(GOOD, probe=(-1.1, -2.0))
    assert wrong(sampled, WEIGHTS, itemsize=4) is not None
    assert wrong(sampled, WEIGHTS, itemsize=2) is None


def test_differences_of_either_sign_do_not_make_up_for_each_other():
    assert said_of(probe=(-1.5, -1.5)) is not None


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_device_that_computes_no_numbers_is_told(number):
    assert said_of(probe=(number, -2.0)) is not None


@pytest.mark.parametrize("probe", [(), (-1.0,), (-1.0, -2.0, -3.0)])
def test_a_probe_of_another_length_is_told(probe):
    assert said_of(probe=probe) == f"computes {len(probe)} logprobs of a probe that has 2"


def test_tokens_are_counted_over_all_responses():
    responses = [Response([1, 2, 3], [0.0] * 3, "eos"), Response([4], [0.0], "length")]
    assert replace(GOOD, responses=responses).num_units == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_packed_weights_come_out_as_they_went_in(dtype):
    source, target = (torch.nn.Linear(3, 2, dtype=dtype) for _ in range(2))
    put_into(target, packed(dict(source.named_parameters())))
    for name, tensor in source.named_parameters():
        assert torch.equal(dict(target.named_parameters())[name], tensor)


def test_a_tensor_that_does_not_lie_in_one_piece_is_packed_in_order():
    tensor = torch.arange(6.0).reshape(2, 3).T
    assert torch.equal(packed({"a": tensor})["a"].tensor(), tensor)


def test_packed_weights_that_have_no_place_are_an_error():
    with pytest.raises(KeyError, match="other"):
        put_into(torch.nn.Linear(1, 1), packed({"other": torch.zeros(1)}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_checksum_tells_one_bit_and_the_places_of_tensors(dtype):
    weights = {"a": torch.ones(3, dtype=dtype), "b": torch.full((3,), 2.0, dtype=dtype)}
    same = {name: tensor.clone() for name, tensor in weights.items()}
    assert checksum(weights) == checksum(same)
    same["a"][1] = torch.nextafter(same["a"][1], torch.tensor(9.0, dtype=dtype))
    assert checksum(weights) != checksum(same)
    assert checksum(weights) != checksum({"a": weights["b"], "b": weights["a"]})


def test_the_checksum_is_the_sum_of_bits_by_place():
    # 1.0 is 0x3f800000 as float32, which is 1065353216.
    assert checksum({"a": torch.ones(2), "b": torch.ones(1)}) == 2 * 1065353216 + 2 * 1065353216
