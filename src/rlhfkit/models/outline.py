"""A language model without its weights: what can be known of it before these are read."""

from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from rlhfkit.errors import ModelError
from rlhfkit.models.loading import WHAT_LOADERS_RAISE, quiet_transformers, reason_of

__all__ = ["has_experts", "outline_of", "refuse_more_than_files"]


def outline_of(config: PreTrainedConfig, *, subject: str) -> PreTrainedModel:
    """The causal language model that `config` describes; its weights have shapes and no numbers.

    Raises: ModelError, which begins with `subject`, where there is no such model.
    """
    try:
        with quiet_transformers(), torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, trust_remote_code=False
            )
    except WHAT_LOADERS_RAISE as error:
        raise ModelError(
            f"{subject}: no language model can be made after its config.json ({reason_of(error)}); give a causal "
            "language model in Hugging Face format"
        ) from error
    return model


def has_experts(model: PreTrainedModel) -> bool:
    """Whether the model is a mixture of experts, whose matrices transformers lays into one tensor each."""
    return any(parameter.dim() == 3 for parameter in model.parameters())


def refuse_more_than_files(model: PreTrainedModel, directory: Path, *, subject: str) -> None:
    """Raises: ModelError where the outline has many times the weights that the files hold; they would fill memory.

    Of a model of the hub, the files are not here yet.
    """
    if not directory.is_dir():
        return
    described = sum(parameter.numel() for parameter in model.parameters())
    held = 0
    for file in directory.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118  # it is no dictionary
                size = 1
                for length in weights.get_slice(name).get_shape():
                    size *= length
                held += size
    if described > 4 * held + 1_000_000:
        raise ModelError(
            f"{subject}: its config.json describes {described:,} weights, and its files hold {held:,}; copy the model "
            "again"
        )
