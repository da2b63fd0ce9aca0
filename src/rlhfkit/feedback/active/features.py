"""Texts as vectors, without a language model."""

from collections.abc import Sequence

import numpy as np

from rlhfkit.feedback.active.labelled import Floats
from rlhfkit.feedback.votes import Pair
from rlhfkit.records import Conversation

__all__ = [
    "text_features",
]


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
