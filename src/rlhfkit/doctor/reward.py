"""What a reward says of real texts: numbers, that differ, by more than length; and better than guessing on pairs."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from rlhfkit.diagnosis.limits import CHANCE, COMMON_SCORE, FLAT_SCORES, LITTLE_ELSE, SOMEWHAT_LENGTH
from rlhfkit.diagnosis.verdict import accuracy_interval
from rlhfkit.doctor.budget import left_out, scored_within
from rlhfkit.doctor.data import spaced
from rlhfkit.doctor.findings import Finding, fault, ok, skipped, warning
from rlhfkit.models.encoder import Encoder
from rlhfkit.records import Demonstration, Preference, Prompt
from rlhfkit.rewards.bag_of_words import pairs_won, preference_baselines
from rlhfkit.rewards.source import RewardSource, ScoredText
from rlhfkit.rundir.atomic import read_json
from rlhfkit.rundir.results import RewardModelResults, read_results
from rlhfkit.stats.intervals import rate_interval

__all__ = ["examine_accuracy", "examine_report", "examine_scores", "rank_correlation", "trial_texts"]

FEW_TEXTS = 8
NUM_TEXTS = 32
NUM_PAIRS = 128
NUM_BASELINE_PAIRS = 2000


def trial_texts(
    prompts: Sequence[Prompt],
    demonstrations: Sequence[Demonstration],
    preferences: Sequence[Preference],
    encoder: Encoder | None,
) -> list[ScoredText]:
    """Responses that the recipe's own rows give, whole and cut short, so that texts of many lengths are among them."""
    answered = [(row.prompt, row.response) for row in demonstrations]
    answered += [(row.prompt, text) for row in preferences for text in (row.chosen, row.rejected)]
    answered += [(prompt, prompt.reference) for prompt in prompts if prompt.reference is not None]
    texts = []
    for index, (prompt, response) in enumerate(spaced(answered, NUM_TEXTS)):
        share = (0.25, 0.5, 0.75, 1.0)[index % 4]
        cut = response[: max(1, int(share * len(response)))]
        texts.append(ScoredText(prompt, _text(prompt, encoder), cut))
    return texts


def _text(prompt: Prompt, encoder: Encoder | None) -> str:
    if encoder is not None:
        return encoder.prompt_text(prompt)
    return prompt.content if isinstance(prompt.content, str) else prompt.content[-1].content


def examine_scores(
    episodes: Sequence[ScoredText], scores: Sequence[float], *, of_model: bool, name: str = "reward"
) -> Iterator[Finding]:
    """Whether scores differ, and by more than the length of the response; the last episodes may be without a score."""
    num = len(scores)
    if num < len(episodes):
        yield skipped(f"{name}.time", f"{num} responses are scored{left_out(num, len(episodes), 'responses')}")
        episodes = episodes[:num]
    whose = "responses of the model" if of_model else "responses of the data"
    values = np.array(scores, dtype=np.float64)
    words = f"{num} {whose} score {values.min():.3g} to {values.max():.3g}, mean {values.mean():.3g}"
    if len({episode.response for episode in episodes}) < 2:
        yield skipped(f"{name}.scores", f"{words}; the responses are all the same, so nothing can be said")
        return
    if values.std() <= FLAT_SCORES:
        yield fault(
            f"{name}.scores",
            f"all {num} {whose} score {values[0]:g}, so there is nothing to learn",
            "look at the reward: does it read the response, and in the right column or language?",
        )
        return
    commonest = max(np.unique(values, return_counts=True)[1]) / num
    if commonest > COMMON_SCORE:
        yield warning(
            f"{name}.scores",
            f"{words}; {commonest:.0%} are the same, so little is learnt from each rollout",
            "make the reward finer, or raise ppo.rollout_episodes",
        )
    else:
        yield ok(f"{name}.scores", f"{words}, deviation {values.std():.2g}; all finite")
    yield from _length(episodes, values, whose, name)


def _length(episodes: Sequence[ScoredText], scores: np.ndarray, whose: str, name: str) -> Iterator[Finding]:
    name = f"{name}.length"
    lengths = [len(episode.response) for episode in episodes]
    if len(scores) < FEW_TEXTS or len(set(lengths)) < 4:
        yield skipped(name, f"{len(set(lengths))} different lengths are too few to compare with scores")
        return
    by_letters = rank_correlation(scores, lengths)
    by_words = rank_correlation(scores, [len(episode.response.split()) for episode in episodes])
    rho, what = max((by_letters, "characters"), (by_words, "words"), key=lambda pair: abs(pair[0]))
    words = f"rank correlation of score and number of {what}: {rho:+.2f}, on {len(scores)} {whose}"
    remedy = "score something else than length; ppo.length_penalty and brevity_penalty keep it within bounds"
    longer = "longer" if rho > 0 else "shorter"
    if abs(rho) >= LITTLE_ELSE:
        yield fault(name, f"{words}: the {longer}, the better, and hardly anything else counts", remedy)
    elif abs(rho) >= SOMEWHAT_LENGTH:
        yield warning(name, f"{words}: the {longer}, mostly, the better", remedy)
    else:
        yield ok(name, words)


def rank_correlation(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """Spearman's rho: the correlation of ranks, where equal numbers share theirs; 0 where all are equal."""
    from scipy.stats import spearmanr  # type: ignore[import-untyped]

    if min(np.ptp(a), np.ptp(b)) == 0:
        return 0.0
    return float(spearmanr(a, b).statistic)


# ── on pairs ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def examine_accuracy(
    reward: RewardSource,
    train: Sequence[Preference],
    test: Sequence[Preference],
    encoder: Encoder | None,
    *,
    seed: int,
    name: str = "reward.accuracy",
) -> Iterator[Finding]:
    """How often a reward prefers the response that people chose, against what needs no model."""
    wanted = spaced(test, NUM_PAIRS)
    random.Random(seed).shuffle(wanted)  # so that those for which there is time are from everywhere
    episodes = [
        ScoredText(pair.prompt, _text(pair.prompt, encoder), text)
        for pair in wanted
        for text in (pair.chosen, pair.rejected)
    ]
    scores = scored_within(reward, episodes)
    pairs = wanted[: len(scores) // 2]
    won = pairs_won(scores[0::2], scores[1::2])
    interval = rate_interval(won.tolist(), [pair.prompt.content for pair in pairs])
    baselines = preference_baselines(spaced(train, NUM_BASELINE_PAIRS) or pairs, pairs, seed=seed)
    if not train:
        del baselines["tfidf_logistic"]  # it has read what it is measured on
    skipped_pairs = left_out(len(pairs), len(wanted), "pairs")
    yield judged_accuracy(name, float(won.mean()), interval, len(pairs), baselines, skipped_pairs=skipped_pairs)


def examine_report(path: Path) -> Iterator[Finding]:
    """The same of the reward model that a run has trained already, out of its own report."""
    if "accuracy" in read_json(path) and (found := read_results(path, RewardModelResults)):
        interval = accuracy_interval(found)
        yield judged_accuracy("reward.accuracy", found.accuracy, interval, found.num_pairs, found.baselines)
    else:
        yield skipped("reward.accuracy", "the run has no test pairs to measure its reward model on")


def judged_accuracy(
    name: str,
    accuracy: float,
    interval: tuple[float, float],
    num_pairs: int,
    baselines: dict[str, float],
    *,
    skipped_pairs: str = "",
) -> Finding:
    """What to think of a reward that is right on a share, with its 95 % interval, of so many test pairs."""
    low, high = interval
    shown = ", ".join(f"{PLAIN.get(key, key)} {value:.1%}" for key, value in baselines.items())
    words = f"right on {accuracy:.1%} of {num_pairs} test pairs{skipped_pairs} ({low:.1%} to {high:.1%}); {shown}"
    if high < CHANCE:
        return fault(
            name,
            f"{words}: it prefers what people rejected",
            "look for a wrong sign, or for chosen and rejected taken for each other",
        )
    if low <= CHANCE:
        return warning(
            name,
            f"{words}: not clearly better than a coin",
            "give more pairs or epochs, a higher learning rate, or a reward that fits the data",
        )
    if low <= max(baselines.values(), default=CHANCE):  # as the verdict has it
        return warning(
            name,
            f"{words}: not clearly better than what needs no model",
            "give more pairs or epochs, a larger model, or another reward",
        )
    return ok(name, words)


PLAIN = {"tfidf_logistic": "a bag of words", "longer": '"the longer"', "shorter": '"the shorter"'}
