"""What can be known of a model before its weights are read."""

import difflib
import json
from pathlib import Path

import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig

from rlhfkit.config.section import HUB_ID
from rlhfkit.errors import ModelError
from rlhfkit.models.hub import hub_answers, hub_options
from rlhfkit.models.loading import WHAT_LOADERS_RAISE, quiet_transformers, reason_of

__all__ = ["context_of", "inspect_model", "refuse_more_than_text", "refuse_quantized", "shortened_context_note"]


def inspect_model(
    path: str, *, subject: str, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedConfig:
    """Configuration of the model in a directory or on the hub; of a directory, once its files look whole.

    Raises: ModelError, which begins with `subject`, such as the setting that names the model.
    """
    directory = Path(path)
    if path and directory.is_dir():
        _check_files(directory, subject)
    elif directory.is_file():
        raise ModelError(f"{subject} is a file; give the directory of a model in Hugging Face format")
    elif not HUB_ID.fullmatch(path):
        raise ModelError(f"{subject}: there is no such directory{_suggestion(directory)}; fix the path")
    try:
        with quiet_transformers():
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                path, revision=revision, trust_remote_code=trust_remote_code, **hub_options(path)
            )
    except WHAT_LOADERS_RAISE as error:
        reason = reason_of(error)
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{subject} needs Python code out of its directory, which does not run unless the recipe says so; "
                "choose another model, or read that code and set model.trust_remote_code = true, which is for "
                "model.path alone"
            ) from error
        if "does not recognize this architecture" in str(error):
            has = reason.partition(" but ")[0].replace("The checkpoint you are trying to load", "it")
            raise ModelError(
                f"{subject}: {has}, which transformers {transformers.__version__} does not know; install a newer one, "
                "or choose another model"
            ) from error
        if directory.is_dir():
            raise ModelError(f"{subject}: its config.json cannot be used ({reason}); copy the model again") from error
        if not hub_answers():
            reason = "it does not answer, or is switched off by HF_HUB_OFFLINE, and nothing of it was downloaded before"
        raise ModelError(
            f"{subject}: there is no such directory{_suggestion(directory)}, and the hub does not give such a model "
            f"({reason}); fix the path, or the connection"
        ) from error
    _check_numbers(config, subject)
    return config


SIZES = {
    "head_dim": 1 << 16,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 22,
    "max_position_embeddings": 1 << 30,
    "num_attention_heads": 1 << 14,
    "num_experts": 1 << 14,
    "num_hidden_layers": 1 << 12,
    "num_key_value_heads": 1 << 14,
    "num_local_experts": 1 << 14,
    "vocab_size": 1 << 26,
}
"""Number in a configuration → more than any model has of it."""


def _check_numbers(config: PreTrainedConfig, subject: str) -> None:
    """Raises: ModelError where a size is no size: a network of it would divide by 0, or never be built to its end."""
    for name, most in SIZES.items():
        value = getattr(config, name, None)
        if isinstance(value, int) and not 0 < value <= most:
            raise ModelError(
                f"{subject}: its config.json says {name} = {value}, and 1 is the least, {most} the most; copy the "
                "model again"
            )


def context_of(config: PreTrainedConfig) -> int | None:
    """Longest sequence that a model's positions allow, where its configuration says so.

    With long rope it is the length of pre-training: beyond it all positions of a batch turn in another way, so that a
    row would depend on its neighbours, and tokens sampled early on what comes later.
    """
    length = getattr(config, "max_position_embeddings", None)
    ropes = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for rope in (ropes, *(table for table in ropes.values() if isinstance(table, dict))):
        if (rope.get("rope_type") or rope.get("type")) in ("longrope", "su"):
            original = rope.get("original_max_position_embeddings")
            original = original or getattr(config, "original_max_position_embeddings", None)
            length = min(length or original, original) if original else length
    return int(length) if length else None


def shortened_context_note(config: PreTrainedConfig) -> list[str]:
    """What to say where the context is shorter than the configuration has it."""
    length, context = getattr(config, "max_position_embeddings", None), context_of(config)
    if not length or context is None or context >= length:
        return []
    return [
        f"the model has long rope: sequences here have at most {context} tokens, the length of its pre-training, not "
        f"{length}, since beyond it a row would depend on the rows beside it"
    ]


MOST_BYTES = {".json": 1 << 30, ".jinja": 1 << 24, ".model": 1 << 28, ".txt": 1 << 28}
"""Ending → more than a file of a model that is read as a whole has."""


POINTER = b"version https://git-lfs"


def _check_plain_files(directory: Path, subject: str) -> None:
    """Raises: ModelError where a file cannot be read to its end, as a pipe, or is too large to be what it is named."""
    for file in sorted(directory.iterdir()):
        if file.suffix not in (*MOST_BYTES, ".safetensors") or file.is_dir():
            continue
        if not file.is_file():
            raise ModelError(f"{subject}: {file.name} is no file that can be read; copy the model again")
        with file.open("rb") as opened:
            if opened.read(len(POINTER)) == POINTER:
                raise ModelError(
                    f"{subject}: {file.name} is a pointer of Git LFS, not the file itself; fetch it with git lfs pull"
                )
        most = MOST_BYTES.get(file.suffix)
        if most is not None and file.stat().st_size > most:
            raise ModelError(
                f"{subject}: {file.name} has {file.stat().st_size:,} bytes, and {most:,} are the most that is read; "
                "copy the model again"
            )


def _refuse_adapter(directory: Path, subject: str) -> None:
    """Raises: ModelError where it is not clear which weights are meant: those of an adapter, or others beside it."""
    adapter = directory / "adapter_config.json"
    if not adapter.exists():
        return
    try:
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    fold = "fold it into its base model with merge_and_unload() and save_pretrained() of peft, and give that directory"
    if any(directory.glob("model*.safetensors")):
        raise ModelError(
            f"{subject} holds whole weights and adapter_config.json of an adapter on {base!r}, and transformers would "
            f"load the adapter; move adapter_config.json and adapter_model.safetensors out of it if the weights are "
            f"meant; if the adapter is, {fold}"
        )
    raise ModelError(f"{subject} is an adapter on {base!r}, not a whole model; {fold}")


def refuse_quantized(config: PreTrainedConfig, subject: str) -> None:
    """Raises: ModelError where weights are stored in a form that cannot be trained, nor saved as it was trained."""
    quantization = getattr(config, "quantization_config", None)
    if "float8" in str(config.dtype):
        quantization = {"quant_method": str(config.dtype).removeprefix("torch.")}
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization.quant_method
        raise ModelError(
            f"{subject} has quantised weights ({getattr(method, 'value', method)}), which cannot be trained; give the "
            "model in float32, bfloat16 or float16, from which it was made"
        )


INNER = ("*/config.json", "snapshots/*/config.json")
"""Where a trainer's checkpoints and the hub's cache have theirs."""


def refuse_more_than_text(config: PreTrainedConfig, subject: str) -> None:
    """Raises: ModelError for a model that sees or hears, whose language model is a part of it."""
    if config.get_text_config() is not config and not getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{subject} is {config.model_type}, which reads more than text, and its language model is a part of it; "
            "choose a model of text alone"
        )


def _check_files(directory: Path, subject: str) -> None:
    _check_plain_files(directory, subject)
    _refuse_adapter(directory, subject)
    if not (directory / "config.json").is_file():
        inner = sorted(file.parent for pattern in INNER for file in directory.glob(pattern))
        hint = f"; it holds {inner[-1].relative_to(directory)}, which has one: give {inner[-1]}" if inner else ""
        raise ModelError(
            f"{subject} has no config.json{hint or '; give the directory of a model in Hugging Face format'}"
        )
    files = set(directory.glob("*.safetensors"))
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            if outside := sorted(name for name in names if Path(name).name != name):
                raise ModelError(f"{subject}: {index.name} names {outside[0]!r} outside of it; copy the model again")
            files |= {directory / name for name in names}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{subject}: {index.name} cannot be read ({error}); copy the model again") from error
    if (directory / "generation_config.json").is_file():
        try:
            GenerationConfig.from_pretrained(directory)
        except WHAT_LOADERS_RAISE as error:
            raise ModelError(
                f"{subject}: its generation_config.json cannot be used ({reason_of(error)}); correct it, or remove it"
            ) from error
    if not files:
        raise ModelError(
            f"{subject} has no *.safetensors; pickled weights, as in pytorch_model.bin, can run code and are not read: "
            "convert them with save_pretrained() of transformers"
        )
    for file in sorted(files):
        try:
            with safe_open(file, "pt"):  # reads the header, and compares it with the size of the file
                pass
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{subject}: {file.name} is missing or not whole ({error}); copy it again") from error


def _suggestion(path: Path) -> str:
    there = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, there, n=1)
    return f" (did you mean {path.with_name(near[0])}?)" if near else ""
