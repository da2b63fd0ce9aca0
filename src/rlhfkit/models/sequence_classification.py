"""A sequence-classification class for every decoder, also for families to which transformers gives none."""

from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForSequenceClassification

from rlhfkit.errors import ModelError

__all__ = ["is_known_to_transformers", "sequence_classification_class"]


def is_known_to_transformers(config: PreTrainedConfig) -> bool:
    """Whether transformers alone can load a sequence-classification model of this family."""
    return type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING


def sequence_classification_class(config: PreTrainedConfig) -> Any:
    """What loads such a model: the class of transformers, or the family's trunk with a linear head `score` on it.

    The head is the one that transformers puts on Llama, Qwen and Gemma. Weights have the same names.
    Raises: ModelError where the family has no causal language model in transformers.
    """
    if is_known_to_transformers(config):
        return AutoModelForSequenceClassification
    causal_lm = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if not isinstance(causal_lm, type):
        raise ModelError(
            f"{config.model_type} models have no sequence-classification class, which a reward model and a value "
            'network need; set ppo.value.network = "shared", or ppo.estimator = "grpo" or "rloo", with a reward of '
            "another kind, or choose a model of another architecture, such as GPT-2, Llama, Qwen, Mistral or Gemma"
        )
    bases = [cls for cls in causal_lm.__mro__ if issubclass(cls, PreTrainedModel)]
    family = next(cls for cls in bases if cls.__name__.endswith(SHARED))
    name = causal_lm.__name__.removesuffix("ForCausalLM").removesuffix("LMHeadModel") + "ForSequenceClassification"
    prefix = {"base_model_prefix": causal_lm.base_model_prefix, "__module__": __name__}
    return type(name, (GenericForSequenceClassification, family), prefix)


SHARED = "PreTrainedModel"
"""How transformers ends the name of what the classes of a family share."""
