"""The trunk of a decoder and its layers, whatever the architecture."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhfkit.errors import ModelError
from rlhfkit.models.lora import unwrapped

__all__ = ["hidden_by_layer", "layers_computed_once", "layers_of", "recompute_layers", "trunk_hidden"]


def trunk_hidden(model: PreTrainedModel | PeftModel, ids: Tensor, **options: object) -> Tensor:
    """Hidden states (B, T, H) after the final norm."""
    hidden: Tensor = unwrapped(model).base_model(input_ids=ids, use_cache=False, **options).last_hidden_state
    return hidden


def layers_of(model: PreTrainedModel | PeftModel) -> nn.ModuleList:
    """The decoder layers, in order: the longest list of modules in the trunk."""
    lists = [module for module in unwrapped(model).base_model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=nn.ModuleList())


def hidden_by_layer(model: PreTrainedModel | PeftModel, ids: Tensor) -> list[Tensor]:
    """Hidden states (B, T, H) behind each decoder layer, in order, before the final norm."""
    found: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    handles = [layer.register_forward_hook(keep) for layer in layers_of(model)]
    try:
        trunk_hidden(model, ids)
    finally:
        for handle in handles:
            handle.remove()
    return found


def recompute_layers(model: PreTrainedModel | PeftModel) -> None:
    """From now on the backward pass computes the inside of each layer a second time, and only its input is kept.

    A third more arithmetic for a fraction of the memory: Chen et al. 2016, arXiv 1604.06174.
    Raises: ModelError where the architecture does not provide for it.
    """
    whole: Any = unwrapped(model)
    # The older name is deprecated, the newer one not yet in every release that will do.
    enable = getattr(whole, "activation_checkpointing_enable", None) or whole.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise ModelError(
            f"{whole.config.model_type} cannot compute its layers a second time ({error}); set "
            "model.gradient_checkpointing = false"
        ) from error
    for layer in layers_of(model):
        # transformers asks for this flag. The modules inside stay in evaluation mode, so no dropout comes with it.
        layer.training = True


@contextmanager
def layers_computed_once(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """In the block, which has no backward pass, no layer is computed again: those that are would get no cache."""
    recomputing = [layer for layer in layers_of(model) if layer.training]
    for layer in recomputing:
        layer.training = False
    try:
        yield
    finally:
        for layer in recomputing:
            layer.training = True
