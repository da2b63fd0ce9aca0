"""How much the responses to one prompt differ from each other, and how much their scores do."""

import math
from collections.abc import Sequence
from statistics import fmean, variance

__all__ = ["variety"]


def variety(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], scores: Sequence[float]
) -> dict[str, float]:
    """Metrics of the prompts that have several responses; empty where there is none.

    "score/within_prompt_std" = sqrt(sum over prompts of the squared deviations from the prompt's mean score / sum over
    prompts of (responses - 1)); "response/distinct_share" = mean over prompts of (different responses - 1) /
    (responses - 1): 0 where all are the same, 1 where none is.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt), []).append(row)
    repeated = [rows for rows in groups.values() if len(rows) > 1]
    if not repeated:
        return {}
    squares = math.fsum(variance(scores[row] for row in rows) * (len(rows) - 1) for rows in repeated)
    distinct = [(len({tuple(responses[row]) for row in rows}) - 1) / (len(rows) - 1) for rows in repeated]
    return {
        "score/within_prompt_std": math.sqrt(squares / sum(len(rows) - 1 for rows in repeated)),
        "response/distinct_share": fmean(distinct),
    }
