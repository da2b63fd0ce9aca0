"""A language model without its weights: what can be known of it before these are read."""

from collections.abc import Collection
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from rlhfkit.config.model import PretrainedModelConfig
from rlhfkit.config.recipe import Recipe
from rlhfkit.config.stages import Stage
from rlhfkit.errors import ConfigError, ModelError
from rlhfkit.models.inspection import refuse_more_than_text, refuse_quantized
from rlhfkit.models.loading import WHAT_LOADERS_RAISE, quiet_transformers, reason_of
from rlhfkit.models.lora import add_lora
from rlhfkit.models.sequence_classification import sequence_classification_class

__all__ = ["has_experts", "outline_of", "refuse_more_than_files", "refuse_what_later_stages_cannot_use"]


def refuse_what_later_stages_cannot_use(
    config: PreTrainedConfig, source: PretrainedModelConfig, recipe: Recipe, stages: Collection[Stage]
) -> None:
    """Raises: ModelError, ConfigError where one of `stages` could not make what it needs of the model in `source`."""
    subject = f'model.path = "{source.path}"'
    refuse_quantized(config, subject)
    refuse_more_than_text(config, subject)
    outline = outline_of(config, subject=subject)
    refuse_more_than_files(outline, Path(source.path), subject=subject)
    if recipe.rollout.engine == "vllm" and has_experts(outline):
        raise ConfigError(
            'rollout.engine = "vllm" takes no weights of a mixture of experts, whose names differ there; set '
            'rollout.engine = "own", or choose a model without experts'
        )
    scores = "reward_model" in stages or ("judge" in stages and recipe.judge.type == "reward_model")
    has_critic = recipe.ppo.estimator == "gae" and recipe.ppo.value.network == "separate"
    if scores or ("ppo" in stages and has_critic):
        sequence_classification_class(config)
    if recipe.model.lora is not None:
        add_lora(outline, recipe.model.lora)


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
