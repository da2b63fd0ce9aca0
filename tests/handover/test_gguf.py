"""A model as GGUF is the model: as the reader of transformers has it, and llama.cpp where it is installed."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from rlhfkit.errors import ConfigError, MissingDependencyError
from rlhfkit.handover import gguf as ours
from rlhfkit.handover.export import export_to
from rlhfkit.handover.gguf import write_gguf
from tests.tiny import save_family

POCKET = Path(__file__).parents[3] / "shared" / "models" / "pocket-17m"
TEXTS = ["The fox isn't here, 1234 tables are; don't ask.", "  two\n\n\tlines, café — 日本 7x", "Hello Hello hello"]
needs_gguf = pytest.mark.skipif(ours.find_spec("gguf") is None, reason="the package gguf is not installed")


def bpe(split, *, ignore_merges=False):
    """A byte-level BPE with merges, which cuts texts as GPT-2, Qwen2 or Llama 3 do."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if split == "gpt-2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        pattern = next(pattern for pattern, name in ours.SPLITS.items() if name == split)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|pad|>", "<|end|>"]
    )
    tokenizer.train_from_iterator(TEXTS * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>")


CASES = {
    # 1024 positions, and heads of 128, which that reader takes for granted.
    "gpt2": ("gpt2", "gpt-2", {"max_position_embeddings": 1024}),
    "gpt2-untied": ("gpt2", "gpt-2", {"tie_word_embeddings": False, "max_position_embeddings": 1024}),
    "llama": ("llama", "llama-bpe", {}),
    "llama-tied": ("llama", "gpt-2", {"tie_word_embeddings": True}),
    "qwen2": ("qwen2", "qwen2", {"use_sliding_window": False}),
    "qwen3": ("qwen3", "qwen2", {"head_dim": 128}),
}


@needs_gguf
@pytest.mark.thorough
@pytest.mark.parametrize("case", CASES)
def test_the_model_read_from_gguf_is_the_model(case, tmp_path):
    family, split, config = CASES[case]
    tokenizer = bpe(split, ignore_merges=split == "llama-bpe")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    model = save_family(family, tmp_path / "model", tokenizer=tokenizer, **config)
    tokens = write_gguf(model, tmp_path / "m.gguf", name="mine")
    assert tokens.split == split and tokens.eos_texts[0] == "<|end|>" and not tokens.adds_bos
    ids = torch.arange(2, 42).view(2, 20)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(model)(ids).logits
        found = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf")(ids).logits
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-6)
    again = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    assert again.eos_token_id == tokenizer.eos_token_id and again.chat_template == tokenizer.chat_template
    read = fields(tmp_path / "m.gguf")
    assert read["tokenizer.ggml.tokens"] == [
        tokenizer.convert_ids_to_tokens(number) for number in range(len(tokenizer))
    ]
    assert read["tokenizer.ggml.pre"] == split and read["tokenizer.ggml.token_type"][:3] == [3, 3, 1]
    merges = json.loads((model / "tokenizer.json").read_text())["model"]["merges"]
    assert read["tokenizer.ggml.merges"] == [" ".join(pair) for pair in merges]


def fields(path):
    reader = pytest.importorskip("gguf").GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}


@needs_gguf
@pytest.mark.thorough
def test_biases_turn_with_their_weights(tmp_path):
    """By hand, as the reader of transformers knows no Llama with biases: row i of a head, then row i + half."""
    model = save_family("llama", tmp_path / "model", tokenizer=bpe("gpt-2"), attention_bias=True)
    write_gguf(model, tmp_path / "m.gguf", name="mine")
    reader = pytest.importorskip("gguf").GGUFReader(tmp_path / "m.gguf")
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    own = AutoModelForCausalLM.from_pretrained(model).state_dict()
    order = [head * 8 + row for head in range(2) for row in (0, 4, 1, 5, 2, 6, 3, 7)]  # two heads of keys, width 8
    for kind in ("weight", "bias"):
        expected = own[f"model.layers.0.self_attn.k_proj.{kind}"][order]
        assert torch.equal(torch.tensor(found[f"blk.0.attn_k.{kind}"]), expected)
        plain = own[f"model.layers.0.self_attn.v_proj.{kind}"]
        assert torch.equal(torch.tensor(found[f"blk.0.attn_v.{kind}"]), plain)


@needs_gguf
@pytest.mark.thorough
def test_weights_keep_their_type(tmp_path):
    model = save_family("llama", tmp_path / "model", tokenizer=bpe("gpt-2"))
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(model)
    write_gguf(model, tmp_path / "m.gguf", name="mine")
    reader = pytest.importorskip("gguf").GGUFReader(tmp_path / "m.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.attn_q.weight"] == "BF16" and kinds["blk.0.attn_norm.weight"] == "F32"
    ids = torch.arange(2, 42).view(2, 20)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)(ids).logits
        found = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)(ids).logits
    assert torch.equal(found, expected)


@needs_gguf
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("family", "config", "words"),
    [
        ("opt", {}, "is a model of type 'opt', and those that are written here"),
        ("qwen2", {}, "has use_sliding_window"),
        ("gpt2", {"activation_function": "relu"}, "has activation_function = 'relu'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "has scale_attn_by_inverse_layer_idx"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "rope_type = 'linear'",
        ),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(family, config, words, tmp_path):
    model = save_family(family, tmp_path / "model", tokenizer=bpe("gpt-2"), **config)
    with pytest.raises(ConfigError, match=words):
        export_to("gguf", model, directory=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_cuts_texts_another_way_is_refused(tmp_path):
    tokenizer = bpe("gpt-2").backend_tokenizer
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match=r"cuts texts in a way that is not known here \(\['Whitespace'\]\)"):
        ours.read_tokens(tmp_path, vocabulary_tokens=300)


def test_without_the_package_the_install_line_is_given(tmp_path, monkeypatch):
    monkeypatch.setattr(ours, "find_spec", lambda name: None)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MissingDependencyError, match=r"pip install 'rlhfkit\[gguf\]'"):
        export_to("gguf", tmp_path, directory=tmp_path / "out")


@needs_gguf
@pytest.mark.thorough
@pytest.mark.skipif(not POCKET.exists(), reason="the small trained model is not here")
def test_llama_cpp_answers_as_the_model_does(tmp_path):
    """In float32 throughout: in bfloat16 llama.cpp rounds activations too, and where two tokens are as good as equal
    the other one may come (1 of these 20, at a gap of 0.0074 between the logits)."""
    llama_cpp = pytest.importorskip("llama_cpp")
    here = AutoModelForCausalLM.from_pretrained(POCKET, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(POCKET)
    for part in (here, tokenizer):
        part.save_pretrained(tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "m.gguf", name="pocket")
    exact = {"type_k": 0, "type_v": 0}  # a cache of float32
    there = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=256, n_threads=1, verbose=False, **exact)
    starts = [("The", " dogs"), ("I'm not", " sure?")] * 10
    for prompt in (f"{start} {number}{end}" for number, (start, end) in enumerate(starts)):
        ids = tokenizer(prompt).input_ids
        assert there.tokenize(prompt.encode(), add_bos=True, special=True) == ids
        answer = here.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False)
        expected = tokenizer.decode(answer[0, len(ids) :], skip_special_tokens=True)
        found = there(prompt, max_tokens=40, temperature=0.0, repeat_penalty=1.0)["choices"][0]["text"]
        assert found == expected
