"""The lower layers that no stage trains: what they make of a sequence is computed once for all who read it.

Where only the last layers learn, policy, reference, critic and reward model have the layers below in common, and these
never change. So they stand in memory once, and in an iteration they read each sequence once: for the reward model's
score, the reference's logprobs, the policy's old ones, and all epochs of the update.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhfkit.errors import ConfigError, ModelError
from rlhfkit.models.layers import layers_of, trunk_hidden
from rlhfkit.models.lora import unwrapped
from rlhfkit.padding import Sequences, length_buckets

__all__ = ["Stem", "final_norm", "too_few_layers", "trunk_above"]


class _Given(nn.Module):
    """In place of the layers below: what they gave before."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *_: object, **__: object) -> Tensor:
        return self.hidden


class _Skipped(nn.Module):
    """In place of a layer that is not wanted."""

    def forward(self, hidden: Tensor, *_: object, **__: object) -> Tensor:
        return hidden


class _Kept(_Skipped):
    """In place of the first layer above: keeps what comes to it."""

    hidden: Tensor

    def forward(self, hidden: Tensor, *_: object, **__: object) -> Tensor:
        self.hidden = hidden
        return hidden


@contextmanager
def _replaced(model: PreTrainedModel | PeftModel, places: Mapping[int, nn.Module]) -> Iterator[None]:
    layers = layers_of(model)
    originals = {place: layers[place] for place in places}
    try:
        for place, other in places.items():
            layers[place] = other
        yield
    finally:
        for place, layer in originals.items():
            layers[place] = layer


def _below(model: PreTrainedModel | PeftModel, ids: Tensor, num_layers: int) -> Tensor:
    """Hidden states (B, T, H) that embeddings and the first `num_layers` layers make of `ids` (B, T)."""
    kept = _Kept()
    above = range(num_layers + 1, len(layers_of(model)))
    with _replaced(model, {num_layers: kept, **{place: _Skipped() for place in above}}):
        trunk_hidden(model, ids)
    return kept.hidden


def _above(
    model: PreTrainedModel | PeftModel, ids: Tensor, hidden: Tensor, num_layers: int, **options: object
) -> Tensor:
    """Hidden states (B, T, H) after the final norm, where `hidden` is what `_below` gave."""
    skipped = range(1, num_layers)
    with _replaced(model, {0: _Given(hidden), **{place: _Skipped() for place in skipped}}):
        return trunk_hidden(model, ids, **options)


def final_norm(model: PreTrainedModel | PeftModel, hidden: Tensor) -> Tensor:
    """What `model` makes of `hidden` (B, T, H) behind its last layer: the final norm, where the family has one."""
    ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
    return _above(model, ids, hidden, len(layers_of(model)))


def trunk_above(
    model: PreTrainedModel | PeftModel, stem: "Stem | None", ids: Tensor, hidden: Tensor | None, **options: object
) -> Tensor:
    """Hidden states (B, T, H) of `model` after the final norm, begun at `hidden` where `stem` has read it before."""
    if stem is None or hidden is None:
        return trunk_hidden(model, ids, **options)
    return _above(model, ids, hidden, stem.num_layers, **options)


def too_few_layers(num_trained_layers: int, num_layers: int) -> ConfigError:
    """What to raise where no layer would be left below those that are trained."""
    return ConfigError(
        f"model.num_trained_layers = {num_trained_layers}, but the model has {num_layers} layers; give a smaller "
        "number, or leave the setting out to train all"
    )


class Stem:
    """Embeddings and first layers of a network whose last layers alone are trained.

    It remembers the sequences that it read last. What it makes of them cannot become wrong, since nothing trains it.
    """

    def __init__(self, model: PreTrainedModel, *, num_trained_layers: int) -> None:
        """Freeze what lies below the last layers of `model`: embeddings as well, and an output that is tied to them.

        Raises: ConfigError where the model has no layer below; ModelError where it cannot be parted there.
        """
        num_layers = len(layers_of(model))
        if num_trained_layers >= num_layers:
            raise too_few_layers(num_trained_layers, num_layers)
        self.model, self.num_layers = model, num_layers - num_trained_layers
        self._hidden: Tensor | None = None
        self._rows: dict[tuple[int, ...], int] = {}
        model.requires_grad_(True)
        parameters = dict(model.base_model.named_parameters())
        with torch.enable_grad():
            below = self._checked_hidden()
            gradients = torch.autograd.grad(below.sum(), list(parameters.values()), allow_unused=True)
        self._parameters = {
            name: parameters[name].requires_grad_(False)
            for name, gradient in zip(parameters, gradients, strict=True)
            if gradient is not None
        }

    def _checked_hidden(self) -> Tensor:
        """Hidden states of two tokens, from which the layers above make the same as the whole trunk does."""
        ids = torch.arange(2, device=self.model.device)[None]
        try:
            below = _below(self.model, ids, self.num_layers)
            same = torch.equal(_above(self.model, ids, below, self.num_layers), trunk_hidden(self.model, ids))
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):  # whatever strange layers lead to
            same = False
        if not same:
            raise ModelError(
                f"{self.model.config.model_type} cannot be parted between two layers; leave model.num_trained_layers "
                "out, or choose a model of another architecture, such as GPT-2, Llama, Qwen, Mistral or Gemma"
            )
        return below

    def under(self, other: PreTrainedModel | PeftModel) -> "Stem | None":
        """This stem if `other` begins with the same weights, which then are no longer twice in memory; else None."""
        base = unwrapped(other).base_model
        theirs = dict(base.named_parameters())
        if type(base) is not type(self.model.base_model) or not all(
            name in theirs and torch.equal(mine, theirs[name]) for name, mine in self._parameters.items()
        ):
            return None
        ours = {id(theirs[name]): mine for name, mine in self._parameters.items()}
        for module in unwrapped(other).modules():  # an output may be tied to the embeddings
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, ours.get(id(parameter), parameter))
        return self

    @torch.no_grad()
    def read(self, sequences: Sequences, *, max_tokens: int) -> Sequences:
        """`sequences` with what these layers make of them, in microbatches of at most `max_tokens`."""
        self._hidden, self._rows = None, {}
        lengths = sequences.lengths().tolist()
        hidden = self._hidden_of(sequences.ids, lengths, max_tokens=max_tokens)
        rows = enumerate(zip(sequences.ids.tolist(), lengths, strict=True))
        self._rows = {tuple(ids[:length]): row for row, (ids, length) in rows}
        self._hidden = hidden
        return replace(sequences, stem=hidden)

    @torch.no_grad()
    def hidden(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Hidden states (B, T, H) of `ids` (B, T); a row of `lengths` tokens that was read last is not computed again.

        Zero behind the end of a row.
        """
        sizes = lengths.tolist()
        places = [self._rows.get(tuple(row[:size])) for row, size in zip(ids.tolist(), sizes, strict=True)]
        known = [index for index, place in enumerate(places) if place is not None]
        new = [index for index, place in enumerate(places) if place is None]
        result = self._nothing_for(ids)
        if known:
            assert self._hidden is not None
            found = self._hidden[[place for place in places if place is not None], : ids.shape[1]]
            result[known, : found.shape[1]] = found
        if new:
            result[new] = self._hidden_of(ids[new], [sizes[index] for index in new], max_tokens=ids.numel())
        return result

    def _hidden_of(self, ids: Tensor, lengths: list[int], *, max_tokens: int) -> Tensor:
        hidden = self._nothing_for(ids)
        for rows in length_buckets(lengths, max_tokens=max_tokens, device=ids.device):
            width = max(lengths[row] for row in rows)
            hidden[rows, :width] = _below(self.model, ids[rows, :width], self.num_layers)
        return hidden

    def _nothing_for(self, ids: Tensor) -> Tensor:
        width = self.model.config.hidden_size
        return torch.zeros((*ids.shape, width), dtype=self.model.dtype, device=self.model.device)
