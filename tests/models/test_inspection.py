"""What is wrong with a model's directory is named before its weights are read, and costs neither time nor memory."""

import json
import os
import shutil
import time

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from rlhfkit.config.model import LoraConfig
from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.errors import ConfigError, ModelError, RlhfkitError
from rlhfkit.models.inspection import context_of, inspect_model, shortened_context_note
from rlhfkit.models.outline import outline_of, refuse_more_than_files
from tests.tiny import Directory, builder, load


@pytest.fixture
def copy(directory_of: Directory, tmp_path):
    shutil.copytree(directory_of("llama"), tmp_path / "model")
    return tmp_path / "model"


def change(directory, **settings):
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    return directory


def inspect(directory):
    """As a run does it before anything is trained."""
    made = builder(directory, directory.parent / "run")
    return made.check_start(["ppo"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_attention_heads": 0}, r"its config\.json cannot be used \(ZeroDivisionError"),
        ({"num_key_value_heads": 0}, "num_key_value_heads = 0, and 1 is the least"),
        ({"num_hidden_layers": -1}, "num_hidden_layers = -1, and 1 is the least"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000, and 1 is the least, 4096 the most"),
        ({"hidden_size": 10**12}, "hidden_size = 1000000000000, and 1 is the least"),
        ({"vocab_size": 0}, "vocab_size = 0, and 1 is the least"),
        ({"hidden_size": "wide"}, "cannot be used .*hidden_size"),
        ({"hidden_act": "nonsense"}, r"no language model can be made after its config\.json \(KeyError: 'nonsense'\)"),
        ({"dtype": "nonsense"}, "cannot be used .*nonsense"),
        ({"hidden_size": 2**16, "intermediate_size": 2**18}, r"config\.json describes [\d,]{12,} weights, and its"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"has quantised weights \(gptq\)"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"has quantised weights \(fp8\)"),
    ],
)
def test_a_configuration_of_nonsense_is_named(settings, words, copy):
    with pytest.raises(ModelError, match=words):
        inspect(change(copy, **settings))


@pytest.mark.parametrize("settings", [{"max_new_tokens": -1}, {"num_return_sequences": 3}, {"early_stopping": "no"}])
def test_settings_of_generation_that_cannot_be_read_are_named_with_their_file(settings, copy):
    (copy / "generation_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"generation_config\.json cannot be used \(.*\); correct it, or remove it"):
        inspect(copy)


@pytest.mark.parametrize("num_layers", [1, -1])
def test_fewer_layers_than_were_trained_are_refused(num_layers, copy):
    change(copy, num_hidden_layers=num_layers)
    with pytest.raises(ModelError, match=r"weights of layers that its config\.json does not name \(model\.layers\."):
        load(copy)


def test_other_weights_that_are_not_used_are_told(copy):
    tensors = load_file(copy / "model.safetensors")
    save_file({**tensors, "v_head.weight": torch.ones(3)}, copy / "model.safetensors", metadata={"format": "pt"})
    made = builder(copy, copy.parent / "run")
    made.language_model(made.starting_point())
    assert any("has 1 weights that are not used (v_head.weight)" in note for note in made.notes)


def test_a_file_that_has_no_end_is_refused(copy):
    (copy / "tokenizer.json").unlink()
    os.mkfifo(copy / "tokenizer.json")
    with pytest.raises(ModelError, match=r"tokenizer\.json is no file that can be read"):
        inspect(copy)


def test_a_file_far_too_large_is_not_read(copy):
    with (copy / "tokenizer.json").open("wb") as file:
        file.truncate(2**31)  # which takes no room on the disk
    with pytest.raises(ModelError, match=r"tokenizer\.json has 2,147,483,648 bytes, and 1,073,741,824 are the most"):
        inspect(copy)


@pytest.mark.parametrize("pattern", [r"([a-z]+)*[a-z]+$x", r"(a+a+)+b"])
def test_a_pattern_that_runs_wild_is_named_within_seconds(pattern, copy):
    file = copy / "tokenizer.json"
    table = json.loads(file.read_text())
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    table["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, table["pre_tokenizer"]]}
    file.write_text(json.dumps(table))
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"does not come to an end on 'a.*pattern in its tokenizer\.json runs wild"):
        inspect(copy)
    assert time.monotonic() - start < 60  # of which one pattern's limit is the most


def test_an_index_of_shards_may_not_lead_out_of_the_directory(copy):
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(ModelError, match=r"names '\.\./other\.safetensors' outside of it"):
        inspect(copy)


def test_an_index_of_shards_that_names_a_missing_file_is_refused(copy):
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    with pytest.raises(ModelError, match=r"model-2\.safetensors is missing or not whole"):
        inspect(copy)


# ── adapters ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def adapter(directory_of: Directory, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(directory_of("llama"))
    get_peft_model(base, PeftLoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_beside_weights_is_refused(adapter, copy):
    for file in adapter.glob("adapter_*"):
        shutil.copy(file, copy)
    with pytest.raises(ModelError, match=r"holds whole weights and adapter_config\.json of an adapter on .*move"):
        inspect(copy)
    with pytest.raises(ModelError, match="holds an adapter, which transformers has loaded"):
        load(copy)


def test_an_adapter_alone_is_no_model(adapter):
    with pytest.raises(ModelError, match=r"is an adapter on '.*', not a whole model; fold it into its base model"):
        inspect(adapter)


# ── long rope ────────────────────────────────────────────────────────────────────────────────────────────────────────


def long_rope(**changes):
    factors = {"short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
    settings = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 258}
    return AutoConfig.for_model(
        "phi3",
        **settings,
        intermediate_size=48,
        pad_token_id=257,
        max_position_embeddings=64,
        original_max_position_embeddings=16,
        rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, **factors},
        **changes,
    )


def test_the_context_of_long_rope_ends_with_pre_training():
    assert context_of(long_rope()) == 16
    assert "at most 16 tokens" in shortened_context_note(long_rope())[0]
    assert context_of(AutoConfig.for_model("phi3", max_position_embeddings=64)) == 64
    assert shortened_context_note(AutoConfig.for_model("phi3")) == []


def test_within_it_a_row_does_not_depend_on_its_neighbours():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(long_rope(initializer_range=0.3)).eval()
    ids = torch.arange(32)[None]
    with torch.no_grad():
        at_the_limit, beyond = model(ids[:, :16]).logits[0, :8], model(ids[:, :17]).logits[0, :8]
        alone = model(ids[:, :8]).logits[0]
    torch.testing.assert_close(at_the_limit, alone, rtol=0, atol=1e-4)
    assert float((beyond - alone).abs().max()) > 0.01  # which is why it ends there


# ── what later stages need ───────────────────────────────────────────────────────────────────────────────────────────


def test_adapters_that_do_not_fit_are_refused_before_weights_are_read(directory_of: Directory, tmp_path):
    for family, targets, words in (
        ("llama", ("nonsense",), "does not fit this model"),
        ("gemma", ("q_proj", "embed_tokens"), r"puts an adapter on model\.embed_tokens, and this model's embeddings"),
        ("gpt2", ("wte",), r"puts an adapter on transformer\.wte"),
        ("cohere", ("lm_head",), "puts an adapter on lm_head"),
    ):
        made = builder(directory_of(family), tmp_path, lora=LoraConfig(targets=targets))
        with pytest.raises(ConfigError, match=words):
            made.check_start(["ppo"])
    made = builder(directory_of("llama"), tmp_path, lora=LoraConfig(targets=("q_proj", "embed_tokens")))
    made.check_start(["ppo"])  # its output layer has a weight of its own


def test_a_mixture_of_experts_is_refused_for_vllm(directory_of: Directory, tmp_path):
    for family, is_refused in (("gpt_oss", True), ("llama", False)):
        made = builder(directory_of(family), tmp_path, rollout=RolloutConfig(max_response_tokens=16, engine="vllm"))
        try:
            made.check_start(["ppo"])
            refused = False
        except RlhfkitError as error:
            refused = "takes no weights of a mixture of experts" in str(error)
        assert refused == is_refused


def test_an_outline_has_no_weights_and_counts_what_files_hold(directory_of: Directory):
    config = inspect_model(str(directory_of("llama")), subject="model.path")
    outline = outline_of(config, subject="model.path")
    assert {parameter.device.type for parameter in outline.parameters()} == {"meta"}
    refuse_more_than_files(outline, directory_of("llama"), subject="model.path")
