"""Models and tokenizers from a directory or a hub id, made fit for RLHF: a PAD of its own, no dropout, right attention."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from rlhfkit.config.schema import PretrainedModelConfig
from rlhfkit.errors import ModelError
from rlhfkit.models.attention import implementation_for

__all__ = ["load_causal_lm", "load_classifier", "load_tokenizer", "quiet_transformers"]

PAD_TOKEN = "<|pad|>"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and notices, of which none asks the user for anything."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def _explained(path: str, what: str) -> Iterator[None]:
    """Turn the loaders' many exceptions into one ModelError that says what to do."""
    try:
        with quiet_transformers():
            yield
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"cannot load the {what} from {path!r}: {first_line}; {_remedy(path, what)}") from error


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


def load_tokenizer(config: PretrainedModelConfig) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """The tokenizer, with a PAD that is not EOS, and notes that say what was changed.

    Raises: ModelError where there is none, or where it has no EOS.
    """
    directory = Path(config.path)
    if directory.is_dir() and not any((directory / name).exists() for name in TOKENIZER_FILES):
        raise ModelError(f"{config.path!r} has no tokenizer; {_remedy(config.path, 'tokenizer')}")
    with _explained(config.path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            config.path, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    notes = []
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {config.path!r} has no EOS token; set eos_token in tokenizer_config.json")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        why = "no PAD" if tokenizer.pad_token_id is None else "PAD equal to EOS, so EOS could not be learnt"
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
        notes.append(f"the tokenizer had {why}: added {PAD_TOKEN} as token {tokenizer.pad_token_id}")
    tokenizer.padding_side = "right"
    return tokenizer, notes


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

    Raises: ModelError where it cannot be loaded from safetensors, or weights are missing.
    """
    with _explained(config.path, "model"):
        model, report = AutoModelForCausalLM.from_pretrained(
            config.path,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation=implementation_for(device),
            output_loading_info=True,
        )
    _refuse_missing(report, config.path)
    notes = []
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        with quiet_transformers():
            model.resize_token_embeddings(len(tokenizer))
        notes.append(f"embeddings grew from {rows} to {len(tokenizer)} rows, for the tokens that were added")
    return _ready(model, tokenizer, device), notes


def load_classifier(
    path: str, *, device: torch.device, dtype: torch.dtype, num_labels: int | None = None, fresh_head: bool = False
) -> PreTrainedModel:
    """A sequence-classification model; `fresh_head` permits, and expects, that its head is new.

    Raises: ModelError where it cannot be loaded, or has weights missing other than a fresh head.
    """
    options: dict[str, Any] = {} if num_labels is None else {"num_labels": num_labels}
    with _explained(path, "sequence-classification model"):
        decoder = AutoConfig.from_pretrained(path).model_type not in ENCODERS
        if decoder:
            options["attn_implementation"] = implementation_for(device)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
    if not fresh_head:
        _refuse_missing(report, path)
    return _ready(model, None, device)


# These look both ways, so the attention that is registered for causal models is not theirs.
ENCODERS = frozenset(
    {
        "bert",
        "roberta",
        "distilbert",
        "deberta",
        "deberta-v2",
        "albert",
        "electra",
        "xlm-roberta",
        "modernbert",
        "camembert",
        "mpnet",
    }
)


def _refuse_missing(report: Any, path: str) -> None:
    missing = sorted(report["missing_keys"] if isinstance(report, dict) else report.missing_keys)
    if missing:
        raise ModelError(
            f"{path!r} lacks {len(missing)} weights of its architecture ({', '.join(missing[:3])}, …), which would start "
            "at random; give a complete model"
        )


def _ready(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, device: torch.device) -> PreTrainedModel:
    """Evaluation mode for good: dropout would make the old, new and reference logprobs differ by chance."""
    if tokenizer is not None:
        model.config.pad_token_id = tokenizer.pad_token_id
        if model.generation_config is not None:
            model.generation_config.pad_token_id = tokenizer.pad_token_id
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.to(device).eval()
