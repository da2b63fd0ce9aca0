"""A word list as a reward."""

import math
import string
from collections.abc import Sequence
from pathlib import Path

import torch

from rlhfkit.config.rewards import LexiconRewardConfig
from rlhfkit.errors import DataError
from rlhfkit.rewards.source import ScoredText, check_scores

__all__ = ["LexiconReward", "read_lexicon"]


class LexiconReward:
    """Mean weight of the response's words.

    score = (sum of the weights of the words that the lexicon has) / (number of all words);    0.0 without any word

    A word is a piece between white space that has a letter or a digit, or that is an entry itself, as ":)". It is
    looked up as it stands, and if that fails without the punctuation around it. Words that the lexicon lacks weigh 0:
    one kind word in a long response is worth less than in a short one, which a mean over the known words alone would
    not see. Entries with white space inside never match.
    """

    def __init__(self, config: LexiconRewardConfig, directory: Path) -> None:
        """Read the lexicon; a relative path starts at `directory`.

        Raises: DataError where the file is missing or a line is wrong.
        """
        self._case_sensitive = config.case_sensitive
        self._weights = read_lexicon(directory / config.path, case_sensitive=config.case_sensitive)

    def score(self, episodes: Sequence[ScoredText]) -> torch.Tensor:
        """Scores (B,) in the unit of the lexicon's weights."""
        return check_scores([self._mean_weight(episode.response) for episode in episodes], episodes, source="lexicon")

    def _mean_weight(self, response: str) -> float:
        weights = []
        for piece in (response if self._case_sensitive else response.lower()).split():
            weight = self._weights.get(piece, self._weights.get(piece.strip(string.punctuation)))
            if weight is not None or any(map(str.isalnum, piece)):
                weights.append(weight or 0.0)
        return math.fsum(weights) / len(weights) if weights else 0.0


def read_lexicon(path: Path, *, case_sensitive: bool = False) -> dict[str, float]:
    """Word → weight, from lines `word TAB weight [TAB …]`; of a word that comes twice, the last line counts.

    Raises: DataError with file and line where a line has no TAB or its weight is not a finite number.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(
            f"cannot read the lexicon {path} ({error.strerror}); set reward.path to a file of lines `word TAB weight`"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"the lexicon {path} is not UTF-8 (byte {error.start}); convert it to UTF-8") from error
    weights: dict[str, float] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        word, tab, rest = line.partition("\t")
        try:
            weight = float(rest.split("\t")[0])
        except ValueError:
            weight = math.nan
        if not tab or not word.strip() or not math.isfinite(weight):
            raise DataError(f"{path}:{number}: {line[:80]!r} is not `word TAB weight` with a finite weight; fix it")
        weights[word.strip() if case_sensitive else word.strip().lower()] = weight
    if not weights:
        raise DataError(f"the lexicon {path} has no entry; expected lines `word TAB weight`")
    return weights
