"""How much choosing gains over asking at random, measured on the labels that are there."""

from collections.abc import Hashable, Sequence

import numpy as np

from rlhfkit.feedback.active.ensemble import NUM_HEADS, PRIOR_SCALE, fit_ensemble
from rlhfkit.feedback.active.labelled import FEWEST_LABELS, Booleans, Floats, Integers, LabelledPairs
from rlhfkit.stats.agreement import Statistic
from rlhfkit.stats.intervals import mean_interval

__all__ = [
    "accuracy_without_choosing",
    "gain_of_choosing",
    "judge_candidates",
]

NUM_FOLDS = 5


def judge_candidates(
    labelled: LabelledPairs, generator: np.random.Generator, *, num_heads: int, prior_scale: float
) -> tuple[str, str]:
    """(why choosing has no gain, or nothing; what speaks for it)."""
    num = int(_measurable(labelled).sum())
    if num < FEWEST_LABELS:
        return f"{num} random labels, and choosing needs {FEWEST_LABELS}", ""
    accuracy, lead = accuracy_without_choosing(
        labelled, generator=generator, num_heads=num_heads, prior_scale=prior_scale
    )
    if accuracy.value is None:
        return accuracy.reason, ""
    reading = f"the ensemble is right in {_percent(accuracy)} of {accuracy.n} held-out random labels"
    if accuracy.low is None or accuracy.low <= 0.5:
        return f"{reading}, not clearly more often than a coin", ""
    if lead is not None and (lead.low is None or lead.low <= 0):
        return f"{reading}, {_points(lead)} more than the longer answer, which is not clear", ""
    gain = gain_of_choosing(labelled, generator=generator, num_heads=num_heads, prior_scale=prior_scale)
    if gain.value is not None and gain.value <= 0:
        return f"chosen labels taught {_points(gain)} more than as many random ones ({gain.n} held-out labels)", ""
    return "", reading


def accuracy_without_choosing(
    labelled: LabelledPairs,
    *,
    generator: np.random.Generator,
    num_heads: int = NUM_HEADS,
    prior_scale: float = PRIOR_SCALE,
) -> tuple[Statistic, Statistic | None]:
    """(accuracy of the ensemble on held-out random labels, its lead over the longer answer where lengths are known).

    Cross-validated by prompt; all other labels train, chosen ones too. Ties are not counted.
    """
    folds = _folds(labelled.prompts, generator)
    if folds is None:
        return Statistic(None, reason="all labels belong to one prompt, so none can be held out"), None
    right = np.full(len(labelled), np.nan)
    for fold in range(int(folds.max()) + 1):
        train, test = folds != fold, (folds == fold) & _measurable(labelled)
        right[test] = _right(labelled, train, test, generator, num_heads=num_heads, prior_scale=prior_scale)
    measured = ~np.isnan(right)
    lead = None
    if labelled.length_differences is not None:
        side = np.sign(labelled.length_differences[measured])
        by_length = np.where(side == 0, 0.5, (side > 0) == (labelled.labels[measured] > 0.5))
        lead = _mean(right[measured] - by_length)
    return _mean(right[measured]), lead


def gain_of_choosing(
    labelled: LabelledPairs,
    *,
    generator: np.random.Generator,
    num_heads: int = NUM_HEADS,
    prior_scale: float = PRIOR_SCALE,
) -> Statistic:
    """How much more accurate n chosen labels make the ensemble than n random ones, added to the same random labels.

    Both are measured on the same held-out random labels, by prompt; ties are not counted.
    """
    folds = _folds(labelled.prompts, generator)
    num_active = int((~labelled.is_random).sum())
    if num_active < FEWEST_LABELS or folds is None:
        return Statistic(None, unit="labels", reason=f"{num_active} chosen labels; expected {FEWEST_LABELS} or more")
    differences = []
    for fold in range(int(folds.max()) + 1):
        random, active = (
            generator.permutation(np.flatnonzero((folds != fold) & kind))
            for kind in (labelled.is_random, ~labelled.is_random)
        )
        num = min(len(active), len(random) // 2)
        test = (folds == fold) & _measurable(labelled)
        arms = [
            _right(labelled, train, test, generator, num_heads=num_heads, prior_scale=prior_scale)
            for train in (np.concatenate([random[num:], active[:num]]), random)
        ]
        differences.append(arms[0] - arms[1])
    return _mean(np.concatenate(differences))


def _measurable(labelled: LabelledPairs) -> Booleans:
    result: Booleans = labelled.is_random & (labelled.labels != 0.5)
    return result


def _folds(prompts: Sequence[Hashable], generator: np.random.Generator) -> Integers | None:
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    if len(numbers) < 2:
        return None
    fold_of = generator.permutation(len(numbers)) % NUM_FOLDS
    return np.array([fold_of[numbers[prompt]] for prompt in prompts], dtype=np.int64)


def _right(
    labelled: LabelledPairs,
    train: Booleans | Integers,
    test: Booleans,
    generator: np.random.Generator,
    *,
    num_heads: int,
    prior_scale: float,
) -> Floats:
    """1 where an ensemble fitted to `train` takes the side of the label, for the pairs of `test`."""
    ensemble = fit_ensemble(
        labelled.differences[train],
        labelled.labels[train],
        generator=generator,
        num_heads=num_heads,
        prior_scale=prior_scale,
    )
    p = ensemble.probabilities(labelled.differences[test]).mean(axis=0)
    right: Floats = np.where(p == 0.5, 0.5, (p > 0.5) == (labelled.labels[test] > 0.5)).astype(np.float64)
    return right


def _mean(values: Floats) -> Statistic:
    if not len(values):
        return Statistic(None, unit="labels", reason="no random label can be held out")
    mean, low, high, _ = mean_interval(values.tolist())
    return Statistic(mean, low, high, len(values), "labels")


def _percent(statistic: Statistic) -> str:
    return (
        f"{100 * (statistic.value or 0):.1f} % ({100 * (statistic.low or 0):.1f} to {100 * (statistic.high or 0):.1f})"
    )


def _points(statistic: Statistic) -> str:
    value, low, high = (100 * (end or 0) for end in (statistic.value, statistic.low, statistic.high))
    return f"{value:.1f} points ({low:.1f} to {high:.1f})"
