"""What to ask next: the pairs whose labels teach most, and always some at random.

An ensemble of Bradley-Terry heads, p = sigmoid(w · (phi_a - phi_b)), says where it does not know the answer (BALD: the
heads contradict each other) as opposed to where people will be of two minds (all heads near one half). Of the pairs it
knows least, those are taken that differ most from what is labelled and from each other (D-optimal design).

Random pairs are hard to beat, and only they give honest figures. So a share is always random, and all are as long as
choosing shows no gain.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from rlhfkit.errors import ConfigError, ShapeError
from rlhfkit.feedback.active.ensemble import NUM_HEADS, PRIOR_SCALE, Ensemble, bald, fit_ensemble, greedy_d_optimal
from rlhfkit.feedback.active.gain import judge_candidates
from rlhfkit.feedback.active.labelled import Floats, LabelledPairs, check_features

__all__ = [
    "Chosen",
    "Selection",
    "choose_pairs",
]


RANDOM_SHARE = 0.25
DOUBTFUL_SHARE = 0.2
"""Share of the candidates, the least known by BALD, from which variety selects."""
MOST_DIMENSIONS = 128
"""Longer features are cut to their leading directions."""


# ── what goes in and what comes back ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Chosen:
    """A candidate that is to be labelled."""

    index: int
    """Its number among the candidates."""
    reason: Literal["random", "active"]
    probability: float | None
    """For a random one, with what probability a candidate is among the random ones."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The candidates that are to be labelled, in random order."""

    chosen: list[Chosen]
    message: str
    """How they were chosen, and where all are random, why."""

    @property
    def is_active(self) -> bool:
        """Whether any was chosen for what it teaches."""
        return any(one.reason == "active" for one in self.chosen)


def choose_pairs(
    differences: ArrayLike,
    labelled: LabelledPairs | None,
    *,
    num: int,
    prompts: Sequence[Hashable],
    generator: np.random.Generator,
    random_share: float = RANDOM_SHARE,
    num_heads: int = NUM_HEADS,
    prior_scale: float = PRIOR_SCALE,
    cautious: bool = True,
) -> Selection:
    """`num` of the candidates, whose features differ by `differences` (N, d) and which belong to `prompts` (N,).

    A share is drawn from all candidates with equal probability. The others are the most informative, from as many
    prompts as possible. All are random, and the message says so, where there are no labels, and, if it is `cautious`,
    where random ones are few, where the ensemble is not clearly right more often than a coin and the longer answer, and
    where earlier chosen labels taught no more than random ones.

    Raises: ShapeError where sizes do not fit, DataError where a feature is not finite, ConfigError where a share is not
        between 0 and 1, or a number is too small.
    """
    candidates = np.asarray(differences, dtype=np.float64)
    check_features(candidates, "candidate")
    _check_settings(candidates, labelled, num=num, prompts=prompts, random_share=random_share, num_heads=num_heads)
    num_candidates = len(candidates)
    if num >= num_candidates:
        everything = [Chosen(int(index), "random", 1.0) for index in generator.permutation(num_candidates)]
        return Selection(everything, f"all {num_candidates} candidates: there is nothing to choose from")
    obstacle, reading = "there are no labels yet", ""
    if labelled is not None and len(labelled):
        candidates, labelled = _scaled(candidates, labelled)
        obstacle, reading = "", "without a look at the gain"
        if cautious:
            obstacle, reading = judge_candidates(labelled, generator, num_heads=num_heads, prior_scale=prior_scale)
    if obstacle or labelled is None:
        return Selection(_at_random(num_candidates, num, num, generator), f"all at random: {obstacle}")
    expected = num * random_share
    num_random = math.floor(expected) + int(generator.random() < expected % 1)
    random = _at_random(num_candidates, num_random, expected, generator)
    ensemble = fit_ensemble(
        labelled.differences, labelled.labels, generator=generator, num_heads=num_heads, prior_scale=prior_scale
    )
    taken = [one.index for one in random]
    active = _informative(candidates, labelled, ensemble, num - num_random, prompts, taken, prior_scale)
    chosen = [*random, *(Chosen(index, "active", None) for index in active)]
    message = f"{len(random)} at random, {len(active)} for what they teach: {reading}"
    return Selection([chosen[index] for index in generator.permutation(len(chosen))], message)


# ── the ensemble ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _informative(
    candidates: Floats,
    labelled: LabelledPairs,
    ensemble: Ensemble,
    num: int,
    prompts: Sequence[Hashable],
    taken: Sequence[int],
    prior_scale: float,
) -> list[int]:
    probabilities = ensemble.probabilities(candidates)
    doubt = bald(probabilities)
    doubt[taken] = -1.0
    size = min(len(candidates) - len(taken), max(num, math.ceil(DOUBTFUL_SHARE * len(candidates))))
    pool = np.argsort(-doubt, kind="stable")[:size]
    known = ensemble.probabilities(labelled.differences).mean(axis=0)
    information = (labelled.differences.T * (known * (1 - known))) @ labelled.differences
    inverse = np.linalg.inv(information + prior_scale**-2 * np.eye(candidates.shape[1]))
    chosen = greedy_d_optimal(
        candidates[pool],
        probabilities.mean(axis=0)[pool],
        inverse,
        num=num,
        prompts=[prompts[index] for index in pool],
        used=Counter(prompts[index] for index in taken),
    )
    return [int(pool[index]) for index in chosen]


def _at_random(num_candidates: int, num: int, expected: float, generator: np.random.Generator) -> list[Chosen]:
    drawn = generator.choice(num_candidates, size=num, replace=False)
    return [Chosen(int(index), "random", expected / num_candidates) for index in drawn]


# ── features ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _scaled(candidates: Floats, labelled: LabelledPairs) -> tuple[Floats, LabelledPairs]:
    """Both with features of at most MOST_DIMENSIONS, so scaled that a typical candidate has length 1."""
    known = labelled.differences
    if candidates.shape[1] > MOST_DIMENSIONS:
        from sklearn.decomposition import TruncatedSVD  # type: ignore[import-untyped]

        together = np.concatenate([candidates, known])
        most = min(MOST_DIMENSIONS, len(together))
        together = TruncatedSVD(most, random_state=0).fit_transform(together)
        candidates, known = together[: len(candidates)], together[len(candidates) :]
    length = math.sqrt(float((candidates**2).sum(axis=1).mean())) or 1.0
    known = known / length
    return candidates / length, LabelledPairs(
        known, labelled.labels, labelled.is_random, labelled.prompts, labelled.length_differences
    )


# ── checks and small mathematics ─────────────────────────────────────────────────────────────────────────────────────


def _check_settings(
    candidates: Floats,
    labelled: LabelledPairs | None,
    *,
    num: int,
    prompts: Sequence[Hashable],
    random_share: float,
    num_heads: int,
) -> None:
    if len(prompts) != len(candidates):
        raise ShapeError(f"{len(prompts)} prompts for {len(candidates)} candidates; expected as many")
    if labelled is not None and len(labelled) and labelled.differences.shape[1] != candidates.shape[1]:
        raise ShapeError(
            f"features of {candidates.shape[1]} numbers for candidates, of {labelled.differences.shape[1]} for "
            "labelled pairs; expected as many; take both from the same model"
        )
    if num < 0:
        raise ConfigError(f"num is {num}; expected 0 or more pairs")
    if not 0 < random_share <= 1:
        raise ConfigError(
            f"random_share is {random_share}; expected more than 0, up to 1; without random pairs no figure is honest"
        )
    if num_heads < 2:
        raise ConfigError(f"num_heads is {num_heads}; expected 2 or more; one head cannot contradict itself")
