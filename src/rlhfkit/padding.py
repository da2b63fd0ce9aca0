"""The only padding code: ragged rows of tokens become tensors, and tensors become microbatches without waste.

Everything is padded on the right. In a causal model the padding then comes after every token that counts, so no
position has to be shifted, no mask is needed, and a row's result cannot depend on its neighbours. Where the rows of a
microbatch are packed, a mask keeps them blind to each other.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhfkit.errors import ShapeError

__all__ = [
    "PackedRows",
    "PackedSequences",
    "Sequences",
    "largest_microbatch",
    "length_buckets",
    "microbatches",
    "pack",
    "pack_rows",
    "pad_right",
]

TOKENS_OF_A_PASS = {"cpu": 64, "cuda": 4096, "mps": 1024}
"""What starting a pass costs, in tokens that could be computed meanwhile."""
PACKING_DEVICES = ("cpu",)
"""Where rows are packed. A GPU's fastest attention takes no mask, so rows of like length are padded there."""
WIDTH_OF_ATTENTION = 1024
"""Of a row at which attention takes as long as all the rest, in a model of width 256; later in a wider one."""

Bins = list[list[int]]


def pad_right(rows: Sequence[Sequence[int]], *, pad: int, device: torch.device | None = None) -> Tensor:
    """Token ids (B, T), T the longest row, filled up with `pad`."""
    width = max((len(row) for row in rows), default=0)
    return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], dtype=torch.long, device=device)


def length_buckets(lengths: Sequence[int], *, max_tokens: int, device: torch.device) -> list[list[int]]:
    """Indices of rows, grouped by length so that each group, padded, stays within `max_tokens`.

    A group ends where its padding would cost more than another pass on `device`. Longest first, so that memory peaks at
    once and not in the middle of a run. A row longer than `max_tokens` is a group of its own.
    """
    groups: list[list[int]] = []
    width = padding = 0
    for index in _longest_first(lengths):
        padding += width - lengths[index]
        has_room = groups and width * (len(groups[-1]) + 1) <= max_tokens
        if has_room and padding <= TOKENS_OF_A_PASS[device.type]:
            groups[-1].append(index)
        else:
            groups.append([index])
            width, padding = lengths[index], 0
    return groups


def _first_fit(lengths: Sequence[int], *, max_tokens: int, width: int = 0) -> list[Bins]:
    """Indices of rows in bins, and bins in groups of at most `max_tokens`.

    Longest first, each row goes where there is room: in a bin, in a new bin of the group, in a new group. A bin is as
    wide as the longest row of its group, and at least `width`.
    """
    groups: list[Bins] = []
    room: list[int] = []
    of_group = 0
    for index in _longest_first(lengths):
        size = lengths[index]
        place = next((place for place, free in enumerate(room) if free >= size), None)
        if place is None and groups and of_group * (len(room) + 1) <= max_tokens:
            place = len(room)
            groups[-1].append([])
            room.append(of_group)
        elif place is None:
            place, of_group = 0, max(width, size)
            groups.append([[]])
            room = [of_group]
        groups[-1][place].append(index)
        room[place] -= size
    return groups


def _bins(lengths: Sequence[int], *, width: int = 0) -> Bins:
    """Indices of rows in as few bins as first-fit decreasing finds; a bin has room for the longest, and for `width`."""
    groups = _first_fit(lengths, max_tokens=sys.maxsize, width=width)
    return groups[0] if groups else []


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))


def largest_microbatch(lengths: Sequence[int], *, rows: int, device: torch.device) -> int:
    """Tokens, padding included, of the largest microbatch where memory sets no limit.

    It is looked for in some minibatches of `rows` out of rows of these lengths.
    """
    num = max(1, len(lengths) // rows)
    minibatches = [lengths[start::num] for start in range(min(num, 10))]
    return max((_largest_of(minibatch, device) for minibatch in minibatches if minibatch), default=0)


def _largest_of(lengths: Sequence[int], device: torch.device) -> int:
    groups = microbatches(lengths, max_tokens=sys.maxsize, device=device)
    packs = device.type in PACKING_DEVICES
    return max(
        lengths[group[0]] * (len(_bins([lengths[index] for index in group])) if packs else len(group))
        for group in groups
    )


def microbatches(lengths: Sequence[int], *, max_tokens: int, device: torch.device) -> list[list[int]]:
    """Indices of rows, in groups that stay within `max_tokens` when each is packed, or padded, as is best on `device`.

    Packed, there are fewer passes and there is less padding; but attention of a short row beside long ones costs as
    much as theirs. Longest first, so that memory peaks at once. A row longer than `max_tokens` is a group of its own.
    """
    buckets = length_buckets(lengths, max_tokens=max_tokens, device=device)
    if device.type not in PACKING_DEVICES:
        return buckets
    groups = _first_fit(lengths, max_tokens=max_tokens)
    packed = [(len(bins), lengths[bins[0][0]]) for bins in groups]
    padded = [(len(bucket), lengths[bucket[0]]) for bucket in buckets]
    if _cost(padded, device) <= _cost(packed, device):
        return buckets
    return [[index for rows in bins for index in rows] for bins in groups]


def _cost(passes: Sequence[tuple[int, int]], device: torch.device) -> float:
    """Of passes over (rows, width), in tokens that could be computed meanwhile."""
    return sum(
        TOKENS_OF_A_PASS[device.type] + rows * width * (1 + width / WIDTH_OF_ATTENTION) for rows, width in passes
    )


def _blind_to_others(segments: Tensor) -> Tensor:
    """(N, L, L) bool: query q may look at key k: same sequence, not later."""
    same = segments[:, :, None] == segments[:, None, :]
    return same & torch.ones(same.shape[1:], dtype=torch.bool, device=same.device).tril()


@dataclass(frozen=True)
class PackedSequences:
    """The rows of some sequences laid into fewer ones, each blind to the others."""

    ids: Tensor
    """(N, L) token ids."""
    position_ids: Tensor
    """(N, L) place of each token in its own sequence."""
    segments: Tensor
    """(N, L) number of the sequence from 1, 0 = padding."""
    stem: Tensor | None
    """(N, L, H) what layers that nothing trains make of `ids`, where that is known."""
    row_of: Tensor
    """(B,) row in which each sequence lies."""
    start_of: Tensor
    """(B,) where it begins there."""

    def allowed(self) -> Tensor:
        """(N, L, L) bool: query q may look at key k: same sequence, not later."""
        return _blind_to_others(self.segments)


def pack_rows(ids: Tensor, lengths: Tensor, stem: Tensor | None = None) -> PackedSequences | None:
    """The first `lengths` (B,) tokens of rows of `ids` (B, T) in fewer rows; None where that would save none.

    `stem` (B, T, H) is what layers that nothing trains make of `ids`, where that is known.
    """
    if ids.device.type not in PACKING_DEVICES:
        return None
    bins = _bins(lengths.tolist())
    if len(bins) == len(ids):
        return None
    row_of, start_of = torch.empty_like(lengths), torch.empty_like(lengths)
    for number, members in enumerate(bins):
        sizes = lengths[members]
        row_of[members], start_of[members] = number, sizes.cumsum(0) - sizes
    is_token = torch.arange(ids.shape[1], device=lengths.device) < lengths[:, None]
    rows, positions = is_token.nonzero(as_tuple=True)
    places = row_of[rows], start_of[rows] + positions

    def laid(tokens: Tensor) -> Tensor:
        """What belongs to each token (K, …), where it lies in the bins (N, L, …)."""
        result = tokens.new_zeros((len(bins), int(lengths.max()), *tokens.shape[1:]))
        return result.index_put(places, tokens)

    below = None if stem is None else laid(stem[rows, positions])
    return PackedSequences(laid(ids[rows, positions]), laid(positions), laid(rows + 1), below, row_of, start_of)


@dataclass(frozen=True)
class Sequences:
    """Prompts with their responses, contiguous and padded on the right: what a text policy evaluates."""

    ids: Tensor
    """(B, L) token ids, prompt then response then padding."""
    prompt_tokens: Tensor
    """(B,) length of each prompt, at least 1."""
    mask: Tensor
    """(B, R) bool over response positions, True = token sampled by the policy."""
    stem: Tensor | None = None
    """(B, L, H) what layers that nothing trains make of `ids`, where that is known."""

    @staticmethod
    def join(
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        *,
        pad: int,
        masks: Sequence[Sequence[bool]] | None = None,
        device: torch.device | None = None,
    ) -> "Sequences":
        """Lay prompts and responses end to end; `masks` marks sampled tokens where a response holds others too."""
        if any(len(prompt) == 0 for prompt in prompts):
            raise ShapeError("a prompt has no tokens; the first response token needs one before it: start with BOS")
        width = max((len(response) for response in responses), default=0)
        sampled = masks if masks is not None else [[True] * len(response) for response in responses]
        rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
        return Sequences(
            ids=pad_right(rows, pad=pad, device=device),
            prompt_tokens=torch.tensor([len(prompt) for prompt in prompts], device=device),
            mask=torch.tensor([[*row, *[False] * (width - len(row))] for row in sampled], dtype=torch.bool).to(device),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Tensor) -> "Sequences":
        stem = None if self.stem is None else self.stem[rows]
        return Sequences(self.ids[rows], self.prompt_tokens[rows], self.mask[rows], stem)

    def lengths(self) -> Tensor:
        """(B,) tokens up to the last one that counts."""
        positions = torch.arange(1, self.mask.shape[1] + 1, device=self.mask.device)
        return self.prompt_tokens + (positions * self.mask).amax(1) if self.mask.shape[1] else self.prompt_tokens

    def trimmed(self) -> "Sequences":
        """The same rows without the padding that none of them needs; `mask` keeps its width."""
        width = int(self.lengths().max())
        stem = None if self.stem is None else self.stem[:, :width]
        return Sequences(self.ids[:, :width], self.prompt_tokens, self.mask, stem)

    def predicting(self) -> tuple[Tensor, Tensor, Tensor]:
        """(rows, positions, targets), each (N,): the N sampled tokens and the places whose hidden states predict them.

        N counts `mask` in row-major order; the token at response index t of row b is predicted at
        prompt_tokens[b] + t - 1.
        """
        rows, steps = self.mask.nonzero(as_tuple=True)
        positions = self.prompt_tokens[rows] + steps
        return rows, positions - 1, self.ids[rows, positions]


@dataclass(frozen=True)
class PackedRows:
    """Several sequences a row, each blind to the others."""

    ids: Tensor
    """(N, L) token ids."""
    position_ids: Tensor
    """(N, L) place of each token in its own sequence."""
    segments: Tensor
    """(N, L) number of the sequence within the row from 1, 0 = padding."""
    targets: Tensor
    """(N, L) bool, True = this token is learnt (predicted from the one before it)."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice) -> "PackedRows":
        """Some of the rows, no wider than they need."""
        segments = self.segments[rows]
        width = int((segments > 0).sum(1).max()) if len(segments) else 0
        return PackedRows(
            self.ids[rows, :width], self.position_ids[rows, :width], segments[:, :width], self.targets[rows, :width]
        )

    def allowed(self) -> Tensor:
        """(N, L, L) bool: query q may look at key k: same sequence, not later."""
        return _blind_to_others(self.segments)


def pack(
    rows: Sequence[Sequence[int]],
    learnt_from: Sequence[int],
    *,
    max_tokens: int | None,
    pad: int,
    earlier: Sequence[Sequence[tuple[int, int]]] | None = None,
    device: torch.device | None = None,
) -> PackedRows:
    """Rows laid into as few rows of at most `max_tokens` as first-fit decreasing finds; None leaves each by itself.

    `learnt_from[i]` is the first index of row i whose token is learnt; index 0 never is, nothing predicts it.
    `earlier[i]` are spans before it (first index, index after the last) that are learnt too.
    """
    lengths = [len(row) for row in rows]
    alone = [[index] for index in _longest_first(lengths)]
    bins = alone if max_tokens is None else _bins(lengths, width=max_tokens)
    width = max((sum(len(rows[i]) for i in members) for members in bins), default=0)
    ids = torch.full((len(bins), width), pad, dtype=torch.long)
    position_ids = torch.zeros((len(bins), width), dtype=torch.long)
    segments = torch.zeros((len(bins), width), dtype=torch.long)
    targets = torch.zeros((len(bins), width), dtype=torch.bool)
    for b, members in enumerate(bins):
        start = 0
        for number, index in enumerate(members, start=1):
            end = start + len(rows[index])
            ids[b, start:end] = torch.tensor(rows[index], dtype=torch.long)
            position_ids[b, start:end] = torch.arange(end - start)
            segments[b, start:end] = number
            targets[b, start + max(1, learnt_from[index]) : end] = True
            for first, after in earlier[index] if earlier is not None else ():
                targets[b, start + max(1, first) : start + after] = True
            start = end
    return PackedRows(ids.to(device), position_ids.to(device), segments.to(device), targets.to(device))
