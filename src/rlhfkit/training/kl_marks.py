"""When a policy on its way to a KL budget is worth an evaluation between those that are planned. Pure."""

from collections.abc import Sequence
from itertools import pairwise

__all__ = ["MARKS", "comes_to_a_mark"]

MARKS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Shares of the budget: the last evaluation within it counts, and between two planned ones a policy may go far."""


def comes_to_a_mark(ref_kl: Sequence[float], budget: float) -> bool:
    """Whether the next iteration comes to a further one of `MARKS`, if the KL goes on as between the last two.

    The KL of iteration t is expected to be ref_kl[t-1] + max(0, ref_kl[t-1] - ref_kl[t-2]), in nats per sequence. A
    mark that was once expected is done with, so there are no more such evaluations than marks.
    """
    expected = [later + max(0.0, later - earlier) for earlier, later in pairwise(ref_kl)]
    if not expected:
        return False
    before = max(expected[:-1], default=0.0)
    return any(before < mark * budget <= expected[-1] for mark in MARKS)
