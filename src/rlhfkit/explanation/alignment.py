"""Numbers of one tokenizer's tokens, given to those of another: a reward model may cut the same text elsewhere."""

from collections.abc import Sequence
from itertools import accumulate

__all__ = ["at_ends", "shared_out"]


def shared_out(values: Sequence[float], pieces: Sequence[str], onto: Sequence[str]) -> list[float]:
    """`values` of `pieces`, shared out to the pieces `onto` of the same text by the letters that they have in common.

    The sum stays. What belongs to no letter, such as EOS, goes to the last piece without one, else to the last piece.
    """
    given = [0.0] * len(onto)
    ends = list(accumulate(map(len, onto)))
    last_empty = next((at for at in reversed(range(len(onto))) if not onto[at]), len(onto) - 1)
    start = 0
    for value, piece in zip(values, pieces, strict=True):
        end = start + len(piece)
        overlaps = [
            (at, min(end, to) - max(start, to - len(onto[at])))
            for at, to in enumerate(ends)
            if min(end, to) > max(start, to - len(onto[at]))
        ]
        total = sum(overlap for _, overlap in overlaps)
        for at, overlap in overlaps or [(last_empty, 1)]:
            given[at] += value * overlap / (total or 1)
        start = end
    return given


def at_ends(values: Sequence[float], pieces: Sequence[str], onto: Sequence[str], *, before: float) -> list[float]:
    """What stands at the end of each piece `onto`: the value of the last of `pieces` that ends no later.

    `before` stands where none does; the last piece gets the last value.
    """
    ends = list(accumulate(map(len, pieces)))
    found = []
    for to in accumulate(map(len, onto)):
        done = [value for value, end in zip(values, ends, strict=True) if end <= to]
        found.append(done[-1] if done else before)
    # Pieces without letters, which come last, end where the last letter does.
    num_empty = next((at for at, piece in enumerate(reversed(onto)) if piece), len(onto))
    num_own = next((at for at, piece in enumerate(reversed(pieces)) if piece), len(pieces))
    if found and num_empty and num_own < len(values):
        found[-1 - num_empty] = values[-1 - num_own]
    if found and values:
        found[-1] = values[-1]
    return found
