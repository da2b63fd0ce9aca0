"""Logistic regression on words and word pairs: a quick judge, and the baseline that a reward model must beat."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rlhfkit.errors import DataError, ModelError
from rlhfkit.records import Preference
from rlhfkit.rewards.source import ScoredText, check_scores
from rlhfkit.rundir.atomic import read_json, write_json

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-untyped]

__all__ = ["BagOfWords", "pairs_won", "preference_baselines", "share_of_pairs_won"]

_FORMAT = "rlhfkit bag of words 1"


class BagOfWords:
    """Log-odds that a text is of the better kind, above 0 where this is likelier than not.

    score = weights · x + bias,    x = TF-IDF of the text's words and word pairs, 1 + ln(tf), scaled to length 1

    It reads the response alone, without its prompt.
    """

    def __init__(self, vectorizer: "TfidfVectorizer", weights: np.ndarray, bias: float) -> None:
        """Put fitted parts together; `fit`, `fit_preferences` and `load` are the ways to get them."""
        self._vectorizer = vectorizer
        self._weights = weights
        self._bias = bias

    @classmethod
    def fit(cls, texts: Sequence[str], labels: Sequence[int], *, seed: int) -> Self:
        """Judge that tells texts with label 1 (better) from those with label 0.

        Raises: DataError where a label is missing altogether or no text has a word.
        """
        from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

        if set(labels) != {0, 1}:
            raise DataError(f"a bag of words needs texts with label 0 and with label 1; found {sorted(set(labels))}")
        vectorizer = _new_vectorizer()
        try:
            features = vectorizer.fit_transform(texts)
        except ValueError as error:
            raise DataError(f"no word in {len(texts)} texts ({error}); look at the data of the judge") from error
        regression = LogisticRegression(max_iter=1000, random_state=seed).fit(features, labels)
        return cls(vectorizer, regression.coef_[0].astype(np.float64), float(regression.intercept_[0]))

    @classmethod
    def fit_preferences(cls, preferences: Sequence[Preference], *, seed: int) -> Self:
        """Judge that tells chosen responses from rejected ones."""
        texts = [text for pair in preferences for text in (pair.chosen, pair.rejected)]
        return cls.fit(texts, [1, 0] * len(preferences), seed=seed)

    def log_odds(self, texts: Sequence[str]) -> np.ndarray:
        """Log-odds (B,) in float64."""
        if not texts:
            return np.zeros(0)
        return np.asarray(self._vectorizer.transform(texts) @ self._weights + self._bias)

    def score(self, episodes: Sequence[ScoredText]) -> torch.Tensor:
        """Log-odds (B,) of the responses."""
        log_odds = self.log_odds([episode.response for episode in episodes])
        return check_scores(torch.from_numpy(log_odds), episodes, source="bag of words")

    def accuracy_on(self, preferences: Sequence[Preference]) -> float:
        """Share of pairs whose chosen response scores higher; equal scores count half."""
        log_odds = self.log_odds([text for pair in preferences for text in (pair.chosen, pair.rejected)])
        return share_of_pairs_won(log_odds[0::2], log_odds[1::2])

    def save(self, directory: Path) -> None:
        """Write `bag_of_words.json` and `bag_of_words.safetensors` into `directory`."""
        directory.mkdir(parents=True, exist_ok=True)
        vocabulary = self._vectorizer.get_feature_names_out().tolist()
        write_json(directory / "bag_of_words.json", {"format": _FORMAT, "vocabulary": vocabulary})
        parameters = {"idf": self._vectorizer.idf_, "weights": self._weights, "bias": np.array([self._bias])}
        save_file(parameters, directory / "bag_of_words.safetensors")

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Judge that gives the same scores as the saved one, to the last bit.

        Raises: ModelError where `directory` does not hold one.
        """
        description, parameters = directory / "bag_of_words.json", directory / "bag_of_words.safetensors"
        if not description.is_file() or not parameters.is_file():
            raise ModelError(
                f"{directory} holds no bag of words (no {description.name} with {parameters.name}); "
                "run the stage `judge`, or set the path to a directory that has one"
            )
        content = read_json(description)
        try:
            tensors = load_file(parameters)
            if content["format"] != _FORMAT:
                raise ValueError(f"its format is {content['format']!r}, not {_FORMAT!r}")
            vectorizer = _new_vectorizer(content["vocabulary"])
            vectorizer.idf_ = tensors["idf"]
            if len(tensors["weights"]) != len(content["vocabulary"]):
                raise ValueError(f"{len(tensors['weights'])} weights for {len(content['vocabulary'])} words")
            return cls(vectorizer, tensors["weights"], float(tensors["bias"][0]))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f"the bag of words in {directory} is damaged ({error}); fit it again") from error


def preference_baselines(train: Sequence[Preference], test: Sequence[Preference], *, seed: int) -> dict[str, float]:
    """Accuracy on `test` of what needs no language model, under the names that the report knows.

    `tfidf_logistic`: BagOfWords fitted on `train`; `shorter`, `longer`: the response with fewer or more characters
    (equal lengths count half). Where no text has a word, as with answers "A" and "B", the first can only guess.
    """
    try:
        learnt = BagOfWords.fit_preferences(train, seed=seed).accuracy_on(test)
    except DataError:
        learnt = 0.5
    chosen, rejected = [len(pair.chosen) for pair in test], [len(pair.rejected) for pair in test]
    return {
        "tfidf_logistic": learnt,
        "shorter": share_of_pairs_won(rejected, chosen),
        "longer": share_of_pairs_won(chosen, rejected),
    }


def pairs_won(scores: Sequence[float] | np.ndarray, others: Sequence[float] | np.ndarray) -> np.ndarray:
    """Of each pair 1 where `scores` is above `others`, 0 where it is below, one half where they are equal.

    Raises: DataError where there is no pair.
    """
    difference = np.asarray(scores, dtype=np.float64) - np.asarray(others, dtype=np.float64)
    if not difference.size:
        raise DataError("there is no pair to measure accuracy on; give at least one")
    return np.asarray((np.sign(difference) + 1) / 2)


def share_of_pairs_won(scores: Sequence[float] | np.ndarray, others: Sequence[float] | np.ndarray) -> float:
    """Share of pairs in which `scores` is above `others`; equal ones count half. Raises: as `pairs_won`."""
    return float(pairs_won(scores, others).mean())


def _new_vectorizer(vocabulary: Sequence[str] | None = None) -> "TfidfVectorizer":
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, vocabulary=vocabulary)
