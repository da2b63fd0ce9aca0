import json

import pytest

from rlhfkit.bench.language import bench_generate, bench_ppo, ppo_teraflop
from rlhfkit.bench.shapes import Shape


def test_arithmetic_of_an_iteration_is_counted_by_hand():
    shape = Shape(layers=2, width=10, heads=1, vocabulary=7, episodes=3)
    trunk, head = 12 * 2 * 100, 70  # weights
    passes = 1 + 1 + 1 + 1 + 4 * 3  # sampling, reference, reward model, old logprobs, four epochs there and back
    head_passes = passes - 1  # the reward model has another head
    expected = 2 * 3 * ((5 + 4) * trunk * passes + 4 * head * head_passes) / 1e12
    assert ppo_teraflop(shape, 3, 5, 4, like_for_like=False) == pytest.approx(expected)
    # a value network of its own: once for the old values and four times there and back
    more = 2 * 3 * (5 + 4) * trunk * (1 + 4 * 3) / 1e12
    assert ppo_teraflop(shape, 3, 5, 4, like_for_like=True) == pytest.approx(expected + more)


@pytest.mark.thorough
@pytest.mark.parametrize("like_for_like", [False, True])
def test_a_ppo_iteration_is_measured(like_for_like):
    result = bench_ppo(
        "1m", like_for_like=like_for_like, compiled=False, iterations=1, episodes=4, prompt_tokens=4, response_tokens=3
    )
    assert result["dtype"] == "float32"
    assert 0 < result["generation_seconds"] < result["iteration_seconds"] < 60
    assert result["peak_rss_mb"] > 100
    assert len(result["iteration_seconds_all"]) == 2
    json.dumps(result)


def test_sampling_is_measured_with_responses_of_one_length():
    result = bench_generate("1m", rows=4, prompt_tokens=4, response_tokens=5, compiled=False, repeats=1)
    assert result["response_tokens_mean"] == 5
    assert result["tokens_per_second"] > 0


@pytest.mark.thorough
def test_random_lengths_have_the_mean_that_was_asked_for():
    result = bench_generate(
        "1m", rows=64, prompt_tokens=2, response_tokens=60, mean_tokens=8, dtype="float32", compiled=False, repeats=1
    )
    # 256 geometric lengths of mean 8 have a mean with standard error 0.47
    assert result["response_tokens_mean"] == pytest.approx(8, abs=1.5)
