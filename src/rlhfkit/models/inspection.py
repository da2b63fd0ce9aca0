"""What can be told of a model before its weights are read."""

import difflib
import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig

from rlhfkit.errors import ModelError
from rlhfkit.models.loading import quiet_transformers

__all__ = ["context_of", "inspect_model"]

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


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
        raise ModelError(f"{subject}: there is no such directory{_suggestion(directory)}; mend the path")
    try:
        with quiet_transformers():
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                path, revision=revision, trust_remote_code=trust_remote_code
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        if directory.is_dir():
            raise ModelError(f"{subject}: its config.json cannot be used ({reason}); copy the model again") from error
        raise ModelError(
            f"{subject}: there is no such directory{_suggestion(directory)}, and the hub does not give such a model "
            f"({reason}); mend the path, or the connection"
        ) from error
    return config


def context_of(config: PreTrainedConfig) -> int | None:
    """Longest sequence that a model's positions allow, where its configuration says so."""
    length = getattr(config, "max_position_embeddings", None)
    return int(length) if length else None


def _check_files(directory: Path, subject: str) -> None:
    if not (directory / "config.json").is_file():
        raise ModelError(f"{subject} has no config.json; give the directory of a model in Hugging Face format")
    files = set(directory.glob("*.safetensors"))
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            files |= {directory / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{subject}: {index.name} cannot be read ({error}); copy the model again") from error
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
