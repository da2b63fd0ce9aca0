"""Low-rank adapters through peft: a policy that carries its own reference."""

import copy
import warnings
from collections.abc import Iterator
from typing import Any

from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel

from rlhfkit.config.model import LoraConfig
from rlhfkit.errors import ConfigError

__all__ = ["add_lora", "merged", "merged_weights", "unwrapped"]


def add_lora(model: PreTrainedModel, config: LoraConfig, *, notes: list[str] | None = None) -> PeftModel:
    """The model with fresh adapters, which change nothing yet; only they, and the head of a classifier, are trainable.

    What peft warns of is added to `notes`.
    Raises: ConfigError where `config.targets` names no module of the model, or one whose weight is another's too.
    """
    ends = _tied_ends(model)
    targets = config.targets if isinstance(config.targets, str) else list(config.targets)
    head = getattr(model, "score", None)
    settings = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft says int, and divides by the rank
        target_modules=targets,
        exclude_modules=None if head is None else ["score"],  # small and new, so it is trained whole
    )
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            adapted = get_peft_model(model, settings)
    except ValueError as error:
        raise ConfigError(
            f"model.lora.targets = {targets!r} does not fit this model ({error}); use 'all-linear' or names of modules"
        ) from error
    _refuse_tied(adapted, ends, targets)
    if notes is not None:
        notes += [f"peft: {warning.message}" for warning in warned if not issubclass(warning.category, FutureWarning)]
    if head is not None:
        head.requires_grad_(True)
    return adapted


def _tied_ends(model: PreTrainedModel) -> tuple[Any, ...]:
    """Embeddings and output layer where they have one weight in common."""
    first: Any = model.get_input_embeddings()
    last: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    is_tied = last is not None and getattr(first, "weight", None) is getattr(last, "weight", None)
    return (first, last) if is_tied else ()


def _refuse_tied(model: PeftModel, ends: tuple[Any, ...], targets: object) -> None:
    """Raises: ConfigError where an adapter sits on one of `ends`: folded in, it would change the other as well."""
    adapted = {
        name: module
        for name, module in unwrapped(model).named_modules()
        if isinstance(module, LoraLayer) and any(module.get_base_layer() is end for end in ends)
    }
    if adapted:
        raise ConfigError(
            f"model.lora.targets = {targets!r} puts an adapter on {', '.join(sorted(adapted))}, and this model's "
            "embeddings and output layer are one weight (tie_word_embeddings): the adapter would change one of them in "
            'training, and both in the saved model; leave it out, as "all-linear" does'
        )


def unwrapped(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model under the adapters, which act inside it; without adapters the model itself."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    return base


def merged(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model with its adapters, if any, folded into the weights; the model itself stays as it is."""
    return copy.deepcopy(model).merge_and_unload() if isinstance(model, PeftModel) else model


def merged_weights(model: PreTrainedModel | PeftModel) -> Iterator[tuple[str, Tensor]]:
    """Names and weights of `merged(model)` as a checkpoint has them, one by one, without a second model in memory.

    What is tied to another weight comes once, under the name that comes first.
    """
    base = unwrapped(model)
    adapted: dict[str, Any] = {
        f"{name}.weight": module for name, module in base.named_modules() if isinstance(module, LoraLayer)
    }
    seen: set[int] = set()
    for name, weight in base.state_dict().items():
        plain = name.replace(".base_layer.", ".")
        if ".lora_" in name or weight.data_ptr() in seen:
            continue
        seen.add(weight.data_ptr())
        layer = adapted.get(plain)
        # As peft merges, so that the sum is the same to the last bit.
        yield plain, weight if layer is None else weight + layer.get_delta_weight("default").to(weight.dtype)
