"""Numbers of a run: added up exactly, whatever the order."""

import math
from typing import Protocol

__all__ = [
    "Metrics",
    "Scalar",
    "rounded",
]


class Scalar(Protocol):
    """A number, or a tensor of one element."""

    def __float__(self) -> float:
        """The number itself."""
        ...


class Metrics:
    """Means out of sums and counts, so that cutting a batch, or the order of its parts, changes nothing.

    A tensor is kept as it is until somebody asks for the means, so that adding does not wait for an accelerator.
    """

    def __init__(self) -> None:
        self._totals: dict[str, list[Scalar]] = {}
        self._counts: dict[str, list[Scalar]] = {}

    def add(self, name: str, total: Scalar, count: Scalar = 1) -> None:
        """Add a sum over `count` things (tokens, sequences, minibatches) to the metric `name`."""
        self._totals.setdefault(name, []).append(_detached(total))
        self._counts.setdefault(name, []).append(_detached(count))

    def merge(self, other: "Metrics") -> None:
        """Add all that `other` has seen."""
        for name, totals in other._totals.items():
            self._totals.setdefault(name, []).extend(totals)
            self._counts.setdefault(name, []).extend(other._counts[name])

    def in_numbers(self) -> "Metrics":
        """The same without tensors, so that it may go to another process."""
        other = Metrics()
        other._totals = {name: [float(part) for part in parts] for name, parts in self._totals.items()}
        other._counts = {name: [float(part) for part in parts] for name, parts in self._counts.items()}
        return other

    def means(self) -> dict[str, float]:
        """Sum over count of each metric; one whose count is zero is left out, as it has no mean."""
        counts = {name: _sum(parts) for name, parts in self._counts.items()}
        return {name: _sum(parts) / counts[name] for name, parts in self._totals.items() if counts[name]}


def _detached(value: Scalar) -> Scalar:
    return value.detach() if hasattr(value, "detach") else value  # or a tensor would keep its graph alive


def _sum(parts: list[Scalar]) -> float:
    """Sum with one rounding at the end, the same in every order."""
    values = [float(part) for part in parts]
    return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)


def rounded(value: Scalar) -> float:
    """Six significant digits of a float; a whole number stays whole."""
    return value if isinstance(value, int) else float(f"{float(value):.6g}")
