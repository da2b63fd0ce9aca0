"""The processes that work on one run together: which of them this one is, and what they tell each other.

All run the same code on the same recipe. The work on rows is shared out; what it gives is put together again, so that
every rank holds the whole and decides alike. One process alone is rank 0 of 1: it talks to nobody.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rlhfkit.errors import LostRankError, RlhfkitError
from rlhfkit.metrics import Metrics

__all__ = ["ALONE", "Ranks", "alone", "become", "on_first", "ranks", "stay", "waited_seconds"]

T = TypeVar("T")

BUCKET_ELEMENTS = 2**24
"""Tensors are added up in buckets of so many elements: few messages, and little memory beside the tensors."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run.

    Every method but `share` must be called by all of them, in the same order. Each raises LostRankError where another
    one is gone.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Its number among those on this machine."""
    local_size: int = 1
    """How many are on this machine."""
    shards: bool = False
    """Whether weights are parted among them, so that every pass through a network is one of all ranks together."""

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes."""
        return self.rank == 0

    @property
    def of_this_machine(self) -> range:
        """The ranks of this machine, which follow each other."""
        first = self.rank - self.local_rank
        return range(first, first + self.local_size)

    def share(self, num: int) -> range:
        """The rows of this rank, of `num`: every `size`-th, so that the ranks get alike where neighbours are alike."""
        return range(self.rank, num, self.size)

    def in_step(self, parts: Iterable[T], spare: T) -> list[tuple[T, bool]]:
        """The parts of this rank, each with True; where `shards`, as many passes as the rank with the most has.

        The passes beyond its own, of `spare` with False, help the others alone: what they give does not count.
        """
        own = [(part, True) for part in parts]
        if not self.shards:
            return own
        return own + [(spare, False)] * (max(self.gather(len(own))) - len(own))

    def put_together(self, own: Sequence[T], num: int) -> list[T]:
        """What all ranks made of their shares, in the order of the `num` rows."""
        if self.size == 1:
            return list(own)
        parts = self.gather(list(own))
        return [parts[row % self.size][row // self.size] for row in range(num)]

    def gather(self, value: T) -> list[T]:
        """What each rank gives, in the order of ranks."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        with _all_are_there():
            dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def from_first(self, value: T) -> T:
        """What the first rank gives."""
        if self.size == 1:
            return value
        values = [value if self.is_first else None]
        with _all_are_there():
            dist.broadcast_object_list(values, src=0)
        return values[0]  # type: ignore[return-value]

    def any(self, value: bool) -> bool:
        """Whether it is so on one of them."""
        return any(self.gather(value))

    def waiting(self, since: float, seconds: float) -> dict[str, float]:
        """How much of the last `seconds` the ranks have waited for each other, as metrics; none of one alone.

        `since` is what `waited_seconds` was then. Where the shares differ, the work was shared out badly; where all are
        high, the ranks are too many, or too far apart.
        """
        if self.size == 1:
            return {}
        shares = self.gather((_waited - since) / max(seconds, 1e-9))
        return {
            "time/waiting_share_mean": sum(shares) / len(shares),
            "time/waiting_share_max": max(shares),
        }

    def merged_signals(self, interrupted: bool, is_time: bool) -> tuple[bool, bool]:
        """(whether one of them was interrupted, what the clock of the first one says)."""
        found = self.gather((interrupted, is_time))
        return any(one for one, _ in found), found[0][1]

    def wait(self) -> None:
        """Return when all have come here."""
        self.gather(None)

    def merged(self, metrics: Metrics) -> Metrics:
        """What all ranks have added."""
        if self.size == 1:
            return metrics
        whole = Metrics()
        for part in self.gather(metrics.in_numbers()):
            whole.merge(part)
        return whole

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Make each tensor, in place, the sum of what it is on all ranks; the same bits on each."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            with _all_are_there():
                dist.all_reduce(flat)
            for tensor, total in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def add_up_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Make the gradient of each parameter the sum over all ranks; one that no rank has stays None.

        A rank without rows has no gradients, and takes part with zeros.
        """
        if self.size == 1:
            return
        has = self.gather([parameter.grad is not None for parameter in parameters])
        for parameter, somebody_has in zip(parameters, map(any, zip(*has, strict=True)), strict=True):
            if somebody_has and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.add_up(parameter.grad for parameter in parameters if parameter.grad is not None)


ALONE = Ranks()
_current = ALONE
_waited = 0.0


def waited_seconds() -> float:
    """How long this process has waited for other ranks since it began, gathering of parted weights not counted."""
    return _waited


def ranks() -> Ranks:
    """This process among those of the run; alone, where nobody has begun one with several.

    Known to the process, like its device, and not to the objects on the way, which would all have to pass it on.
    """
    return _current


@contextmanager
def become(which: Ranks) -> Iterator[Ranks]:
    """In the block this process is `which`."""
    global _current
    before, _current = _current, which
    try:
        yield which
    finally:
        _current = before


def stay(which: Ranks) -> None:
    """From now on this process is `which`."""
    global _current
    _current = which


@contextmanager
def alone() -> Iterator[None]:
    """In the block this process works for itself, whatever the others do."""
    with become(ALONE):
        yield


def on_first(work: Callable[[], T]) -> T:
    """What `work` gives on the first rank, which does it alone while the others wait.

    Raises: what `work` raises on purpose, on all ranks alike.
    """
    here = ranks()
    result: T | None = None
    error: RlhfkitError | None = None
    if here.is_first:
        try:
            with alone():
                result = work()
        except RlhfkitError as raised:
            error = raised
            if here.size == 1:
                raise
    result, error = here.from_first((result, error))
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


@contextmanager
def _all_are_there() -> Iterator[None]:
    """In the block this rank waits for the others. Raises: LostRankError where it cannot reach one."""
    global _waited
    start = time.perf_counter()
    try:
        yield
    except RuntimeError as error:  # torch has several classes for it, all of this one
        raise LostRankError(f"another process of the run does not answer ({str(error).splitlines()[0]})") from error
    finally:
        _waited += time.perf_counter() - start


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, in lists of one type and device and of about BUCKET_ELEMENTS."""
    bucket: list[Tensor] = []
    elements = 0
    for tensor in tensors:
        is_other = bool(bucket) and (tensor.dtype, tensor.device) != (bucket[0].dtype, bucket[0].device)
        if bucket and (is_other or elements + tensor.numel() > BUCKET_ELEMENTS):
            yield bucket
            bucket, elements = [], 0
        bucket.append(tensor)
        elements += tensor.numel()
    if bucket:
        yield bucket
