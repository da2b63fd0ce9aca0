"""Models and tokenizers from a directory or the hub, made fit for RLHF: PAD of its own, no dropout, right attention."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from rlhfkit.config.schema import PretrainedModelConfig
from rlhfkit.errors import ModelError
from rlhfkit.models.activation import use_fast_activations
from rlhfkit.models.attention import WRITTEN_OUT, implementations_for

__all__ = ["load_causal_lm", "load_classifier", "load_tokenizer", "quiet_transformers"]

PAD_TOKEN = "<|pad|>"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and notices, of which none asks the user for anything."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def _explained(path: str, what: str) -> Iterator[None]:
    """Turn the loaders' many exceptions into one ModelError that says what to do."""
    try:
        with quiet_transformers():
            yield
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"cannot load the {what} from {path!r}: {first_line}; {_remedy(path, what)}") from error


class _NoSuchAttention(Exception):
    """An architecture has not got the attention that it was asked for."""


@contextmanager
def _without_that_attention() -> Iterator[None]:
    """Turn the two ways in which transformers says so into one."""
    try:
        yield
    except KeyError as error:  # its attentions stand in a table of its own
        if WRITTEN_OUT not in error.args:
            raise
        raise _NoSuchAttention from error
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        raise _NoSuchAttention from error


def _remedy(path: str, what: str) -> str:
    directory = Path(path)
    if not directory.exists():
        offline = " (the hub is switched off by HF_HUB_OFFLINE)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
        return f"no such directory, and the hub has no such model or cannot be reached{offline}"
    if not (directory / "config.json").exists():
        return "the directory has no config.json; give the directory of a model in Hugging Face format"
    if what == "tokenizer":
        return "the directory needs the model's tokenizer.json and tokenizer_config.json; copy them beside config.json"
    if not any(directory.glob("*.safetensors")):
        return "the directory has no *.safetensors; convert the weights, since pickled ones can run code"
    return "check that it is a complete model in Hugging Face format"


def load_tokenizer(
    config: PretrainedModelConfig, *, needs_eos: bool = True
) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """The tokenizer, with a PAD that stands in no text, and notes that say what was changed.

    Raises: ModelError where there is none, or where it `needs_eos` and has none.
    """
    directory = Path(config.path)
    if directory.is_dir() and not any((directory / name).exists() for name in TOKENIZER_FILES):
        raise ModelError(f"{config.path!r} has no tokenizer; {_remedy(config.path, 'tokenizer')}")
    with _explained(config.path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            config.path, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    notes = []
    if needs_eos and tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {config.path!r} has no EOS token; set eos_token in tokenizer_config.json")
    if why := _why_no_pad(tokenizer):
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
        notes.append(f"the tokenizer had {why}: added {PAD_TOKEN} as token {tokenizer.pad_token_id}")
    tokenizer.padding_side = "right"
    return tokenizer, notes


def _why_no_pad(tokenizer: PreTrainedTokenizerBase) -> str:
    """Why the tokenizer needs a PAD of its own, which stands in no text; empty where it has one."""
    pad, text = tokenizer.pad_token_id, str(tokenizer.pad_token)
    if pad is None:
        return "no PAD"
    if pad == tokenizer.eos_token_id:
        return "PAD equal to EOS, so EOS could not be learnt"
    if pad == tokenizer.bos_token_id:
        return f"PAD equal to BOS, {text!r}, which texts begin with"
    if pad == tokenizer.unk_token_id:
        return f"PAD equal to the unknown token, {text!r}, which stands in texts"
    if pad in tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]:
        return f"PAD {text!r}, which is a token of texts too"
    templates = tokenizer.chat_template or ""
    if any(text in template for template in ([templates] if isinstance(templates, str) else templates.values())):
        return f"PAD {text!r}, which its chat template writes"
    return ""


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "tokenizer_config.json",
    "spiece.model",
)


def load_causal_lm(
    config: PretrainedModelConfig, tokenizer: PreTrainedTokenizerBase, *, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, list[str]]:
    """The language model on `device`, and notes that say what was changed.

    Raises: ModelError where it cannot be loaded from safetensors, or not whole.
    """
    model, random = _load(
        AutoModelForCausalLM,
        config.path,
        what="model",
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        dtype=dtype,
        attentions=implementations_for(device),
    )
    _refuse_random(random, config.path)
    return _ready(model, tokenizer, device)


def load_classifier(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    device: torch.device,
    dtype: torch.dtype,
    num_labels: int | None = None,
    fresh_head: bool = False,
) -> PreTrainedModel:
    """A sequence-classification model; `fresh_head` permits that its head is new.

    Without `num_labels` it is somebody else's and only read, with the attention that its authors chose.
    Raises: ModelError where it cannot be loaded from safetensors, or not whole, apart from a fresh head.
    """
    ours: dict[str, Any] = {}
    if num_labels is not None:
        ours = {"num_labels": num_labels, "attentions": implementations_for(device)}
    model, random = _load(
        AutoModelForSequenceClassification, path, what="sequence-classification model", dtype=dtype, **ours
    )
    _refuse_random(random - {"score.weight"} if fresh_head else random, path)
    return _ready(model, tokenizer, device)[0]


def _load(
    auto_class: Any, path: str, *, what: str, attentions: Sequence[str | None] = (None,), **options: Any
) -> tuple[Any, set[str]]:
    """(the model, names of the weights that its files lack or have in another shape, so that they are random).

    It gets the first of `attentions` that its architecture has; None is what its authors chose.
    """
    first, *others = attentions
    try:
        with _explained(path, what), _without_that_attention():
            model, report = auto_class.from_pretrained(
                path,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                attn_implementation=first,
                **options,
            )
    except _NoSuchAttention as error:
        if others:
            return _load(auto_class, path, what=what, attentions=others, **options)
        raise ModelError(
            f"the architecture of {path!r} computes attention in code of its own, for which there is no substitute "
            "here; choose a model of another architecture, such as GPT-2, Llama, Qwen, Mistral or Gemma"
        ) from error
    return model, {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}


def _refuse_random(weights: set[str], path: str) -> None:
    if weights:
        raise ModelError(
            f"{path!r} lacks {len(weights)} weights that its config.json tells of, or has them in another shape "
            f"({', '.join(sorted(weights)[:3])}, …); they would start at random: give a complete model"
        )


def _ready(model: Any, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> tuple[PreTrainedModel, list[str]]:
    """The model with an embedding for each token of `tokenizer`, and notes that say what was changed.

    In evaluation mode for good: dropout would make the old, new and reference logprobs differ by chance.
    """
    notes = []
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        with quiet_transformers():
            model.resize_token_embeddings(len(tokenizer))
        notes.append(f"embeddings grew from {rows} to {len(tokenizer)} rows, for the tokens that were added")
    model.config.pad_token_id = tokenizer.pad_token_id
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    use_fast_activations(model, device)
    return model.to(device).eval(), notes
