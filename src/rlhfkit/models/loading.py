"""Models and tokenizers from a directory or the hub, made fit for RLHF: PAD of its own, no dropout, right attention."""

import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
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

from rlhfkit.config.model import PretrainedModelConfig
from rlhfkit.errors import ModelError
from rlhfkit.models.attention import WRITTEN_OUT, implementations_for
from rlhfkit.models.fast.activation import use_fast_activations
from rlhfkit.models.generation_config import make_generation_config_valid
from rlhfkit.models.hub import hub_options
from rlhfkit.models.sequence_classification import sequence_classification_class

__all__ = [
    "WHAT_LOADERS_RAISE",
    "fit_model",
    "fit_tokenizer",
    "load_causal_lm",
    "load_classifier",
    "load_tokenizer",
    "quiet_transformers",
    "reason_of",
]

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
    except torch.OutOfMemoryError:
        raise
    except WHAT_LOADERS_RAISE as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"the {what} in {path!r} needs Python code out of its directory, which does not run unless the recipe "
                "says so; choose another model, or read that code and set model.trust_remote_code = true, which is "
                "for model.path alone"
            ) from error
        raise ModelError(f"cannot load the {what} from {path!r}: {reason_of(error)}; {_remedy(path, what)}") from error


WHAT_LOADERS_RAISE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
"""What transformers, tokenizers and torch make of files that hold nonsense, as a number of heads that is 0."""


def reason_of(error: Exception) -> str:
    """The first line of what a library says, with the error's name where the line alone says little."""
    line = (str(error).strip().replace(":\n", ":").splitlines() or [""])[0].rstrip(".")
    if isinstance(error, OSError | ValueError | ImportError) and line:
        return line
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


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
            config.path,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            **hub_options(config.path),
        )
    _refuse_runaway(tokenizer, config.path)
    return tokenizer, fit_tokenizer(tokenizer, config.path, needs_eos=needs_eos)


def fit_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str, *, needs_eos: bool = True) -> list[str]:
    """What was changed so that the tokenizer, `name` in messages, has a PAD that stands in no text.

    Raises: ModelError where it `needs_eos` and has none.
    """
    notes = []
    if needs_eos and tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {name!r} has no EOS token; set eos_token in tokenizer_config.json")
    if why := _why_no_pad(tokenizer):
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
        notes.append(f"the tokenizer had {why}: added {PAD_TOKEN} as token {tokenizer.pad_token_id}")
    tokenizer.padding_side = "right"
    return notes


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


RUNS = tuple(
    unit * (48 // len(unit)) + end for unit in ("a", "aB", "a ", "1", " ", "-", "\n", "ä") for end in ("!", "x")
)
"""Texts on which a pattern with nested repeats takes time that doubles with each letter."""
MOST_SECONDS = 5.0


def _refuse_runaway(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Raises: ModelError where a pattern in the tokenizer's files never comes to an end on a short text."""
    start = time.monotonic()
    for text in RUNS:
        try:
            tokenizer(text)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # what tokenizers, which is Rust, makes of its limit
                raise
            raise ModelError(f"{_runaway(path, text)} ({reason_of(RuntimeError(str(error)))}); {COPY_AGAIN}") from error
        if time.monotonic() - start > MOST_SECONDS:
            raise ModelError(f"{_runaway(path, text)} in {MOST_SECONDS:g} seconds; {COPY_AGAIN}")


def _runaway(path: str, text: str) -> str:
    return f"the tokenizer in {path!r} does not come to an end on {text[:8]!r}…, {len(text)} letters,"


COPY_AGAIN = "a pattern in its tokenizer.json runs wild: copy the tokenizer again from a source you trust"


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
    model, report = _load(
        AutoModelForCausalLM,
        config.path,
        what="model",
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        dtype=dtype,
        attentions=implementations_for(device),
    )
    _refuse_random(report, config.path, made_as=model.config.architectures)
    if getattr(model, "is_quantized", False):
        raise ModelError(
            f"{config.path!r} has quantised weights, which cannot be trained; give the model in float32, bfloat16 or "
            "float16, from which it was made"
        )
    notes = _unused_notes(report.unused, config.path) + make_generation_config_valid(model)
    model, more = fit_model(model, tokenizer, device)
    return model, [*notes, *more]


def load_classifier(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    device: torch.device,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    num_labels: int | None = None,
    fresh_head: bool = False,
) -> PreTrainedModel:
    """A sequence-classification model; `fresh_head` permits that its head is new.

    Without `num_labels` it is somebody else's and only read, with the attention that its authors chose.
    Raises: ModelError where it cannot be loaded from safetensors, or not whole, apart from a fresh head.
    """
    auto_class: Any = AutoModelForSequenceClassification
    ours: dict[str, Any] = {}
    if num_labels is not None:
        with _explained(path, "config.json"):
            family = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, **hub_options(path))
        auto_class = sequence_classification_class(family)
        ours = {"num_labels": num_labels, "attentions": implementations_for(device)}
    model, report = _load(
        auto_class,
        path,
        what="sequence-classification model",
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        **ours,
    )
    _refuse_random(replace(report, random=report.random - {"score.weight"}) if fresh_head else report, path)
    _unused_notes(report.unused, path)
    return fit_model(model, tokenizer, device)[0]


@dataclass(frozen=True)
class _Report:
    """What came of the names of weights in a file."""

    random: set[str]
    """The file lacks them, or has them in another shape."""
    unused: set[str]
    """The file has them, and the model has not."""


def _load(
    auto_class: Any,
    path: str,
    *,
    what: str,
    trust_remote_code: bool,
    attentions: Sequence[str | None] = (None,),
    **options: Any,
) -> tuple[Any, _Report]:
    """(the model, which weights would be random, and which were not used).

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
                trust_remote_code=trust_remote_code,
                **hub_options(path),
                **options,
            )
    except _NoSuchAttention as error:
        if others:
            return _load(auto_class, path, what=what, trust_remote_code=trust_remote_code, attentions=others, **options)
        raise ModelError(
            f"the architecture of {path!r} computes attention in code of its own, for which there is no substitute "
            "here; choose a model of another architecture, such as GPT-2, Llama, Qwen, Mistral or Gemma"
        ) from error
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(
            f"{path!r} holds an adapter, which transformers has loaded on another model; fold it in with "
            "merge_and_unload() and save_pretrained() of peft, and give that directory"
        )
    random = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    return model, _Report(random, set(report["unexpected_keys"]))


LAYER = re.compile(r"(^|\.)(layers?|h|blocks?)\.\d+\.")


def _unused_notes(weights: set[str], path: str) -> list[str]:
    """What to say of weights that the model has no place for.

    Raises: ModelError where they are of layers, so that another network would compute than the one that was trained.
    """
    layers = sorted(name for name in weights if LAYER.search(name))
    if layers:
        raise ModelError(
            f"{path!r} has {len(layers)} weights of layers that its config.json does not name "
            f"({', '.join(layers[:3])}, …); they would be left out: correct num_hidden_layers in config.json, or "
            "give a complete model"
        )
    names = sorted(weights)
    return [f"{path} has {len(names)} weights that are not used ({', '.join(names[:3])})"] if names else []


def _refuse_random(report: _Report, path: str, *, made_as: Sequence[str] | None = None) -> None:
    """Raises: ModelError where weights would be random; for a language model `made_as` says what was saved there."""
    if not report.random:
        return
    wrapped = [name for name in sorted(report.unused) if name.partition(".")[2] in report.random]
    is_language_model = not made_as or any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in made_as)
    if made_as and not is_language_model:
        remedy = f"it was saved as {made_as[0]}, which is no language model: give a causal language model"
    elif 2 * len(wrapped) > len(report.unused):
        remedy = (
            f'the file has them under names that begin with "{wrapped[0].partition(".")[0]}.", as of a model in a '
            "wrapper: save the model inside it"
        )
    elif made_as and report.random == {"lm_head.weight"}:
        remedy = (
            "if its head is its embedding, set tie_word_embeddings = true in config.json, else give a complete model"
        )
    else:
        remedy = "give a complete model"
    raise ModelError(
        f"{path!r} lacks {len(report.random)} weights that its config.json tells of, or has them in another shape "
        f"({', '.join(sorted(report.random)[:3])}, …); they would start at random: {remedy}"
    )


def fit_model(
    model: Any, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> tuple[PreTrainedModel, list[str]]:
    """The model with an embedding for each token of `tokenizer`, and notes that say what was changed.

    In evaluation mode for good: dropout would make the old, new and reference logprobs differ by chance.
    """
    notes = []
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        with quiet_transformers():
            model.resize_token_embeddings(len(tokenizer))
        foreign = len(tokenizer) - rows - (tokenizer.pad_token == PAD_TOKEN)
        why = (
            f"{foreign} tokens of the tokenizer have none in the model and begin at random: is it the model's own?"
            if foreign
            else "for the tokens that were added"
        )
        notes.append(f"embeddings grew from {rows} to {len(tokenizer)} rows, {why}")
    model.config.pad_token_id = tokenizer.pad_token_id
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    use_fast_activations(model, device)
    return model.to(device).eval(), notes
