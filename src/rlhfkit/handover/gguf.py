"""A model as one file of GGUF, which llama.cpp, Ollama and their kind read: weights, what they are, and the tokenizer.

Names of tensors come from the package `gguf`; what is not in its tables stands here: which settings an architecture
has, which weights llama.cpp lays out in another order, and which rule cuts a text before its bytes are merged.
Source: the format's specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhfkit.errors import ConfigError, MissingDependencyError, ModelError
from rlhfkit.rundir.atomic import writing

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Tokens", "read_tokens", "require_gguf", "write_gguf"]

ARCHITECTURES = {"gpt2": "GPT2", "llama": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}
"""`model_type` → what the package calls it."""
CONVERTER = "llama.cpp's own convert_hf_to_gguf.py knows more"
CONV1D = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
"""Weights of GPT-2 that are (in, out)."""
ROTATED = (".q_proj.weight", ".k_proj.weight", ".q_proj.bias", ".k_proj.bias")
ACTIVATIONS = {"gpt2": ("activation_function", {"gelu_new", "gelu_pytorch_tanh"}), "llama": ("hidden_act", {"silu"})}

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {_WORDS + r"\p{N}" + _REST: "qwen2", _WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe"}
"""Pattern by which a tokenizer cuts a text first → what llama.cpp calls it; of GPT-2 it is that of byte level."""
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


def require_gguf() -> None:
    """Raises: MissingDependencyError where the package is not installed."""
    spec = find_spec("gguf")
    if spec is None or spec.origin is None:
        raise MissingDependencyError("GGUF is written by the package gguf; pip install 'rlhfkit[gguf]'")


@dataclass(frozen=True, slots=True)
class Tokens:
    """A tokenizer as GGUF has it."""

    texts: list[str]
    types: list[int]
    merges: list[str]
    split: str
    bos: int | None
    eos: tuple[int, ...]
    pad: int | None
    adds_bos: bool
    adds_eos: bool
    chat_template: str | None

    @property
    def eos_texts(self) -> tuple[str, ...]:
        """What ends a response, as text."""
        return tuple(self.texts[token] for token in self.eos)


# ── the tokenizer ────────────────────────────────────────────────────────────────────────────────────────────────────


def read_tokens(directory: Path, *, vocabulary_tokens: int) -> Tokens:
    """The tokenizer of a model's directory, filled up to as many tokens as the model has embeddings.

    Raises: ConfigError where it is no byte-level BPE, or cuts texts in a way that llama.cpp has no name for.
    """
    path = directory / "tokenizer.json"
    if not path.exists():
        raise ConfigError(f"{directory} has no tokenizer.json; save it by transformers first ({CONVERTER})")
    table = _json(path)
    model, added = table["model"], table.get("added_tokens") or []
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise ConfigError(f"the tokenizer of {directory} is {model.get('type')}, not byte-level BPE; {CONVERTER}")
    split = _split_of(table, directory)
    texts = {number: text for text, number in model["vocab"].items()}
    types = dict.fromkeys(texts, NORMAL)
    for token in added:
        texts[token["id"]] = token["content"]
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    unused = {number: f"[UNUSED{number}]" for number in range(vocabulary_tokens) if number not in texts}
    texts, types = texts | unused, types | dict.fromkeys(unused, UNUSED)
    if len(texts) != vocabulary_tokens:
        raise ModelError(f"the tokenizer of {directory} has {len(texts)} tokens, and the model {vocabulary_tokens}")
    bos, pad, eos = _special(directory, texts)
    adds_bos, adds_eos = _adds(path, bos, eos)
    return Tokens(
        texts=[texts[number] for number in range(vocabulary_tokens)],
        types=[types[number] for number in range(vocabulary_tokens)],
        merges=[pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]],
        split=split,
        bos=bos,
        eos=eos,
        pad=pad,
        adds_bos=adds_bos,
        adds_eos=adds_eos,
        chat_template=_chat_template(directory),
    )


def _split_of(table: Mapping[str, Any], directory: Path) -> str:
    """What llama.cpp calls the way that a tokenizer cuts a text."""
    given: dict[str, Any] = table.get("pre_tokenizer") or {}
    steps: list[dict[str, Any]] = given["pretokenizers"] if given.get("type") == "Sequence" else [given]
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True) and not steps[0].get("add_prefix_space"):
        return "gpt-2"
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        pattern = steps[0].get("pattern", {}).get("Regex", "")
        found = SPLITS.get(pattern)
        # llama.cpp takes a word that is a token whole for the one, and always merges for the other.
        if found is not None and bool(table["model"].get("ignore_merges")) == (found == "llama-bpe"):
            return found
    raise ConfigError(f"the tokenizer of {directory} cuts texts in a way that is not known here ({kinds}); {CONVERTER}")


def _special(directory: Path, texts: Mapping[int, str]) -> tuple[int | None, int | None, tuple[int, ...]]:
    """BOS, PAD, and what ends a response, the tokenizer's own first."""
    settings, config = _json(directory / "tokenizer_config.json"), _json(directory / "config.json")
    numbers = {text: number for number, text in texts.items()}

    def number(name: str) -> int | None:
        text = settings.get(name)
        found = numbers.get(text["content"] if isinstance(text, dict) else text) if text else None
        return found if found is not None else _first(config.get(f"{name}_id"))

    ending = _json(directory / "generation_config.json").get("eos_token_id", config.get("eos_token_id"))
    endings = [ending] if isinstance(ending, int) else ending or []
    own = number("eos_token")
    eos = dict.fromkeys([*([own] if own is not None else []), *endings])
    if not eos:
        raise ConfigError(f"{directory} names no token that ends a response; set eos_token in tokenizer_config.json")
    return number("bos_token"), number("pad_token"), tuple(eos)


def _first(value: Any) -> int | None:
    return value[0] if isinstance(value, list) and value else value if isinstance(value, int) else None


def _adds(path: Path, bos: int | None, eos: Sequence[int]) -> tuple[bool, bool]:
    """Whether the tokenizer puts BOS before a text, and EOS after it."""
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(path)).encode("a").ids
    return bool(ids) and ids[0] == bos, bool(ids) and ids[-1] in eos


def _chat_template(directory: Path) -> str | None:
    path = directory / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    found = _json(directory / "tokenizer_config.json").get("chat_template")
    return found if isinstance(found, str) else None


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


# ── the model ────────────────────────────────────────────────────────────────────────────────────────────────────────


def write_gguf(directory: Path, to: Path, *, name: str) -> Tokens:
    """Write the model of a directory as the file `to`, in the type of its weights; its tokenizer as it was written.

    Raises: ConfigError where the file cannot say what the model does, MissingDependencyError.
    """
    require_gguf()
    gguf, config = import_module("gguf"), _json(directory / "config.json")
    kind = str(config.get("model_type"))
    _refuse_what_cannot_be_said(config, kind, directory)
    arch = getattr(gguf.MODEL_ARCH, ARCHITECTURES[kind])
    num_layers = int(config.get("num_hidden_layers") or config["n_layer"])
    tokens = read_tokens(directory, vocabulary_tokens=int(config["vocab_size"]))
    with writing(to):
        writer = gguf.GGUFWriter(str(to), gguf.MODEL_ARCH_NAMES[arch])
        writer.add_name(name)
        _add_settings(writer, config, kind, num_layers)
        _add_tokens(writer, tokens)
        names = gguf.get_tensor_name_map(arch, num_layers)
        types = set()
        for own, tensor in _tensors(directory, config, kind):
            there = names.get_name(own, try_suffixes=(".weight", ".bias"))
            if there is None:
                raise ConfigError(f"{directory} has a weight {own}, for which GGUF has no name; {CONVERTER}")
            types.add(_add_tensor(writer, gguf, there, tensor))
        writer.add_file_type(_file_type(gguf, types))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return tokens


def _refuse_what_cannot_be_said(config: Mapping[str, Any], kind: str, directory: Path) -> None:
    """Raises: ConfigError where llama.cpp would compute something else, and say nothing."""
    if kind not in ARCHITECTURES:
        raise ConfigError(
            f"{directory} is a model of type {kind!r}, and those that are written here are {sorted(ARCHITECTURES)}; "
            f"{CONVERTER}"
        )
    setting, known = ACTIVATIONS["gpt2" if kind == "gpt2" else "llama"]
    faults = [] if config.get(setting) in known else [f"{setting} = {config.get(setting)!r}"]
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    faults += [f"rope_type = {rope_type!r}"] if rope_type != "default" else []
    faults += [name for name in ("use_sliding_window", "scale_attn_by_inverse_layer_idx") if config.get(name)]
    faults += ["scale_attn_weights = false"] if config.get("scale_attn_weights") is False else []
    if faults:
        raise ConfigError(f"{directory} has {', '.join(faults)}, which is not written here; {CONVERTER}")


def _add_settings(writer: Any, config: Mapping[str, Any], kind: str, num_layers: int) -> None:
    writer.add_block_count(num_layers)
    writer.add_vocab_size(config["vocab_size"])
    if kind == "gpt2":
        writer.add_context_length(config["n_positions"])
        writer.add_embedding_length(config["n_embd"])
        writer.add_feed_forward_length(config.get("n_inner") or 4 * config["n_embd"])
        writer.add_head_count(config["n_head"])
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
        return
    heads, width = config["num_attention_heads"], config["hidden_size"]
    head = config.get("head_dim") or width // heads
    rope = config.get("rope_parameters") or {}
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0))


def _add_tokens(writer: Any, tokens: Tokens) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokens.split)
    writer.add_token_list(tokens.texts)
    writer.add_token_types(tokens.types)
    writer.add_token_merges(tokens.merges)
    writer.add_eos_token_id(tokens.eos[0])
    if len(tokens.eos) > 1:
        writer.add_eot_token_id(tokens.eos[1])
    if tokens.bos is not None:
        writer.add_bos_token_id(tokens.bos)
    if tokens.pad is not None:
        writer.add_pad_token_id(tokens.pad)
    writer.add_add_bos_token(tokens.adds_bos)
    writer.add_add_eos_token(tokens.adds_eos)
    if tokens.chat_template is not None:
        writer.add_chat_template(tokens.chat_template)


def _tensors(directory: Path, config: Mapping[str, Any], kind: str) -> "Iterator[tuple[str, Tensor]]":
    """Names and weights, each as llama.cpp lays it out."""
    from safetensors import safe_open

    heads = int(config.get("num_attention_heads") or config.get("n_head") or 0)
    heads_kv = int(config.get("num_key_value_heads") or heads)
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if name.endswith((".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")) or (
                    name == "lm_head.weight" and config.get("tie_word_embeddings", kind == "gpt2")
                ):
                    continue  # masks and angles, which are no weights; the embeddings serve as the output layer
                tensor = file.get_tensor(name)
                if kind == "gpt2" and name.endswith(CONV1D):
                    tensor = tensor.T
                elif kind == "llama" and name.endswith(ROTATED):
                    tensor = _interleaved(tensor, heads_kv if ".k_proj." in name else heads)
                yield name, tensor


def _interleaved(tensor: "Tensor", heads: int) -> "Tensor":
    """Rows of each head as pairs (0, half), (1, half + 1), …, which its rotary embedding turns together.

    In transformers row i of a head turns with row i + half, in llama.cpp with its neighbour.
    """
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def _add_tensor(writer: Any, gguf: Any, name: str, tensor: "Tensor") -> str:
    """Add a weight in its own type; vectors, as norms and biases, are always float32. The type that was taken."""
    import torch

    kinds = {torch.float16: "F16", torch.bfloat16: "BF16"}
    kind = kinds.get(tensor.dtype, "F32") if tensor.ndim > 1 else "F32"
    values = tensor.float().contiguous().numpy()
    if kind == "F32":
        writer.add_tensor(name, values)
    else:
        number = getattr(gguf.GGMLQuantizationType, kind)
        writer.add_tensor(name, gguf.quants.quantize(values, number), raw_dtype=number)
    return kind


def _file_type(gguf: Any, types: set[str]) -> Any:
    kinds = gguf.LlamaFileType
    return kinds.MOSTLY_BF16 if "BF16" in types else kinds.MOSTLY_F16 if "F16" in types else kinds.ALL_F32
