"""What is saved is what was trained: a directory is read again by transformers alone, and compared with the model."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rlhfkit.config.stages import ModelName
from rlhfkit.errors import CheckpointError, ModelError, OutOfMemoryError
from rlhfkit.machine.device import is_out_of_memory
from rlhfkit.machine.seeding import capture_rng, restore_rng
from rlhfkit.models.encoder import Encoder
from rlhfkit.models.generation_config import endings
from rlhfkit.models.loading import WHAT_LOADERS_RAISE, quiet_transformers, reason_of
from rlhfkit.models.sequence_classification import sequence_classification_class
from rlhfkit.rundir.atomic import write_directory_atomically, writing
from rlhfkit.rundir.directory import RunDir

__all__ = ["check_saved_classifier", "check_saved_language_model", "save_model", "try_saving"]

PROBE_TOKENS = 8
TEXT_TOKENS = 64
TOLERANCE = {torch.float32: 0.01}
"""Type of the weights → largest difference of logits, as a share of the largest logit; other types are coarser."""
COARSE = 0.1


def try_saving(run: RunDir, name: ModelName, save: Callable[[Path], object]) -> None:
    """Save a model into a directory that is thrown away: what would fail after training fails before.

    Raises: whatever `save` raises.
    """
    with writing(run.path), tempfile.TemporaryDirectory(dir=run.path, prefix=f".{name}.") as directory:
        save(Path(directory))


def save_model(run: RunDir, name: ModelName, save: Callable[[Path], object], module: nn.Module) -> Path:
    """Directory of the model `name`, as `save` fills it.

    Raises: whatever `save` raises; what was trained is then kept as a file of the tensors of `module`.
    """
    path = run.model(name)
    try:
        with write_directory_atomically(path) as directory:
            save(directory)
    except CheckpointError:  # the disk is full, and has no room for the tensors either
        raise
    except Exception as error:
        rescued = run.path / f"{name}.as-trained.safetensors"
        with writing(rescued):
            save_file(_apart(module.state_dict()), rescued)
        kept = f"the weights as they were trained are kept in {rescued}"
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"out of memory while the model {name} was saved and tried ({error}); {kept}. Close other programs or "
                "part the weights among more processes (parallel.shard=fsdp); then the same command goes on"
            ) from error
        raise ModelError(f"{error}; {kept}") from error
    return path


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without those that share memory with one before, which a file does not hold twice."""
    seen: set[int] = set()
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            found[name] = tensor.detach().contiguous().cpu()
    return found


def check_saved_language_model(
    directory: Path, own: PreTrainedModel, encoder: Encoder, logits_of: Callable[[Tensor], Tensor]
) -> None:
    """Raises: ModelError where transformers alone makes another model of `directory` than `own`, trained here.

    `logits_of` gives the trained model's logits (2, T, V) for ids (2, T); those of PAD are not compared.
    """
    with _as_saved(directory):
        saved: Any = AutoModelForCausalLM.from_pretrained(
            directory, dtype=own.dtype, use_safetensors=True, trust_remote_code=own.is_remote_code()
        )
        saved.eval()
        _check_tokenizer(directory, encoder.tokenizer, trust_remote_code=own.is_remote_code())
        found = _as_list(saved.generation_config.eos_token_id), _as_list(saved.config.eos_token_id)
        expected = endings(own, encoder)
        if found != (expected, expected):
            raise ModelError(f"responses end with the tokens {expected}, and in the saved files with {found}")
        ids = _probe_ids(encoder, _vocabulary_tokens(own))
        _compare(_on_cpu(saved, ids, encoder), _without_pad(logits_of(ids.to(own.device)), encoder), own.dtype)


def check_saved_classifier(
    directory: Path, own: PreTrainedModel, encoder: Encoder, scores_of: Callable[[Tensor], Tensor]
) -> None:
    """The same for a reward model; `scores_of` gives its scores (2,) for ids (2, T)."""
    with _as_saved(directory):
        saved = (
            sequence_classification_class(own.config)
            .from_pretrained(directory, dtype=own.dtype, use_safetensors=True, trust_remote_code=own.is_remote_code())
            .eval()
        )
        _check_tokenizer(directory, encoder.tokenizer, trust_remote_code=own.is_remote_code())
        ids = _probe_ids(encoder, _vocabulary_tokens(own))
        found = saved(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().squeeze(-1)
        _compare(found, scores_of(ids.to(own.device)).float().cpu(), own.dtype)


@contextmanager
def _as_saved(directory: Path) -> Iterator[None]:
    """The block reads what was saved. Its weights stay on the disk, and no random number is drawn from the run's.

    Raises: ModelError that says what was saved, and that nothing of it can be relied on.
    """
    rng = capture_rng()
    try:
        with quiet_transformers(), torch.no_grad():
            yield
    except WHAT_LOADERS_RAISE as error:
        if is_out_of_memory(error):  # which says nothing of the files
            raise
        raise ModelError(
            f"the model that was saved is not the one that was trained: {reason_of(error)}; this is a fault of the "
            "files beside the weights, or of this architecture with this version of transformers: try another "
            "version, another model, or, with model.lora, other targets"
        ) from error
    finally:
        restore_rng(rng)


def _check_tokenizer(directory: Path, ours: PreTrainedTokenizerBase, *, trust_remote_code: bool) -> None:
    saved = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
    # A text of its own tokens, since a tokenizer without UNK can read no others.
    text = str(ours.decode(list(range(0, len(ours), max(1, len(ours) // TEXT_TOKENS))), skip_special_tokens=True))
    expected, found = ours(text)["input_ids"], saved(text)["input_ids"]
    if found != expected:
        raise ModelError(f"the saved tokenizer reads {text!r} as {found}, and the one of training as {expected}")
    for name in ("eos_token_id", "pad_token_id", "chat_template"):
        if getattr(saved, name) != getattr(ours, name):
            raise ModelError(f"{name} of the saved tokenizer is {getattr(saved, name)!r}, not {getattr(ours, name)!r}")


def _probe_ids(encoder: Encoder, vocabulary_tokens: int) -> Tensor:
    """Two rows (2, T) of tokens from all over the vocabulary, without PAD."""
    ids = torch.linspace(0, vocabulary_tokens - 1, 2 * PROBE_TOKENS).long().view(PROBE_TOKENS, 2).T.contiguous()
    return torch.where(ids == encoder.pad_id, encoder.eos_id, ids)


def _vocabulary_tokens(model: PreTrainedModel) -> int:
    return int(model.get_input_embeddings().get_parameter("weight").shape[0])


def _on_cpu(model: Any, ids: Tensor, encoder: Encoder) -> Tensor:
    return _without_pad(model(input_ids=ids, use_cache=False).logits, encoder)


def _without_pad(logits: Tensor, encoder: Encoder) -> Tensor:
    return logits.float().cpu().index_fill(-1, torch.tensor([encoder.pad_id]), 0.0)


def _compare(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Raises: ModelError where numbers differ by more than rounding makes."""
    if found.shape != expected.shape:
        raise ModelError(f"outputs have the shape {tuple(found.shape)}, and had {tuple(expected.shape)} in training")
    difference, largest = float((found - expected).abs().max()), float(expected.abs().max())
    if not difference <= TOLERANCE.get(dtype, COARSE) * max(largest, 1.0):  # NaN is never equal
        raise ModelError(f"on the same tokens, outputs differ by up to {difference:.3g} (the largest is {largest:.3g})")


def _as_list(ids: int | Sequence[int] | None) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
