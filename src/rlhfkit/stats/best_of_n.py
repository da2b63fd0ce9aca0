"""The best of n: what it is worth, how far it goes, and where a curve stands at a distance."""

import math
from collections.abc import Sequence
from itertools import groupby, pairwise

from rlhfkit.errors import ShapeError

__all__ = ["at_distance", "best_of_n", "best_of_n_kl_bound"]


def best_of_n(scores: Sequence[float], values: Sequence[float], n: int) -> float:
    """Mean value of the response with the highest score among n, over all ways to draw n of these without putting back.

    sum over i of C(i - 1, n - 1) / C(N, n) value(i), the N responses in the order of their scores, i from 1

    That is the unbiased estimate of the value of the best of n, from independent responses to one prompt. Of equal
    scores each is as likely to be taken. `values` are what another source says of the same responses, or the scores.
    Raises: ShapeError where there are fewer than n responses, or not as many values.
    Source: Nakano et al. 2021, arXiv 2112.09332, appendix I.
    """
    num = len(scores)
    if not 1 <= n <= num or len(values) != num:
        raise ShapeError(f"{num} scores, {len(values)} values, n = {n}; expected as many values, and n from 1 to {num}")
    ordered = sorted(zip(scores, values, strict=True), key=lambda pair: pair[0])
    total, place = 0.0, 0
    for _, tied in groupby(ordered, key=lambda pair: pair[0]):
        group = [value for _, value in tied]
        ways = math.comb(place + len(group), n) - math.comb(place, n)  # in which the best is one of them
        total += ways / math.comb(num, n) * math.fsum(group) / len(group)
        place += len(group)
    return total


def best_of_n_kl_bound(n: int) -> float:
    """Most that the KL of the best of n to the model that it is drawn from can be, in nats: log n - (n - 1) / n.

    It is less where responses repeat, or score alike.
    Source: Stiennon et al. 2020, arXiv 2009.01325, appendix G.3; that it is a bound, and no equation: Beirami et al.
    2024, arXiv 2401.01879.
    """
    return math.log(n) - (n - 1) / n


def at_distance(points: Sequence[tuple[float, float]], distance: float) -> float | None:
    """The value at `distance` on the line through (distance, value); None where the line does not come so far."""
    ordered = sorted(points)
    for (left, low), (right, high) in pairwise(ordered):
        if left <= distance <= right and right > left:
            return low + (high - low) * (distance - left) / (right - left)
    return next((value for at, value in ordered if at == distance), None)
