"""How much the responses to one prompt differ from each other, and how much their scores do."""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, variance

from rlhfkit.diagnosis.limits import EXCHANGES, FLAT_SCORES
from rlhfkit.rewards.source import RewardSource, ScoredText, check_scores

__all__ = ["change_by_exchange", "variety"]


def variety(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], scores: Sequence[float]
) -> dict[str, float]:
    """Metrics of the prompts that have several responses, by the reward's own `scores`; empty where there is none.

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


def change_by_exchange(
    reward: RewardSource, episodes: Sequence[ScoredText], scores: Sequence[float]
) -> dict[str, float]:
    """How many of a few scores change where a prompt gets another prompt's response: "score/exchange_change", a share.

    0 says that the reward reads the prompt alone, which no rollout shows in which every prompt is answered once. Empty
    where too few responses can be exchanged, or all scores are the same.
    Raises: RewardError where the reward source fails.
    """
    others = [*episodes[1:], *episodes[:1]]
    pairs = [
        (place, replace(own, response=other.response, finished=other.finished))
        for place, (own, other) in enumerate(zip(episodes, others, strict=True))
        if own.prompt_text != other.prompt_text and own.response != other.response
    ][:EXCHANGES]
    size = max(scores, default=0.0) - min(scores, default=0.0)
    if len(pairs) < EXCHANGES or size <= FLAT_SCORES:
        return {}
    exchanged = [episode for _, episode in pairs]
    found = check_scores(reward.score(exchanged), exchanged, source="the reward source").tolist()
    changed = sum(abs(new - scores[place]) > FLAT_SCORES * size for new, (place, _) in zip(found, pairs, strict=True))
    return {"score/exchange_change": changed / len(pairs)}
