"""A gallery of broken set-ups, each of which doctor names rightly, and of healthy ones, in which it names nothing.

The model is tiny, and has learnt to write the grammar's reviews, so that it is no stranger to its own texts.
: models."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rlhfkit.models.scratch import train_tokenizer
from tests.gallery_doctor.desk import (
    copy_of_model,
    named,
)


@pytest.mark.thorough
def test_pad_that_is_eos_is_named(examine, desk, tmp_path):
    model = copy_of_model(desk, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(model)
    found = examine("reviews.toml", f"model.path={model}")
    assert named(found) == {"model.pad_and_eos": "warning"}
    assert "PAD equal to EOS" in found["model.pad_and_eos"].seen


@pytest.mark.thorough
def test_another_eos_than_the_models_is_named(examine, desk, tmp_path):
    model = copy_of_model(desk, tmp_path)
    for name in ("config.json", "generation_config.json"):
        config = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps(config | {"eos_token_id": 77}))
    found = examine("reviews.toml", f"model.path={model}")
    assert named(found) == {"model.vocabulary": "warning"}
    assert "config.json says 77" in found["model.vocabulary"].seen


@pytest.mark.thorough
def test_a_larger_tokenizer_of_another_model_is_named(examine, desk, tmp_path):
    model = copy_of_model(desk, tmp_path)
    texts = [f"The quick {word} fox jumps over {word}{word} lazy dogs" for word in ("brown", "grey", "white")] * 9
    train_tokenizer([*texts, *(Path(os.__file__).read_text().splitlines())], 600).save_pretrained(model)
    found = examine("reviews.toml", f"model.path={model}")
    assert named(found)["model.vocabulary"] == "fault"
    assert "600 tokens, 400 embeddings: 200 tokens have none" in found["model.vocabulary"].seen


@pytest.mark.thorough
def test_a_tokenizer_of_another_model_and_the_same_size_is_named(examine, desk, tmp_path):
    model = copy_of_model(desk, tmp_path)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    ordinary = [token for token in vocabulary if not token.startswith("<|")]
    numbers = [vocabulary[token] for token in ordinary]
    for token, number in zip(ordinary, numbers[100:] + numbers[:100], strict=True):
        vocabulary[token] = number
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = examine("reviews.toml", f"model.path={model}")
    assert named(found)["model.likelihood"] == "fault"
    assert "the tokenizer of another model" in found["model.likelihood"].seen


@pytest.mark.thorough
def test_weights_that_were_never_trained_are_named(examine, desk, tmp_path):
    model = copy_of_model(desk, tmp_path)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig.from_pretrained(model)).save_pretrained(model)
    found = examine("reviews.toml", f"model.path={model}")
    assert found["model.likelihood"].verdict in ("warning", "fault")
    assert "untrained" in found["model.likelihood"].seen


def test_weights_that_are_nan_are_named(examine, desk, tmp_path):
    model = copy_of_model(desk, tmp_path)
    weights = load_file(model / "model.safetensors")
    save_file(
        {name: weight * float("nan") for name, weight in weights.items()}, model / "model.safetensors", {"format": "pt"}
    )
    found = examine("reviews.toml", f"model.path={model}")
    assert "fault" in named(found).values()
    assert any(name.startswith("model.") for name in named(found))


def test_pickled_weights_are_named(examine, desk, tmp_path):
    model = copy_of_model(desk, tmp_path)
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    found = examine("reviews.toml", f"model.path={model}")
    assert named(found) == {"model.files": "fault"}
    assert "safetensors" in found["model.files"].seen + found["model.files"].remedy


@pytest.mark.thorough
def test_a_model_that_is_not_there_is_named(examine):
    found = examine("reviews.toml", "model.path=modell")
    assert named(found) == {"model.files": "fault"}
    assert "did you mean model?" in found["model.files"].seen + found["model.files"].remedy


def test_a_context_that_is_too_small_is_named(examine):
    found = examine("reviews.toml", "rollout.max_response_tokens=200")
    assert named(found) == {"model.files": "fault"}
    assert "leaves no room for a prompt in the model's context of 128" in found["model.files"].seen


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is one")
def test_a_device_that_is_not_there_is_named(examine):
    found = examine("reviews.toml", "model.device=mps")
    assert named(found) == {"model.device": "fault"}


@pytest.mark.thorough
def test_what_a_model_at_fault_hides_is_skipped(examine):
    found = examine("reviews.toml", "model.path=modell")
    assert "there is no such directory (did you mean model?)" in found["model.files"].seen
    assert {name for name, finding in found.items() if finding.verdict == "skipped"} >= {
        "data.lengths",
        "model.weights",
    }
    assert found["reward.scores"].verdict == "ok"  # on the responses that the data hold


@pytest.mark.thorough
def test_code_that_comes_with_a_model_is_named(examine):
    assert named(examine("reviews.toml", "model.trust_remote_code=true")) == {"model.remote_code": "warning"}


@pytest.mark.thorough
def test_a_model_that_never_ends_is_named(examine, desk, tmp_path):
    model = copy_of_model(desk, tmp_path, "chat_model")
    short = ("ppo.min_eos_rate=0.05", "rollout.max_response_tokens=2", "reward.function=gallery_rewards:coin")
    found = examine("chat.toml", f"model.path={model}", *short)
    assert named(found) == {"model.ending": "warning"}
    assert "% of 24 responses end within 2 tokens" in found["model.ending"].seen
