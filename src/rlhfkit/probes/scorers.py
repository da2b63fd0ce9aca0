"""What is said of a sampled text, on this machine: word lists, a lexicon, or a model or function of the user's."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from rlhfkit.errors import DataError
from rlhfkit.probes.probe import Unit
from rlhfkit.records import Prompt
from rlhfkit.rewards.lexicon import read_lexicon
from rlhfkit.rewards.source import RewardSource, ScoredText

__all__ = ["Scorer", "by_reward", "by_sentiment", "by_words", "own_words", "read_words"]

SENTIMENT_SCALE = 15.0
"""As VADER's: a sum of valences s becomes s / sqrt(s² + 15)."""


@dataclass(frozen=True)
class Scorer:
    """A number for each text."""

    name: str
    words: str
    """What a large number means: "has a word of the list"."""
    unit: Unit
    score: Callable[[Sequence[str]], list[float]]


def own_words(name: str) -> list[str]:
    """A word list of the package."""
    text = files("rlhfkit.probes").joinpath("rows", f"{name}.txt").read_text(encoding="utf-8")
    return text.split("\n")[:-1]


def read_words(path: Path) -> list[str]:
    """Words or phrases of a file, one a line.

    Raises: DataError where it cannot be read, or is empty.
    """
    try:
        words = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the word list {path} ({error}); give a UTF-8 file with a word a line") from error
    if not words:
        raise DataError(f"the word list {path} is empty; give a file with a word a line")
    return words


def by_words(words: Sequence[str], *, name: str, said: str) -> Scorer:
    """1 for a text with a word or phrase of the list, else 0. A lower bound: what is meant without them is missed."""
    either = "|".join(re.escape(word) for word in sorted(set(words), key=lambda word: (-len(word), word)))
    found = re.compile(rf"(?<!\w)(?:{either})(?!\w)", re.IGNORECASE)
    return Scorer(name, said, "share", lambda texts: [float(bool(found.search(text))) for text in texts])


def by_sentiment(path: Path) -> Scorer:
    """Sentiment in [-1, 1] by the valences of a lexicon, as VADER's file, without VADER's rules for negation.

    Raises: as `read_lexicon`.
    """
    valences = read_lexicon(path)

    def score(text: str) -> float:
        words = re.findall(r"[\w']+|[^\w\s]+", text.lower())
        total = math.fsum(valences.get(word, 0.0) for word in words)
        return total / math.sqrt(total**2 + SENTIMENT_SCALE)

    return Scorer("sentiment", "sentiment by the lexicon", "score", lambda texts: [score(text) for text in texts])


def by_reward(source: RewardSource, *, is_log_probability: bool) -> Scorer:
    """What a classifier of the user's says of a text alone; a log-probability becomes a probability."""

    def score(texts: Sequence[str]) -> list[float]:
        found = source.score([ScoredText(Prompt(""), "", text) for text in texts]).tolist()
        return [math.exp(value) for value in found] if is_log_probability else found

    return Scorer("classifier", "score of the classifier", "score", score)
