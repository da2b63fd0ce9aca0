"""The exponential moving average of the policy's weights (EMA): a model beside the policy, calmer than the last one."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rlhfkit.distributed.sharding import like_parameter, own_part, own_rows, resharded
from rlhfkit.training.optim import Optimizer

__all__ = ["Ema", "averaged", "share_of_start"]


def averaged(averages: Iterable[Tensor], weights: Iterable[Tensor], *, decay: float) -> None:
    """Move each of the `averages`, in place, towards its weight.

    average = decay * average + (1 - decay) * weight

    All tensors are float32: at a decay of 0.999 an average in bfloat16 would round every step away.
    Source: Polyak & Juditsky 1992, on averages of iterates; of a policy in RLHF, there as the anchor of the KL: Ramé et
    al. 2024 (WARP, arXiv 2406.16768).
    """
    for average, weight in zip(averages, weights, strict=True):
        assert average.dtype == weight.dtype == torch.float32
        average.lerp_(weight.detach(), 1 - decay)


def share_of_start(decay: float, num_updates: int) -> float:
    """What the weights before the first update still weigh in the average after `num_updates`: decay^num_updates.

    Example:
        >>> share_of_start(0.99, 400)  # doctest: +ELLIPSIS
        0.0179...
    """
    return float(decay**num_updates)


class Ema:
    """The average over the updates of what an optimizer trains: of adapters, or of last layers, where it trains these.

    It begins at the weights before the first update. With adapters both matrices are averaged, each by itself. Where
    weights are parted among ranks, a rank averages its own rows, since each number of an average needs that number
    alone; where they are not, all ranks have the same weights, and so the same averages.
    """

    def __init__(self, optimizer: Optimizer, names: Iterable[str], *, decay: float) -> None:
        """Average what `optimizer` trains under `names`: its float32 masters, where weights are of another type."""
        self.decay = decay
        self._parameters = {name: optimizer.parameters[name] for name in names}
        self._masters = {name: optimizer.masters[name] for name in self._parameters}
        self.averages = {name: master.detach().clone() for name, master in self._masters.items()}
        """Of this rank's rows, by name."""

    def update(self) -> None:
        """Take the weights of now into the average; once after each update of them."""
        averaged(self.averages.values(), self._masters.values(), decay=self.decay)

    @contextmanager
    def in_place(self, policy: nn.Module) -> Iterator[None]:
        """The block finds the averages where the policy has its weights, rounded to their type; then these are back."""
        resharded(policy)
        own = {name: own_rows(parameter).detach().clone() for name, parameter in self._parameters.items()}
        self._put(self.averages)
        try:
            yield
        finally:
            resharded(policy)
            self._put(own)

    @torch.no_grad()
    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            own_rows(parameter).copy_(tensors[name])

    # ── for a checkpoint ─────────────────────────────────────────────────────────────────────────────────────────────

    def state(self) -> dict[str, Tensor]:
        """The averages by name; those of parted weights are parted alike."""
        return {name: like_parameter(average, self._parameters[name]) for name, average in self.averages.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `state` gave, on as many ranks as there are now."""
        for name, average in self.averages.items():
            average.copy_(own_part(tensors[name], self._parameters[name]))
