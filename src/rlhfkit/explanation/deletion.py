"""What the reward says of a response without some of its tokens: ablation, and whether an attribution is faithful."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rlhfkit.explanation.pieces import Part
from rlhfkit.rewards.source import RewardSource, ScoredText, check_scores
from rlhfkit.rundir.explanations import DeletionCheck, PartEffect

__all__ = ["FEWEST_TOKENS", "Ablated", "ablation", "check_by_deletion", "effects_of"]

FEWEST_TOKENS = 6
"""A shorter response has too few orders in which tokens can be left out to tell one from chance."""
NUM_RANDOM = 199
"""Random orders. With the order of the attribution they are 200, of which the best 10 are 5 %."""
NUM_CUTS = 5
LIMIT = 0.05


class Ablated:
    """Scores of one response without some of its tokens; each text is scored once."""

    def __init__(self, reward: RewardSource, episode: ScoredText, pieces: Sequence[str]) -> None:
        """`pieces` are the texts of the tokens; a last one without text, as EOS, is what ended the response."""
        self.reward, self.episode, self.pieces = reward, episode, list(pieces)
        self.has_end = bool(pieces) and not pieces[-1] and episode.finished
        self._known: dict[tuple[str, bool], float] = {}
        self.score = self.without([()])[0]

    def without(self, deleted: Sequence[Sequence[int]]) -> list[float]:
        """Score without the tokens at these places, for each set of places.

        Without the token that ends it a response is one that was cut off.
        Raises: RewardError where the reward source fails.
        """
        episodes = [self._episode(set(places)) for places in deleted]
        return self.scores_of(episodes)

    def scores_of(self, episodes: Sequence[ScoredText]) -> list[float]:
        """Scores of further versions of the response."""
        keys = [(episode.response, episode.finished) for episode in episodes]
        new = {key: episode for key, episode in zip(keys, episodes, strict=True) if key not in self._known}
        if new:
            scores = check_scores(self.reward.score(list(new.values())), list(new.values()), source="the reward source")
            self._known.update(zip(new, scores.tolist(), strict=True))
        return [self._known[key] for key in keys]

    def _episode(self, places: set[int]) -> ScoredText:
        if not places:
            return self.episode
        text = "".join(piece for place, piece in enumerate(self.pieces) if place not in places)
        is_cut = self.has_end and len(self.pieces) - 1 in places
        stripped = text if isinstance(self.episode.prompt.content, str) else text.strip()
        return replace(self.episode, response=stripped, finished=self.episode.finished and not is_cut)


def ablation(ablated: Ablated) -> tuple[float, ...]:
    """What the score loses without each token: score - score without it."""
    scores = ablated.without([[place] for place in range(len(ablated.pieces))])
    return tuple(ablated.score - score for score in scores)


def effects_of(ablated: Ablated, parts: Sequence[Part]) -> tuple[PartEffect, ...]:
    """What the score loses without each part."""
    text = ablated.episode.response
    episodes = [replace(ablated.episode, response=text[: part.start] + text[part.end :]) for part in parts]
    return tuple(
        PartEffect(text=part.text, effect=ablated.score - score)
        for part, score in zip(parts, ablated.scores_of(episodes), strict=True)
    )


def check_by_deletion(ablated: Ablated, values: Sequence[float], *, seed: int) -> DeletionCheck | None:
    """Whether the score falls faster without the tokens of highest attribution than without tokens at random.

    drop = mean over n of (score - score without the n tokens of highest value),   up to half of the tokens
    p = (1 + random orders that drop at least as far) / (1 + random orders)

    None for a response of fewer than six tokens. Where one token alone pays, one random order in as many as there are
    tokens begins with it too, so that in a response of fewer than twenty it cannot be distinguished from chance.
    Source: Samek et al. 2017, arXiv 1509.06321 (area over the perturbation curve).
    """
    num = len(ablated.pieces)
    if num < FEWEST_TOKENS:
        return None
    cuts = sorted({round(cut) for cut in np.linspace(1, max(1, num // 2), NUM_CUTS)})
    generator = np.random.default_rng(seed)
    by_value = sorted(range(num), key=lambda place: (-values[place], place))
    orders = [by_value, *(generator.permutation(num).tolist() for _ in range(NUM_RANDOM))]
    flat = ablated.without([order[:cut] for order in orders for cut in cuts])
    scores = np.array(flat).reshape(len(orders), len(cuts))
    drops = (ablated.score - scores).mean(1)
    tolerance = 1e-6 * max(1.0, float(np.abs(scores).max()))  # equal but for rounding is no further
    p_value = (1 + int((drops[1:] >= drops[0] - tolerance).sum())) / len(orders)
    return DeletionCheck(
        num_deleted=tuple(cuts),
        scores=tuple(scores[0].tolist()),
        random_scores=tuple(scores[1:].mean(0).tolist()),
        drop=float(drops[0]),
        random_drop=float(drops[1:].mean()),
        p_value=p_value,
        is_faithful=p_value <= LIMIT and bool(drops[0] > tolerance),
    )
