"""Labelled pairs as numbers, for what chooses the next ones."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhfkit.errors import DataError, ShapeError

__all__ = [
    "FEWEST_LABELS",
    "Booleans",
    "Floats",
    "Integers",
    "LabelledPairs",
    "check_features",
]

Floats = NDArray[np.float64]


Integers = NDArray[np.int64]


Booleans = NDArray[np.bool_]


FEWEST_LABELS = 50
"""Random labels, ties apart, that are needed before choosing can be judged; as many chosen ones to measure the gain."""


@dataclass(frozen=True, eq=False)
class LabelledPairs:
    """What people have answered so far.

    Raises: ShapeError where the parts have different lengths, DataError where a label is not between 0 and 1.
    """

    differences: Floats
    """phi_a - phi_b (M, d)."""
    labels: Floats
    """1 where a is preferred, 0 where b is, 0.5 for a tie (M,); a share where several people voted."""
    is_random: Booleans
    """Whether the pair belongs to the random stream (M,)."""
    prompts: Sequence[Hashable]
    """What tells the prompts apart (M,)."""
    length_differences: Floats | None = None
    """Length of a less length of b (M,), for the baseline of the longer answer."""

    def __post_init__(self) -> None:
        num = len(self.labels)
        sizes = {"differences": len(self.differences), "is_random": len(self.is_random), "prompts": len(self.prompts)}
        if self.length_differences is not None:
            sizes["length_differences"] = len(self.length_differences)
        for name, size in sizes.items():
            if size != num:
                raise ShapeError(f"{size} {name} for {num} labels; expected as many; leave out pairs without a label")
        check_features(self.differences, "labelled")
        if not bool(((self.labels >= 0) & (self.labels <= 1)).all()):
            raise DataError("a label is not between 0 and 1; expected 1 for a, 0 for b, 0.5 for a tie")

    def __len__(self) -> int:
        return len(self.labels)


def check_features(differences: Floats, what: str) -> None:
    """Raises: ShapeError, or DataError where a feature is not finite."""
    if differences.ndim != 2:
        raise ShapeError(f"{what} features of shape {differences.shape}; expected (pairs, d); give phi_a - phi_b")
    finite = np.isfinite(differences).all(axis=1)
    if not finite.all():
        raise DataError(
            f"features of {what} pair {int(np.argmin(finite))} are not finite; expected numbers; "
            "look at the model that they come from"
        )
