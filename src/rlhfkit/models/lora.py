"""Low-rank adapters through peft: a policy that carries its own reference."""

import copy

from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from rlhfkit.config.schema import LoraConfig
from rlhfkit.errors import ConfigError

__all__ = ["add_lora", "merged"]


def add_lora(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """The model with fresh adapters, which change nothing yet; only they are trainable.

    Raises: ConfigError where `config.targets` names no module of the model.
    """
    targets = config.targets if isinstance(config.targets, str) else list(config.targets)
    try:
        return get_peft_model(model, PeftLoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets))
    except ValueError as error:
        raise ConfigError(
            f'model.lora.targets = {targets!r} does not fit this model ({error}); use "all-linear" or names of its modules'
        ) from error


def merged(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model with its adapters, if any, folded into the weights; the model itself stays as it is."""
    return copy.deepcopy(model).merge_and_unload() if isinstance(model, PeftModel) else model
