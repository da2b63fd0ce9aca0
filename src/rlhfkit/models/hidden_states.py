"""What a network makes of rows of tokens, at the few places that are asked for."""

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from rlhfkit.machine.fast_paths import FastPaths
from rlhfkit.models.attention import additive_masks
from rlhfkit.models.fast.compiling import uncompiled
from rlhfkit.models.frozen_layers import Stem, trunk_above
from rlhfkit.models.lora import unwrapped
from rlhfkit.padding import PackedSequences, Sequences, pack_rows

__all__ = ["PACKED", "hidden_at", "predicting_hidden"]

PACKED = "packed rows"


def predicting_hidden(
    model: PreTrainedModel | PeftModel, sequences: Sequences, stem: Stem | None, *, paths: FastPaths | None = None
) -> Tensor:
    """Hidden states (N, H) that predict the N sampled tokens, in row-major order.

    They begin at `sequences.stem` where `model` has the layers of `stem`.
    """
    rows, positions, _ = sequences.predicting()
    # The last token of a row predicts nothing.
    below = None if sequences.stem is None else sequences.stem[:, :-1]
    lengths, places = sequences.lengths() - 1, (rows, positions)
    return hidden_at(model, sequences.ids[:, :-1], lengths, places, stem=stem, below=below, paths=paths)


def hidden_at(
    model: PreTrainedModel | PeftModel,
    ids: Tensor,
    lengths: Tensor,
    places: tuple[Tensor, Tensor],
    *,
    stem: Stem | None,
    below: Tensor | None,
    paths: FastPaths | None = None,
) -> Tensor:
    """Hidden states (N, H) at `places`, rows and positions, of `ids` (B, T), of which `lengths` (B,) tokens count.

    Rows are packed where that saves padding. `below` (B, T, H) is what `stem` made of `ids`, where `model` has it.
    """
    rows, positions = places

    def padded() -> Tensor:
        return trunk_above(model, stem, ids, below)[rows, positions]

    paths = paths or FastPaths()
    packed = None if paths.is_off(PACKED) else pack_rows(ids, lengths, below)
    if packed is None:
        return padded()
    if not paths.is_tried(PACKED, model.config.model_type):
        with torch.no_grad(), uncompiled():
            paths.attempt(PACKED, lambda: _packed(model, packed, places, stem), padded, case=model.config.model_type)
    return padded() if paths.is_off(PACKED) else _packed(model, packed, places, stem)


def _packed(
    model: PreTrainedModel | PeftModel, packed: PackedSequences, places: tuple[Tensor, Tensor], stem: Stem | None
) -> Tensor:
    rows, positions = places
    base, position_ids = unwrapped(model), packed.position_ids
    masks = additive_masks(base.config, packed.allowed(), position_ids, position_ids, base.dtype)
    hidden = trunk_above(model, stem, packed.ids, packed.stem, position_ids=position_ids, attention_mask=masks)
    return hidden[packed.row_of[rows], packed.start_of[rows] + positions]
