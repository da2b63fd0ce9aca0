"""The shape of a decoder, which is all that memory and time depend on: from a name, a config.json, or in between."""

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import log
from pathlib import Path
from typing import Any, Literal

from rlhfkit.config.model import ModelConfig, ScratchModelConfig
from rlhfkit.config.section import HUB_ID
from rlhfkit.errors import ConfigError, ModelError

__all__ = ["NAMED", "DecoderShape", "shape_named", "shape_of_config", "shape_of_recipe"]

Biases = Literal["none", "attention", "all"]
WIDTH_GRANULE = 128


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """A decoder of equal layers; `bench.limit` takes it as a ModelShape."""

    name: str
    layers: int
    width: int
    heads: int
    key_heads: int
    head_width: int
    inner: int
    """Width of the MLP."""
    vocabulary: int
    tied: bool
    """Whether embeddings and head are one matrix."""
    context: int | None = None
    """Longest sequence."""
    gated: bool = True
    """Whether the MLP has three matrices, as Llama's, or two, as GPT-2's."""
    biases: Biases = "none"
    """Which matrices have one: none; those of queries, keys and values; all, and the norms, as in GPT-2."""
    learned_positions: int = 0
    source: str = ""
    note: str = ""
    """What is not exact about it."""

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """(inputs, outputs): queries; keys; values; attention's output; those of the MLP."""
        queries, keys = self.heads * self.head_width, self.key_heads * self.head_width
        attention = [(self.width, queries), (self.width, keys), (self.width, keys), (queries, self.width)]
        return attention + [(self.width, self.inner)] * (1 + self.gated) + [(self.inner, self.width)]

    @property
    def cache_numbers(self) -> int:
        """Numbers that the KV cache keeps of a token."""
        return self.layers * 2 * self.key_heads * self.head_width

    @property
    def layer_weights(self) -> int:
        """Weights in the matrices of a layer."""
        return sum(inputs * outputs for inputs, outputs in self.matrices)

    @property
    def layer_parameters(self) -> int:
        """Everything in a layer."""
        outputs = [out for _, out in self.matrices]
        of_biases = {"none": 0, "attention": sum(outputs[:3]), "all": sum(outputs)}[self.biases]
        return self.layer_weights + of_biases + 2 * self._norm

    @property
    def _norm(self) -> int:
        return self.width * (2 if self.biases == "all" else 1)

    @property
    def embedding_parameters(self) -> int:
        """The embeddings of tokens, by far the largest tensor of a small model."""
        return self.vocabulary * self.width

    @property
    def trunk_parameters(self) -> int:
        """All but a head of its own: what a reward model or a critic has."""
        positions = self.learned_positions * self.width
        return self.embedding_parameters + positions + self.layers * self.layer_parameters + self._norm

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.trunk_parameters + (0 if self.tied else self.embedding_parameters)

    @property
    def largest_tensor(self) -> int:
        """Numbers in the largest matrix."""
        return max(self.embedding_parameters, *(inputs * outputs for inputs, outputs in self.matrices))

    def adapter_parameters(self, rank: int) -> int:
        """Of LoRA on all linear layers."""
        return self.layers * rank * sum(inputs + outputs for inputs, outputs in self.matrices)


def _qwen(name: str, *sizes: int, vocabulary: int = 152064, tied: bool = False) -> DecoderShape:
    layers, width, heads, key_heads, inner = sizes
    return DecoderShape(
        name=name, layers=layers, width=width, heads=heads, key_heads=key_heads, head_width=width // heads,
        inner=inner, vocabulary=vocabulary, tied=tied, context=32768, biases="attention",
        source=f"config.json of Qwen/{name}",
    )  # fmt: skip


def _llama(name: str, *sizes: int, tied: bool = False) -> DecoderShape:
    layers, width, heads, inner = sizes
    return DecoderShape(
        name=name, layers=layers, width=width, heads=heads, key_heads=8, head_width=width // heads,
        inner=inner, vocabulary=128256, tied=tied, context=131072, source=f"config.json of meta-llama/{name}",
    )  # fmt: skip


NAMED: dict[str, DecoderShape] = {
    "0.5B": _qwen("Qwen2.5-0.5B", 24, 896, 14, 2, 4864, vocabulary=151936, tied=True),
    "1B": _llama("Llama-3.2-1B", 16, 2048, 32, 8192, tied=True),
    "1.5B": _qwen("Qwen2.5-1.5B", 28, 1536, 12, 2, 8960, vocabulary=151936, tied=True),
    "3B": _qwen("Qwen2.5-3B", 36, 2048, 16, 2, 11008, vocabulary=151936, tied=True),
    "7B": _qwen("Qwen2.5-7B", 28, 3584, 28, 4, 18944),
    "8B": _llama("Llama-3.1-8B", 32, 4096, 32, 14336),
    "14B": _qwen("Qwen2.5-14B", 48, 5120, 40, 8, 13824),
    "32B": _qwen("Qwen2.5-32B", 64, 5120, 40, 8, 27648),
    "70B": _llama("Llama-3.1-70B", 80, 8192, 64, 28672),
}
"""Size → the model that stands for it."""
BILLIONS = re.compile(r"(\d+(?:\.\d+)?)\s*([bBmM])")


def shape_named(name: str) -> DecoderShape:
    """The shape that `name` stands for: a size as "8B", a model's name, a directory, a config.json, or a hub id.

    Raises: ConfigError, ModelError with what is known.
    """
    by_name = {shape.name.lower(): shape for shape in NAMED.values()}
    if shape := NAMED.get(name.upper()) or by_name.get(name.rpartition("/")[2].lower()):
        return shape
    path = Path(name).expanduser()
    if path.exists():
        return _of_file(path if path.is_file() else path / "config.json")
    if size := BILLIONS.fullmatch(name):
        return _between(float(size[1]) / (1 if size[2] in "bB" else 1000), name)
    if "/" in name and HUB_ID.fullmatch(name):
        return _of_hub(name)
    near = difflib.get_close_matches(name.lower(), [*by_name, *map(str.lower, NAMED)], n=1)
    meant = f" (did you mean {near[0]}?)" if near else ""
    raise ConfigError(
        f"no model {name!r} is known{meant}; give a size ({', '.join(NAMED)}, or any number between 0.5B and 70B), the "
        "directory of a model with its config.json, or a hub id"
    )


def _of_hub(name: str) -> DecoderShape:
    from rlhfkit.models.inspection import inspect_model

    config = inspect_model(name, subject=f"the model {name!r}")
    return shape_of_config(config.to_dict(), name=name, source=f"config.json of {name}")


def _of_file(file: Path) -> DecoderShape:
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the shape of a model is read from {file}, which cannot be used ({error}); give the directory of a model "
            "in Hugging Face format"
        ) from error
    return shape_of_config(table, name=file.parent.name or str(file), source=str(file))


def shape_of_config(table: Mapping[str, Any], *, name: str, source: str) -> DecoderShape:
    """The shape that a config.json of Hugging Face's describes; names of GPT-2's are understood too.

    Raises: ModelError where it is not a decoder of dense layers, or a size is missing.
    """
    if experts := next((key for key in ("num_experts", "num_local_experts", "n_routed_experts") if table.get(key)), ""):
        raise ModelError(
            f"{source} has {experts} = {table[experts]}, and a plan knows dense decoders alone; give a dense one"
        )

    def size(*keys: str) -> int:
        found = next((table[key] for key in keys if table.get(key) is not None), None)
        if not isinstance(found, int) or isinstance(found, bool) or found <= 0:
            raise ModelError(f"{source} says {keys[0]} = {found!r}, expected a positive number; copy the model again")
        return found

    kind = str(table.get("model_type", "llama"))
    is_gpt2, width = kind == "gpt2", size("hidden_size", "n_embd")
    heads = size("num_attention_heads", "n_head")
    context = size("max_position_embeddings", "n_positions")
    has_bias = kind == "qwen2" or bool(table.get("attention_bias"))
    inner = 4 * width if is_gpt2 and table.get("n_inner") is None else size("intermediate_size", "n_inner")
    return DecoderShape(
        name=name,
        layers=size("num_hidden_layers", "n_layer"),
        width=width,
        heads=heads,
        key_heads=size("num_key_value_heads") if table.get("num_key_value_heads") else heads,
        head_width=size("head_dim") if table.get("head_dim") else width // heads,
        inner=inner,
        vocabulary=size("vocab_size"),
        # transformers' own default is True, and configs of Llama, which unties them, say so.
        tied=bool(table.get("tie_word_embeddings", True)),
        context=context,
        gated=not is_gpt2,
        biases="all" if is_gpt2 else "attention" if has_bias else "none",
        learned_positions=context if is_gpt2 else 0,
        source=source,
        note="" if kind in ("gpt2", "llama", "mistral", "qwen2") else f"{kind} is taken for a decoder like Llama",
    )


def shape_of_recipe(model: ModelConfig) -> DecoderShape:
    """The shape of the model that a recipe begins with. Raises: as `shape_named`."""
    if not isinstance(model, ScratchModelConfig):
        return shape_named(model.path)
    return DecoderShape(
        name="the recipe's own",
        layers=model.num_layers,
        width=model.width,
        heads=model.num_heads,
        key_heads=model.num_heads,
        head_width=model.width // model.num_heads,
        inner=4 * model.width,
        vocabulary=model.vocabulary_tokens,
        tied=True,
        context=model.context_tokens,
        source="the recipe's section model",
    )


def _between(billions: float, name: str) -> DecoderShape:
    """A shape of about so many parameters: sizes in between those of its neighbours, and layers that make it up."""
    known = sorted(NAMED.values(), key=lambda shape: shape.parameters)
    wanted = billions * 1e9
    if not known[0].parameters * 0.99 <= wanted <= known[-1].parameters * 1.01:
        raise ConfigError(
            f"model {name} is not between {known[0].name} and {known[-1].name}, the smallest and the largest whose "
            "shapes are known; give the directory or the config.json of the model"
        )
    above = next((shape for shape in known if shape.parameters >= wanted), known[-1])
    below = known[max(0, known.index(above) - 1)]
    share = log(wanted / below.parameters) / log(above.parameters / below.parameters)
    nearer = above if share > 0.5 else below
    width = below.width * (above.width / below.width) ** share
    width = round(width / WIDTH_GRANULE) * WIDTH_GRANULE
    scaled = replace(
        nearer,
        name=f"about {name}",
        width=width,
        heads=max(nearer.key_heads, width // nearer.head_width),
        inner=round(nearer.inner * width / nearer.width / WIDTH_GRANULE) * WIDTH_GRANULE,
        source=f"between {below.name} and {above.name}",
        note=f"no model of this size is known here: its shape lies between {below.name} and {above.name}",
    )
    layers = round((wanted - (scaled.parameters - scaled.layers * scaled.layer_parameters)) / scaled.layer_parameters)
    return replace(scaled, layers=max(1, layers))
