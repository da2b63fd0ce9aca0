"""Several tests at once: p values that say how often any of them, or a share of those found, would be chance."""

from collections.abc import Sequence

__all__ = ["benjamini_hochberg", "holm"]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values, in order: below 0.05 each holds although all were tried (family-wise error).

    p~(i) = max over j <= i of min(1, (m - j + 1) p(j)), p rising. For claims.
    Source: Holm 1979, Scandinavian Journal of Statistics 6.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values, in order: of those below 0.05, at most 5 % are chance (false discovery rate).

    p~(i) = min over j >= i of min(1, m p(j) / j), p rising. For an overview of many groups.
    Source: Benjamini and Hochberg 1995, doi 10.1111/j.2517-6161.1995.tb02031.x.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, smallest = [0.0] * len(p_values), 1.0
    for place in range(len(order), 0, -1):
        smallest = min(smallest, len(order) * p_values[order[place - 1]] / place)
        adjusted[order[place - 1]] = smallest
    return adjusted
