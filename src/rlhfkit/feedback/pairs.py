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
from numpy.typing import ArrayLike, NDArray

from rlhfkit.errors import ConfigError, DataError, ShapeError
from rlhfkit.feedback.votes import Pair
from rlhfkit.records import Conversation
from rlhfkit.stats.agreement import Statistic
from rlhfkit.stats.intervals import mean_interval

__all__ = [
    "FEWEST_LABELS",
    "Chosen",
    "Ensemble",
    "LabelledPairs",
    "Selection",
    "accuracy_without_choosing",
    "bald",
    "choose_pairs",
    "d_optimal_gain",
    "fit_ensemble",
    "gain_of_choosing",
    "greedy_d_optimal",
    "text_features",
    "variance",
]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

FEWEST_LABELS = 50
"""Random labels, ties apart, that are needed before choosing can be judged; as many chosen ones to measure the gain."""
NUM_HEADS = 5
RANDOM_SHARE = 0.25
DOUBTFUL_SHARE = 0.2
"""Share of the candidates, the least known by BALD, from which variety selects."""
PRIOR_SCALE = 2.0
"""Deviation of the log-odds of a typical pair before anything is labelled."""
NUM_FOLDS = 5
MOST_DIMENSIONS = 128
"""Longer features are cut to their leading directions."""
NEWTON_STEPS = 50


# ── what goes in and what comes back ─────────────────────────────────────────────────────────────────────────────────


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
        _check_features(self.differences, "labelled")
        if not bool(((self.labels >= 0) & (self.labels <= 1)).all()):
            raise DataError("a label is not between 0 and 1; expected 1 for a, 0 for b, 0.5 for a tie")

    def __len__(self) -> int:
        return len(self.labels)


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


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Bradley-Terry heads that were fitted to different draws of the same labels."""

    weights: Floats
    """(heads, d)."""

    def probabilities(self, differences: ArrayLike) -> Floats:
        """Probability (heads, N) that a is better."""
        return _sigmoid(self.weights @ np.asarray(differences, dtype=np.float64).T)


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
    _check_features(candidates, "candidate")
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
            obstacle, reading = _judge(labelled, generator, num_heads=num_heads, prior_scale=prior_scale)
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


# ── scores ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def variance(probabilities: ArrayLike) -> Floats:
    """Variance (N,) over the heads of their probabilities (heads, N).

    Source: Christiano et al. 2017, arXiv 1706.03741.
    """
    result: Floats = np.asarray(probabilities, dtype=np.float64).var(axis=0)
    return result


def bald(probabilities: ArrayLike) -> Floats:
    """What a label would tell about the heads, in nats (N,): H(mean p) - mean H(p), H the entropy of a coin.

    Source: Houlsby et al. 2011, arXiv 1112.5745.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    result: Floats = np.maximum(0.0, _entropy(p.mean(axis=0)) - _entropy(p).mean(axis=0))
    return result


def d_optimal_gain(differences: ArrayLike, probabilities: ArrayLike, inverse: ArrayLike) -> Floats:
    """Growth of log det V (N,) by each pair: log(1 + p (1 - p) dᵀ V⁻¹ d), for d (N, d), p (N,) and V⁻¹ (d, d).

    Source: Shen et al. 2025, arXiv 2502.04354.
    """
    d, p = np.asarray(differences, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    result: Floats = np.log1p(p * (1 - p) * ((d @ np.asarray(inverse, dtype=np.float64)) * d).sum(axis=1))
    return result


def greedy_d_optimal(
    differences: ArrayLike,
    probabilities: ArrayLike,
    inverse: ArrayLike,
    *,
    num: int,
    prompts: Sequence[Hashable],
    used: Counter[Hashable] | None = None,
) -> list[int]:
    """Indices of up to `num` pairs, each with the largest `d_optimal_gain` once the ones before are counted in.

    Only pairs of the prompts that were used least are looked at, so no prompt comes twice before all came once.
    """
    d, p = np.asarray(differences, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    inverse = np.array(inverse, dtype=np.float64)
    used = Counter() if used is None else Counter(used)
    times = np.array([used[prompt] for prompt in prompts], dtype=np.float64)
    spread, curvature = ((d @ inverse) * d).sum(axis=1), p * (1 - p)
    chosen: list[int] = []
    for _ in range(min(num, len(d))):
        best = int(np.where(times == times.min(), curvature * spread, -1.0).argmax())
        chosen.append(best)
        # Sherman and Morrison: V grows by the pair's own term, and its inverse by one of rank 1.
        direction = inverse @ d[best]
        shrink = curvature[best] / (1 + curvature[best] * spread[best])
        inverse -= shrink * np.outer(direction, direction)
        spread = np.maximum(0.0, spread - shrink * (d @ direction) ** 2)
        times[[number for number, prompt in enumerate(prompts) if prompt == prompts[best]]] += 1
        times[best] = math.inf
    return chosen


# ── the ensemble ─────────────────────────────────────────────────────────────────────────────────────────────────────


def fit_ensemble(
    differences: ArrayLike,
    labels: ArrayLike,
    *,
    generator: np.random.Generator,
    num_heads: int = NUM_HEADS,
    prior_scale: float = PRIOR_SCALE,
) -> Ensemble:
    """Heads that minimise cross-entropy + |w - w0|² / (2 prior_scale²), each on labels of its own and with its own w0.

    A head's labels are drawn with replacement and its w0 from the prior: without both the heads would all be the same.
    Source: Osband et al. 2018, arXiv 1806.03335; Gleave and Irving 2022, arXiv 2203.07472, for what goes wrong.
    """
    x, y = np.asarray(differences, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    weights = []
    for _ in range(num_heads):
        times = np.bincount(generator.integers(len(y), size=len(y)), minlength=len(y)) if len(y) else np.zeros(0)
        start = np.asarray(generator.normal(scale=prior_scale, size=x.shape[1]))
        weights.append(_fit_head(x, y, times.astype(np.float64), start, precision=prior_scale**-2))
    return Ensemble(np.array(weights))


def _fit_head(x: Floats, y: Floats, times: Floats, start: Floats, *, precision: float) -> Floats:
    """Minimum of sum(times * cross-entropy) + precision / 2 * |w - start|², by Newton's method with step halving."""

    def loss(w: Floats) -> float:
        logits = x @ w
        return float((times * (np.logaddexp(0, logits) - y * logits)).sum() + precision / 2 * ((w - start) ** 2).sum())

    w = np.zeros_like(start)
    now = loss(w)
    for _ in range(NEWTON_STEPS):
        p = _sigmoid(x @ w)
        gradient = x.T @ (times * (p - y)) + precision * (w - start)
        hessian = (x.T * (times * p * (1 - p))) @ x + precision * np.eye(len(w))
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while (then := loss(w - size * step)) > now and size > 1e-6:
            size /= 2
        if now - then < 1e-9 * (1 + abs(now)):
            break
        w, now = w - size * step, then
    return w


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


# ── is there a gain? ─────────────────────────────────────────────────────────────────────────────────────────────────


def _judge(
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


# ── features ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def text_features(pairs: Sequence[Pair], *, dimensions: int = 64) -> Floats:
    """phi_a - phi_b (N, at most dimensions + 3) from the answers' words and lengths, without any model.

    Words and pairs of words by TF-IDF (Chinese and Japanese by character), cut to their leading directions; then the
    logarithms of length, of words and of lines. Directions depend on all pairs given, so give the labelled ones and
    the candidates together. The same pairs give the same features.
    """
    from sklearn.decomposition import TruncatedSVD  # type: ignore[import-untyped]
    from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-untyped]

    if not pairs:
        return np.zeros((0, 3))
    texts = [_text(response) for pair in pairs for response in (pair.response_a, pair.response_b)]
    sizes = np.array([[len(text), len(text.split()), text.count("\n")] for text in texts], dtype=np.float64)
    blocks = [_halved_to_unit(np.log1p(sizes))]
    try:
        words = TfidfVectorizer(token_pattern=_TOKEN, ngram_range=(1, 2), sublinear_tf=True).fit_transform(texts)
    except ValueError:
        # scikit-learn's way to say that no text holds a word.
        words = np.zeros((len(texts), 1))
    most = min(dimensions, min(words.shape) - 1)
    if most > 0:
        blocks.insert(0, TruncatedSVD(most, random_state=0).fit_transform(words))
    phi = np.concatenate(blocks, axis=1)
    difference: Floats = phi[0::2] - phi[1::2]
    return difference


_ONE_BY_ONE = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_TOKEN = rf"[{_ONE_BY_ONE}]|[^\W{_ONE_BY_ONE}]+"


def _text(response: str | Conversation) -> str:
    return response if isinstance(response, str) else "\n".join(turn.content for turn in response)


def _halved_to_unit(columns: Floats) -> Floats:
    """Columns whose differences between the two answers of a pair have a root mean square of one half, or are 0."""
    differences = columns[0::2] - columns[1::2]
    size = np.sqrt((differences**2).mean(axis=0))
    result: Floats = columns * np.divide(0.5, size, out=np.zeros_like(size), where=size > 0)
    return result


def _scaled(candidates: Floats, labelled: LabelledPairs) -> tuple[Floats, LabelledPairs]:
    """Both with features of at most MOST_DIMENSIONS, so scaled that a typical candidate has length 1."""
    known = labelled.differences
    if candidates.shape[1] > MOST_DIMENSIONS:
        from sklearn.decomposition import TruncatedSVD

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


def _check_features(differences: Floats, what: str) -> None:
    if differences.ndim != 2:
        raise ShapeError(f"{what} features of shape {differences.shape}; expected (pairs, d); give phi_a - phi_b")
    finite = np.isfinite(differences).all(axis=1)
    if not finite.all():
        raise DataError(
            f"features of {what} pair {int(np.argmin(finite))} are not finite; expected numbers; "
            "look at the model that they come from"
        )


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


def _sigmoid(logits: Floats) -> Floats:
    result: Floats = np.exp(-np.logaddexp(0, -logits))
    return result


def _entropy(p: Floats) -> Floats:
    """Entropy in nats of coins with probability p; 0 where it is certain."""
    q = 1 - p
    logs = [np.log(part, out=np.zeros_like(part), where=part > 0) for part in (p, q)]
    result: Floats = -(p * logs[0] + q * logs[1])
    return result
