"""What a network makes of prompts and responses, at the places where it predicts the tokens that were sampled."""

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from rlhfkit.models.attention import additive_masks
from rlhfkit.models.lora import unwrapped
from rlhfkit.models.stem import Stem, trunk_above
from rlhfkit.padding import Sequences

__all__ = ["predicting_hidden"]


def predicting_hidden(model: PreTrainedModel | PeftModel, sequences: Sequences, stem: Stem | None) -> Tensor:
    """Hidden states (N, H) before the N sampled tokens, in row-major order; rows are packed where that saves padding.

    They begin at `sequences.stem` where `model` has the layers of `stem`.
    """
    rows, positions, _ = sequences.predicting()
    packed = sequences.packed
    if packed is None:
        below = None if sequences.stem is None else sequences.stem[:, :-1]
        return trunk_above(model, stem, sequences.ids[:, :-1], below)[rows, positions]
    base, places = unwrapped(model), packed.position_ids
    masks = additive_masks(base.config, packed.allowed(), places, places, base.dtype)
    hidden = trunk_above(model, stem, packed.ids, packed.stem, position_ids=places, attention_mask=masks)
    return hidden[packed.row_of[rows], packed.start_of[rows] + positions]
