import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma3Config,
    Gemma3TextConfig,
)

from rlhfkit.config.model import PretrainedModelConfig
from rlhfkit.errors import ConfigError, ModelError
from rlhfkit.models.encoder import Encoder
from rlhfkit.models.inspection import inspect_model, refuse_more_than_text, refuse_quantized
from rlhfkit.models.language import LanguageModel
from rlhfkit.models.loading import load_causal_lm, load_classifier, load_tokenizer
from tests.tiny import CPU, EOS, MORE_FAMILIES, PAD, Directory, builder, byte_tokenizer, load, save_family


def read(directory) -> tuple[LanguageModel, list[str]]:
    config = PretrainedModelConfig(path=str(directory))
    tokenizer, notes = load_tokenizer(config)
    model, more = load_causal_lm(config, tokenizer, device=CPU, dtype=torch.float32)
    return LanguageModel(model, Encoder(tokenizer)), [*notes, *more]


@pytest.fixture
def copy(directory_of: Directory, tmp_path):
    """A model directory that a test may spoil."""
    return shutil.copytree(directory_of("gpt2"), tmp_path / "model")


# ── PAD ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_pad_that_is_there_stays_as_it_is(directory_of: Directory):
    model, notes = read(directory_of("llama"))
    assert (model.encoder.eos_id, model.encoder.pad_id) == (EOS, PAD)
    assert notes == []


@pytest.mark.parametrize(
    ("special_tokens", "why"),
    [
        ({"eos_token": "<|endoftext|>"}, "no PAD"),
        ({"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}, "PAD equal to EOS"),
    ],
)
def test_a_pad_that_is_missing_or_equals_eos_is_added_with_an_embedding(special_tokens, why, tmp_path):
    directory = save_family("gpt2", tmp_path, tokenizer=byte_tokenizer(**special_tokens))
    model, notes = read(directory)
    assert (model.encoder.eos_id, model.encoder.pad_id) == (256, 257)
    assert [why in notes[0], "<|pad|> as token 257" in notes[0]] == [True, True]
    assert notes[1] == "embeddings grew from 257 to 258 rows, for the tokens that were added"
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(directory)(ids).logits
        found = model.head(model.trunk(ids))
    assert found.shape[-1] == 258
    torch.testing.assert_close(found[..., :257], expected, rtol=0, atol=2e-5)
    assert float(found[..., 257].max()) < -1e8


def test_spare_embedding_rows_take_the_new_pad(tmp_path):
    tokenizer = byte_tokenizer(eos_token="<|endoftext|>")
    model, notes = read(save_family("gpt2", tmp_path, tokenizer=tokenizer, vocab_size=300))
    assert model.causal_lm.get_input_embeddings().weight.shape[0] == 300
    assert model.encoder.pad_id == 257
    assert len(notes) == 1


def test_builder_tells_each_note_once(tmp_path):
    directory = save_family("gpt2", tmp_path / "model", tokenizer=byte_tokenizer(eos_token="<|endoftext|>"))
    made = builder(directory, tmp_path)
    for _ in range(2):
        made.language_model(made.starting_point())
    assert len(made.notes) == 2


def test_a_tokenizer_without_eos_is_refused(tmp_path):
    directory = save_family("gpt2", tmp_path, tokenizer=byte_tokenizer(pad_token="<|pad|>"))
    with pytest.raises(ModelError, match=r"has no EOS token; set eos_token in tokenizer_config.json"):
        read(directory)


# ── what is missing ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_directory_and_no_hub_model(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="no such directory, and the hub"):
        read(tmp_path / "nothing")


def test_no_tokenizer(copy):
    for path in copy.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer; the directory needs the model's tokenizer\.json"):
        read(copy)


def test_no_config(copy):
    (copy / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        read(copy)


def test_pickled_weights_alone_are_refused(copy):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no \*\.safetensors; convert the weights, since pickled ones can run code"):
        read(copy)


def test_missing_weights_are_refused_by_name(copy):
    tensors = load_file(copy / "model.safetensors")
    tensors.pop("transformer.h.1.mlp.c_fc.weight")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights .*h\.1\.mlp\.c_fc\.weight.*give a complete model"):
        read(copy)


def test_weights_of_another_shape_are_refused(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))
    with pytest.raises(ModelError, match=r"in another shape \(transformer\.wte\.weight"):
        read(copy)


def test_damaged_weights_are_refused(copy):
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ModelError, match="check that it is a complete model"):
        read(copy)


# ── classifiers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def classifier(directory, **options):
    tokenizer, _ = load_tokenizer(PretrainedModelConfig(path=str(directory)))
    return load_classifier(str(directory), tokenizer, device=CPU, dtype=torch.float32, **options)


def test_a_head_may_be_fresh_only_where_that_is_expected(directory_of: Directory):
    assert classifier(directory_of("llama"), num_labels=1, fresh_head=True).get_parameter("score.weight").shape[0] == 1
    with pytest.raises(ModelError, match=r"lacks 1 weights .*score\.weight"):
        classifier(directory_of("llama"), num_labels=1)


def test_only_the_head_may_be_fresh(copy):
    tensors = load_file(copy / "model.safetensors")
    tensors.pop("transformer.h.1.mlp.c_fc.weight")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights .*h\.1\.mlp\.c_fc\.weight"):
        classifier(copy, num_labels=1, fresh_head=True)


def test_reward_model_of_an_encoder_is_refused(tmp_path):
    config = AutoConfig.for_model(
        "bert", vocab_size=258, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    config.num_labels = 1
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "bert")
    byte_tokenizer().save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelError, match="BertForSequenceClassification has no linear head `score`"):
        builder(tmp_path / "bert", tmp_path).reward_model(tmp_path / "bert")


# ── the models that we make of it ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gpt2", {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}),
        ("opt", {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5}),
    ],
)
def test_dropout_is_off_for_good(family, settings, tmp_path):
    model = load(save_family(family, tmp_path, **settings))
    ids = torch.arange(20)[None]
    first, second = model.trunk(ids), model.trunk(ids)
    assert torch.equal(first, second)


def test_an_architecture_that_does_more_than_head_of_hidden_is_refused(directory_of: Directory):
    model = AutoModelForCausalLM.from_pretrained(directory_of("llama"))
    forward = model.forward

    def surprising(**options):
        output = forward(**options)
        output.logits = output.logits * 2
        return output

    model.forward = surprising
    tokenizer, _ = load_tokenizer(PretrainedModelConfig(path=str(directory_of("llama"))))
    with pytest.raises(ModelError, match=r"llama does not compute its logits as head\(hidden\) alone"):
        LanguageModel(model, Encoder(tokenizer))


@pytest.mark.parametrize(
    ("family", "settings", "why"),
    [
        ("gpt_neo", {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]}, "code"),
        ("gptj", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}, "code"),
        ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, "mask"),
        ("rwkv", {"hidden_size": 32, "num_hidden_layers": 2, "context_length": 64}, "mask"),
    ],
)
def test_an_architecture_that_cannot_be_sampled_from_in_slots_is_refused(family, settings, why, tmp_path):
    tokenizer = byte_tokenizer()
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    expected = {
        "code": r"^the architecture of '.*' computes attention in code of its own, .* Gemma$",
        "mask": r"^(bloom|rwkv) does not take a mask and positions for each row, which sampling needs \(.*\); choose",
    }[why]
    with pytest.raises(ModelError, match=expected):
        load(tmp_path)


@pytest.mark.parametrize("family", MORE_FAMILIES)
def test_scaled_and_capped_logits_are_known(family, directory_of: Directory):
    ids = torch.arange(15)[None]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(directory_of(family), attn_implementation="eager")(ids).logits
        model = load(directory_of(family))
        found = model.head(model.trunk(ids))
    torch.testing.assert_close(found[..., :PAD], expected[..., :PAD], rtol=0, atol=2e-5)


def test_prompt_and_response_that_exceed_the_context_are_refused_before_anything_runs(tmp_path):
    directory = save_family("gpt2", tmp_path / "model", max_position_embeddings=32)
    made = builder(directory, tmp_path)
    with pytest.raises(ConfigError, match=r"max_prompt_tokens = 24 and rollout.max_response_tokens = 16 add up to 40"):
        made.language_model(made.starting_point())


# ── what is no language model, or no whole one ───────────────────────────────────────────────────────────────────────


def test_weights_that_are_no_numbers_are_named(copy):
    tensors = load_file(copy / "model.safetensors")
    tensors["transformer.h.1.mlp.c_fc.weight"][0, 0] = float("nan")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"weights that are no finite numbers \(transformer\.h\.1\.mlp\.c_fc\.weight\)"
    ):
        read(copy)


def test_weights_in_a_wrapper_are_told_from_missing_ones(copy):
    tensors = load_file(copy / "model.safetensors")
    save_file({f"module.{name}": tensor for name, tensor in tensors.items()}, copy / "model.safetensors")
    with pytest.raises(ModelError, match=r'names that begin with "module\.".*save the model inside it'):
        read(copy)


def test_a_classifier_is_no_language_model(directory_of: Directory, tmp_path):
    directory = shutil.copytree(directory_of("llama"), tmp_path / "model")
    AutoModelForSequenceClassification.from_pretrained(directory, num_labels=1).save_pretrained(directory)
    with pytest.raises(ModelError, match="saved as LlamaForSequenceClassification, which is no language model"):
        read(directory)


def test_a_head_that_is_missing_may_be_tied(directory_of: Directory, tmp_path):
    directory = shutil.copytree(directory_of("llama"), tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(directory)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    config = json.loads((directory / "config.json").read_text()) | {"tie_word_embeddings": False}
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="set tie_word_embeddings = true in config"):
        read(directory)
    (directory / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    read(directory)


def test_a_tokenizer_with_more_tokens_than_the_model_is_reported(tmp_path):
    directory = save_family("gpt2", tmp_path)
    tokenizer = byte_tokenizer(eos_token="<|endoftext|>", pad_token="<pad>")
    tokenizer.add_tokens([f"<{number}>" for number in range(5)])
    tokenizer.save_pretrained(directory)
    rows = AutoConfig.from_pretrained(directory).vocab_size
    _, notes = read(directory)
    assert notes[-1].startswith(
        f"embeddings grew from {rows} to {len(tokenizer)} rows, {len(tokenizer) - rows} tokens of"
    )


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda directory: (directory / "model.safetensors").write_text(
                "version https://git-lfs.github.com/spec/v1\n"
            ),
            "model.safetensors is a pointer of Git LFS",
        ),
        (
            lambda directory: _config(directory, model_type="superllama9"),
            r"has model type `superllama9`, which transformers .* does not know; install a newer one",
        ),
        (
            lambda directory: (
                shutil.move(shutil.copytree(directory, directory.parent / "m"), directory / "checkpoint-9")
                and (directory / "config.json").unlink()
            ),
            r"has no config\.json; it holds checkpoint-9, which has one: give .*model/checkpoint-9$",
        ),
    ],
)
def test_a_directory_that_is_not_what_it_seems_is_named(copy, spoil, words):
    spoil(copy)
    with pytest.raises(ModelError, match=words):
        inspect_model(str(copy), subject="model.path")


def _config(directory, **settings):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **settings}))


def test_models_that_read_more_than_text_are_refused():
    text = {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 16}
    with pytest.raises(ModelError, match=r"gemma3, which reads more than text.*choose a model of text alone"):
        refuse_more_than_text(Gemma3Config(text_config=text), "model.path")
    refuse_more_than_text(Gemma3TextConfig(**text), "model.path")


def test_weights_in_eight_bits_are_quantised():
    with pytest.raises(ModelError, match=r"quantised weights \(float8_e4m3fn\)"):
        refuse_quantized(Gemma3TextConfig(dtype="float8_e4m3fn"), "model.path")
