"""vLLM itself as the engine, on whatever it is installed for; docs/vllm.md says how to run this.

One test starts it for the others, since that takes seconds; those that start one more come last.
"""

import importlib.util
import json
import os

import pytest
import torch

from rlhfkit.config.load import load_recipe
from rlhfkit.config.model import LoraConfig
from rlhfkit.config.ppo import PpoConfig, RolloutConfig, ValueConfig, VllmConfig
from rlhfkit.config.training import OptimConfig
from rlhfkit.errors import GenerationError
from rlhfkit.padding import Sequences
from rlhfkit.pipeline import run as pipeline
from rlhfkit.rollout.generation import generate
from rlhfkit.rollout.vllm import ENVIRONMENT, VllmEngine
from rlhfkit.training.ppo import run_iteration
from rlhfkit.training.preflight import check_first_experience
from tests.pipeline.test_run import RECIPE
from tests.tiny import PAD, builder, load, ppo_trainer, save_family

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.timeout(600),  # its sampler is compiled the first time
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed; see docs/vllm.md"),
]

PROMPTS = [[1, 2, 3], [40, 50], [60, 70, 80, 90, 100], [7]] * 3
SEEDS = [(1 << 62) + 1000 + row for row in range(len(PROMPTS))]
CONFIG = RolloutConfig(
    max_response_tokens=16, temperature=0.7, slots=8, engine="vllm", vllm=VllmConfig(kv_cache_gib=0.125)
)
FAST = OptimConfig(learning_rate=1e-2)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    # The attention of vLLM on a CPU wants heads of 32 or more.
    return save_family(
        "llama",
        tmp_path_factory.mktemp("llama"),
        hidden_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.2,
    )


@pytest.fixture(scope="module")
def engine():
    with VllmEngine(CONFIG, dtype=torch.float32, max_tokens=48) as started:
        yield started


@pytest.fixture
def model(directory):
    return load(directory)


def sample(engine, model, config=CONFIG, *, seeds=SEEDS):
    return engine.loaded(model)(model, PROMPTS, config, seeds=seeds)


def largest_difference(model, responses, *, temperature=0.7):
    """Between the responses' logprobs and those of the training pass."""
    inputs = Sequences.join(PROMPTS, [response.ids for response in responses], pad=PAD)
    with torch.no_grad():
        found = model.logprobs(inputs, temperature=temperature)[inputs.mask]
    sampled = torch.tensor([number for response in responses for number in response.logprobs])
    return float((found - sampled).abs().max())


def change(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))


def ids(responses):
    return [response.ids for response in responses]


def test_logprobs_are_those_of_the_training_pass_at_the_temperature(engine, model):
    responses = sample(engine, model)
    assert sum(len(response.ids) for response in responses) > 100
    assert largest_difference(model, responses) < 1e-3
    assert largest_difference(model, responses, temperature=1.0) > 0.1


def test_a_seed_decides_the_tokens(engine, model):
    first, again, other = (sample(engine, model, seeds=seeds) for seeds in (SEEDS, SEEDS, range(len(SEEDS))))
    assert ids(first) == ids(again)
    assert all(one.ids != two.ids for one, two in zip(first, other, strict=True))
    assert first[0].ids != first[4].ids  # the same prompt


def test_pad_is_never_sampled(engine, model):
    with torch.no_grad():
        model.causal_lm.lm_head.weight[PAD] *= 8
    responses = sample(engine, model)
    assert all(PAD not in response.ids for response in responses)
    assert largest_difference(model, responses) < 1e-3
    with torch.no_grad():  # the model itself would have it
        rows = [prompt + response.ids for prompt, response in zip(PROMPTS, responses, strict=True)]
        assert any((model.causal_lm(torch.tensor([row])).logits.argmax(-1) == PAD).any() for row in rows)


def test_a_response_ends_with_eos_a_stop_token_or_the_limit(engine, model):
    letters = tuple(chr(code) for code in range(32, 112))
    config = CONFIG.model_copy(update={"stop_tokens": letters, "temperature": 2.0, "max_response_tokens": 3})
    stops = {model.encoder.tokenizer(letter)["input_ids"][0] for letter in letters}
    with torch.no_grad():
        model.causal_lm.lm_head.weight[model.encoder.eos_id] *= 4
    responses = [
        r for start in range(0, 200, 12) for r in sample(engine, model, config, seeds=range(start, start + 12))
    ]
    assert {response.finish_reason for response in responses} == {"eos", "stop", "length"}
    for response in responses:
        *before, last = response.ids
        assert not stops & set(before) and model.encoder.eos_id not in before
        expected = "eos" if last == model.encoder.eos_id else "stop" if last in stops else "length"
        assert response.finish_reason == expected
        assert len(response.ids) == 3 or expected != "length"


def test_weights_change_with_a_load_and_not_before(engine, model):
    before = sample(engine, model, seeds=None)
    assert ids(before) == ids(generate(model, PROMPTS, CONFIG, seeds=None))
    change(model)
    assert ids(engine.generate(model, PROMPTS, CONFIG, seeds=None)) == ids(before)
    after = sample(engine, model, seeds=None)
    assert ids(after) == ids(generate(model, PROMPTS, CONFIG, seeds=None))
    assert ids(after) != ids(before)
    assert largest_difference(model, sample(engine, model)) < 1e-3


def test_adapters_are_merged(engine, directory, tmp_path):
    made = builder(directory, tmp_path, lora=LoraConfig(rank=4))
    model = made.language_model(made.starting_point(), trainable=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    responses = sample(engine, model)
    assert largest_difference(model, responses) < 1e-3
    with model.adapters_off():
        assert largest_difference(model, responses) > 0.1


def test_two_iterations_of_ppo(engine, directory, tmp_path):
    ppo = PpoConfig(rollout_episodes=8, minibatch_episodes=4, epochs=2, optim=FAST, value=ValueConfig(optim=FAST))
    trainer = ppo_trainer(builder(directory, tmp_path, ppo=ppo, rollout=CONFIG))
    trainer.rollout.engine = engine

    def check(experience):
        check_first_experience(
            experience, trainer.policy, trainer.rollout.reference, min_eos_rate=0.0, engine_dtype=torch.float32
        )

    for _ in range(2):
        experience, metrics = run_iteration(trainer, check_first=check)
        assert metrics["sampler/logprob_max_difference"] < 1e-3
        assert metrics["sampler/truncated_share"] == 0
        torch.testing.assert_close(experience.importance_weights, torch.ones(experience.mask.shape), atol=1e-3, rtol=0)
        assert metrics["ppo/approx_kl"] > 0.01  # the weights of the first iteration would not do in the second


# ── further starts ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("family", "config"),
    [("llama", {"tie_word_embeddings": True}), ("gpt2", {}), ("qwen2", {"use_sliding_window": False})],
)
def test_other_shapes_agree_too_after_each_load(engine, tmp_path, family, config):
    engine.close()
    shape = {"hidden_size": 64, "num_attention_heads": 2, "initializer_range": 0.1, **config}
    model = load(save_family(family, tmp_path / family, **shape))
    with VllmEngine(CONFIG, dtype=torch.float32, max_tokens=48) as other:
        assert largest_difference(model, sample(other, model)) < 1e-3
        change(model)
        assert largest_difference(model, sample(other, model)) < 1e-3


def test_in_bfloat16_the_difference_is_what_the_weights_are_for(engine, model):
    engine.close()
    environment, set_num_threads = {name: os.environ.get(name) for name in ENVIRONMENT}, torch.set_num_threads
    config = CONFIG.model_copy(update={"vllm": VllmConfig(kv_cache_gib=0.125, dtype="bfloat16")})
    with VllmEngine(config, dtype=torch.float32, max_tokens=48) as rounded:
        assert 1e-3 < largest_difference(model, sample(rounded, model)) < 1
    assert {name: os.environ.get(name) for name in ENVIRONMENT} == environment
    assert torch.set_num_threads is set_num_threads


def test_a_model_that_vllm_cannot_serve_is_reported(engine, tmp_path):
    engine.close()
    model = load(save_family("llama", tmp_path / "small"))
    if torch.cuda.is_available():
        pytest.skip("a GPU has no such limit")
    with (
        pytest.raises(GenerationError, match=r"vLLM cannot sample from this model .*head_dim=8.*engine = \"own\""),
        VllmEngine(CONFIG, dtype=torch.float32, max_tokens=48) as small,
    ):
        sample(small, model)


def test_a_recipe_runs(engine, tmp_path):
    engine.close()
    (tmp_path / "tiny.toml").write_text(RECIPE)
    overrides = [
        "model.width=64",
        'stages=["pretrain", "ppo"]',
        'reward={type="function", function="tests.training.tiny:count_vowels"}',
        "rollout.engine=vllm",
        "rollout.vllm.kv_cache_gib=0.125",
    ]
    pipeline.run(load_recipe(str(tmp_path / "tiny.toml"), overrides), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    iterations = [line for line in lines if line["stage"] == "ppo"]
    assert len(iterations) == 2
    assert all(line["sampler/logprob_max_difference"] < 1e-3 for line in iterations)
    assert (tmp_path / "run" / "policy" / "model.safetensors").exists()
