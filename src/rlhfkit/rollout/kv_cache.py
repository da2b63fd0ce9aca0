"""The KV cache of sampling: one slot a row, filled again as soon as its response has ended."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from rlhfkit.models.fast.compiling import uncompiled
from rlhfkit.models.language import LanguageModel
from rlhfkit.models.layers import layers_computed_once

__all__ = [
    "Decode",
    "Prefill",
    "SlotCache",
]


class SlotCache:
    """Keys and values of rows of at most `max_tokens`, two tensors per layer, allocated once.

    Keys are (slots, heads, D, tokens), so that a query meets neighbouring tokens in neighbouring places of memory;
    values are (slots, heads, tokens, D), for the same reason. With `by_token` the keys lie in memory as values do, in
    the same shape: fused attention takes no others, and torch would compute from a float32 copy of the whole cache.
    """

    def __init__(
        self, shapes: Sequence[tuple[Tensor, Tensor]], num_slots: int, max_tokens: int, *, by_token: bool | None = None
    ) -> None:
        """Room for `num_slots` rows; `shapes` are keys and values (1, heads, 1, D) of each layer for a single token.

        By default keys lie `by_token` wherever attention is fused, which is everywhere but on a CPU.
        """
        self.num_slots, self.max_tokens = num_slots, max_tokens
        # One more of each than is ever used: code that was compiled where a step took all rows, or all places, would
        # know it and be of no use for fewer.
        slots, places = num_slots + 1, max_tokens + 1
        if by_token is None:
            by_token = shapes[0][0].device.type != "cpu"
        self.keys = [
            key.new_zeros(slots, key.shape[1], places, key.shape[3]).transpose(2, 3)
            if by_token
            else key.new_zeros(slots, key.shape[1], key.shape[3], places)
            for key, _ in shapes
        ]
        self.values = [value.new_zeros(slots, value.shape[1], places, value.shape[3]) for _, value in shapes]

    @staticmethod
    def of(model: LanguageModel, num_slots: int, max_tokens: int) -> "SlotCache":
        """Room for what `model` keeps of a token, which one token shows."""
        seen = Seen()
        with uncompiled(), layers_computed_once(model.causal_lm):
            model.trunk_with_cache(torch.zeros((1, 1), dtype=torch.long, device=model.device), past_key_values=seen)
        return SlotCache(seen.states, num_slots, max_tokens)

    @property
    def bytes_per_place(self) -> int:
        """What a token of a row takes."""
        return sum(tensor[0].nbytes // (self.max_tokens + 1) for tensor in (*self.keys, *self.values))

    def keep(self, slots: Tensor) -> None:
        """Move `slots` to the front, in this order."""
        for store in (self.keys, self.values):
            for tensor in store:
                tensor[: len(slots)] = tensor[slots]


class _Pass(Cache):
    """What transformers asks of a cache during one forward pass; positions are always passed along."""

    def __init__(self) -> None:
        super().__init__(layers=[])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: nobody has to count."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """(tokens to look at, 0); asked where no mask is passed along."""
        return query_length, 0


class Seen(_Pass):
    """A forward pass that shows the keys and values of each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[tuple[Tensor, Tensor]] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """The same keys and values (B, heads, T, D)."""
        self.states.append((key_states, value_states))
        return key_states, value_states


class Prefill(_Pass):
    """A forward pass that reads whole prompts into the slots `places`."""

    def __init__(self, slots: SlotCache, places: Tensor) -> None:
        super().__init__()
        self.slots, self.places = slots, places

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values (B, heads, T, D), and look at nothing else."""
        tokens = key_states.shape[2]
        self.slots.keys[layer_idx][self.places, :, :, :tokens] = key_states.transpose(2, 3)
        self.slots.values[layer_idx][self.places, :, :tokens] = value_states
        return key_states, value_states


class Decode(_Pass):
    """A forward pass that adds one token to each of the first slots, at `positions`, and looks at `width` places."""

    def __init__(self, slots: SlotCache, positions: Tensor, width: int) -> None:
        super().__init__()
        self.slots, self.positions, self.width = slots, positions, width

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the new key and value (B, heads, 1, D); all that the row has so far comes back."""
        keys, values = self.slots.keys[layer_idx], self.slots.values[layer_idx]
        num = len(self.positions)
        rows = torch.arange(num, device=key_states.device)
        keys[rows, :, :, self.positions] = key_states[:, :, 0]
        values[rows, :, self.positions] = value_states[:, :, 0]
        return keys[:num, :, :, : self.width].transpose(2, 3), values[:num, :, : self.width]
