"""Shapes: named ones have the published numbers of parameters, others those that transformers counts."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

from rlhfkit.errors import ConfigError, ModelError
from rlhfkit.formulas.shapes import NAMED, shape_named, shape_of_config

PUBLISHED = {
    "0.5B": 494_032_768,
    "1B": 1_235_814_400,
    "1.5B": 1_543_714_304,
    "3B": 3_085_938_688,
    "7B": 7_615_616_512,
    "8B": 8_030_261_248,
    "14B": 14_770_033_664,
    "32B": 32_763_876_352,
    "70B": 70_553_706_496,
}
"""From the models' own pages."""
SIZES = {"num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 77}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=False),
    "llama with wide heads": LlamaConfig(**SIZES, num_key_value_heads=4, head_dim=32, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2, tie_word_embeddings=True),
    "gpt2": GPT2Config(n_layer=3, n_embd=64, n_head=4, n_positions=50, vocab_size=77),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_named_shapes_have_the_published_number_of_parameters(name):
    assert NAMED[name].parameters == PUBLISHED[name]


def test_every_named_shape_is_checked():
    assert NAMED.keys() == PUBLISHED.keys()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_gives_the_parameters_that_transformers_counts(name):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS[name])
    shape = shape_of_config(CONFIGS[name].to_dict(), name=name, source="config.json")
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.trunk_parameters == sum(parameter.numel() for parameter in model.base_model.parameters())


def test_a_directory_needs_no_weights(tmp_path):
    CONFIGS["qwen2"].save_pretrained(tmp_path)
    assert shape_named(str(tmp_path)).layers == 3
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("name", ["Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B", "0.5b", "0.5B"])
def test_a_model_is_known_by_its_size_and_by_its_name(name):
    assert shape_named(name).parameters == PUBLISHED["0.5B"]


@pytest.mark.parametrize("billions", [0.8, 2, 6, 20, 50])
def test_a_size_between_two_has_about_its_parameters_and_says_so(billions):
    shape = shape_named(f"{billions}B")
    assert shape.parameters == pytest.approx(billions * 1e9, rel=0.05)
    assert "lies between" in shape.note


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Qwen2.5-05B", "did you mean qwen2.5-0.5b"),
        ("400B", "not between Qwen2.5-0.5B and Llama-3.1-70B"),
        ("nothing", "give a size"),
    ],
)
def test_an_unknown_model_is_refused_with_what_is_known(name, words):
    with pytest.raises(ConfigError, match=words):
        shape_named(name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_experts": 8}, "num_experts = 8"),
        ({"hidden_size": None}, "hidden_size = None"),
        ({"vocab_size": 0}, "= 0"),
    ],
)
def test_a_config_that_no_plan_can_be_made_of_is_refused(change, words, tmp_path):
    table = CONFIGS["llama"].to_dict() | change
    (tmp_path / "config.json").write_text(json.dumps(table), encoding="utf-8")
    with pytest.raises(ModelError, match=words):
        shape_named(str(tmp_path))


def test_a_directory_without_a_config_is_refused(tmp_path):
    with pytest.raises(ModelError, match="give the directory of a model"):
        shape_named(str(tmp_path))
