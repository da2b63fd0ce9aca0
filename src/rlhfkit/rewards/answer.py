"""Whether the answer that a response comes to is the right one: a number, a choice, a text."""

import re
import string
import unicodedata
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch

from rlhfkit.config.rewards import AnswerRewardConfig
from rlhfkit.errors import RewardError
from rlhfkit.records import Prompt
from rlhfkit.rewards.source import Detailed, ScoredText, check_scores, references_of

__all__ = ["AnswerReward", "last_number", "normalized"]

DIGITS = r"(?:\d{1,3}(?:[,_'\u00a0\u202f]\d{3})+|\d+)"
NUMBER = re.compile(
    rf"(?P<sign>(?<![\w)])[-+\u2212])?\$?(?P<whole>{DIGITS})?(?P<part>\.\d+)?(?P<exponent>[eE][-+]?\d{{1,3}}\b)?"
    rf"(?:\s?/\s?(?P<below>{DIGITS})(?![\d.]))?"
)
LONGEST_NUMBER = 400
"""Characters; a longer run of digits is no number that anybody has asked for."""
ARTICLES = re.compile(r"\b(?:a|an|the)\b", re.IGNORECASE)


class AnswerReward:
    """score = 1 where the answer found in the response equals one of the row's right answers, 0 elsewhere.

    The same rule finds the answer in the response and, where the marker or the pattern is there, in the row: a row may
    hold a whole solution that ends in "#### 72".
    """

    type = "answer"

    def __init__(self, config: AnswerRewardConfig) -> None:
        """Compare as `config` says."""
        self._config = config
        self._extract = re.compile(config.extract) if config.extract else None

    def score(self, episodes: Sequence[ScoredText]) -> torch.Tensor:
        """Scores (B,), 0 or 1. Raises: as `check_rows`."""
        return self.score_in_detail(episodes)[0]

    def score_in_detail(self, episodes: Sequence[ScoredText]) -> Detailed:
        """Scores (B,), and `answered` (B,): 1 where an answer was found, right or wrong. Raises: as `check_rows`."""
        right = self.check_rows([episode.prompt for episode in episodes], setting="reward")
        found = [self._read(episode.response) for episode in episodes]
        scores = [
            float(answer is not None and any(self._same(answer, other) for other in accepted))
            for answer, accepted in zip(found, right, strict=True)
        ]
        answered = torch.tensor([float(answer is not None) for answer in found])
        return check_scores(scores, episodes, source="answer"), {"answered": answered}

    def check_rows(self, prompts: Sequence[Prompt], *, setting: str) -> list[list[Any]]:
        """The right answers of each prompt's row, as they are compared.

        Raises: RewardError, naming `setting` and the row, where a row lacks one or it cannot be read.
        """
        texts = texts_of_rows(prompts, self._config.column, wanted_by=f'{setting}.type = "answer"')
        return [
            [self._right(text, prompt, setting) for text in accepted]
            for prompt, accepted in zip(prompts, texts, strict=True)
        ]

    def _right(self, text: str, prompt: Prompt, setting: str) -> Any:
        kind = self._config.kind
        if kind == "pattern":
            try:
                return re.compile(text)
            except re.error as error:
                raise _unreadable(setting, prompt, text, f"it is no regular expression ({error})") from None
        marked = self._marked(text)
        answer = self._parse(text if marked is None else marked)
        if answer is None:
            expected = {
                "number": "expected a number",
                "choice": f"expected one of {', '.join(self._config.choices)}",
                "text": "expected some text",
            }
            raise _unreadable(setting, prompt, text, expected[kind])
        return answer

    def _read(self, response: str) -> Any:
        """The answer that a response comes to; None where it has none."""
        marked = self._marked(response)
        return None if marked is None else self._parse(marked)

    def _marked(self, text: str) -> str | None:
        """The part of a text that holds the answer; None where what announces it is missing."""
        if self._config.after is not None:
            _, marker, rest = text.rpartition(self._config.after)
            return rest if marker else None
        if self._extract is None:
            return text
        matches = self._extract.findall(text)
        return matches[-1] if matches else None

    def _parse(self, text: str) -> Any:
        config = self._config
        if config.kind == "number":
            return last_number(text, units=config.units)
        if config.kind == "choice":
            return _choice(text, config.choices)
        if config.kind == "pattern":
            return text.strip()
        return normalized(text, ignore=config.ignore) or None

    def _same(self, answer: Any, right: Any) -> bool:
        if isinstance(right, re.Pattern):
            return right.fullmatch(answer) is not None
        if isinstance(right, Fraction):
            return bool(abs(answer - right) <= Fraction(str(self._config.tolerance)))
        return bool(answer == right)


def last_number(text: str, *, units: dict[str, float] | None = None) -> Fraction | None:
    """The last number of a text, exactly; None where it has none.

    Digits may stand in groups of three ("1,200"), with a decimal point, an exponent or a bar ("3/4"). Where the word
    right after it is one of `units`, the number is multiplied by what that stands for.

    Example:
        >>> last_number("from 3 to $1,234.50 in all.")
        Fraction(2469, 2)
        >>> last_number("it is 1.5 km away", units={"m": 1, "km": 1000})
        Fraction(1500, 1)
    """
    numbers = [match for match in NUMBER.finditer(text) if match["whole"] or match["part"]]
    if not numbers or (value := _value(numbers[-1])) is None:
        return None
    return value * _factor(text[numbers[-1].end() :], units or {})


def _value(match: re.Match[str]) -> Fraction | None:
    """What a match of NUMBER stands for; None where it is too long, or divides by zero."""
    if len(match[0]) > LONGEST_NUMBER:
        return None
    whole = re.sub(r"\D", "", match["whole"] or "0")
    value = Fraction(f"{whole}{match['part'] or ''}{match['exponent'] or ''}")
    if match["below"] is not None:
        below = int(re.sub(r"\D", "", match["below"]))
        if below == 0:
            return None
        value /= below
    return value if match["sign"] in (None, "+") else -value


def _factor(rest: str, units: dict[str, float]) -> Fraction:
    """What the unit at the beginning of `rest` multiplies by; 1 where none of `units` stands there."""
    text = rest.lstrip(" \u00a0\u202f*$\\")
    for unit in sorted(units, key=len, reverse=True):
        ends = not text[len(unit) : len(unit) + 1].isalnum() or not unit[-1].isalnum()
        if text.startswith(unit) and ends:
            return Fraction(str(units[unit]))
    return Fraction(1)


def _choice(text: str, choices: Sequence[str]) -> str | None:
    """The choice that a text begins with, alone or before a bracket, a full stop, a colon or a new line."""
    start = text.lstrip(" \t\r\n([{*\"'`")
    for choice in sorted(choices, key=len, reverse=True):
        rest = start[len(choice) :]
        if start.startswith(choice) and (not rest.strip() or rest[0] in ".):]}*,\"'`;\n\r"):
            return choice
    return None


def normalized(text: str, *, ignore: Sequence[str] = ("case",)) -> str:
    """A text without what makes no difference: forms of Unicode, blanks, and what `ignore` names.

    Source: the evaluation script of SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250) leaves out the same three.

    Example:
        >>> normalized(" The  Cat. ", ignore=("case", "punctuation", "articles"))
        'cat'
    """
    text = unicodedata.normalize("NFKC", text)
    if "case" in ignore:
        text = text.casefold()
    if "punctuation" in ignore:
        text = "".join(letter for letter in text if letter not in string.punctuation and not _is_mark(letter))
    if "articles" in ignore:
        text = ARTICLES.sub(" ", text)
    return " ".join(text.split())


def _is_mark(letter: str) -> bool:
    return unicodedata.category(letter).startswith("P")


def texts_of_rows(prompts: Sequence[Prompt], column: str | None, *, wanted_by: str) -> list[tuple[str, ...]]:
    """What each prompt's row gives in `column`, one text or several; without a column, the responses of the row.

    Raises: RewardError, naming `wanted_by` and the row, where a row gives none.
    """
    if column is None:
        return references_of(prompts, wanted_by=wanted_by)
    return [_texts_of(prompt, column, wanted_by) for prompt in prompts]


def _texts_of(prompt: Prompt, column: str, wanted_by: str) -> tuple[str, ...]:
    given = prompt.columns.get(column)
    values = given if isinstance(given, list | tuple) else [given]
    if not values or not all(isinstance(value, str | int | float) for value in values):
        there = ", ".join(map(repr, sorted(prompt.columns))) or "none"
        raise RewardError(
            f"{wanted_by} reads the column {column!r}, which in the row {prompt.origin or 'of a prompt'} is {given!r}; "
            f"expected a text, a number or a list of them; its columns: {there}. Name the column that has it, or add it"
        )
    return tuple(str(value) for value in values)


def _unreadable(setting: str, prompt: Prompt, text: str, what: str) -> RewardError:
    return RewardError(
        f'{setting}.type = "answer": the right answer of the row {prompt.origin or "of a prompt"} is {text[:60]!r}; '
        f"{what}: correct the row, or set {setting}.kind, {setting}.after or {setting}.extract to fit"
    )
