"""A response in parts that people read: tokens as text, runs of words, sentences."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from rlhfkit.models.encoder import Encoder

__all__ = ["Part", "names_of", "pieces_of", "sentences_of", "spans_of", "token_name"]

LONGEST_SPAN = 6
"""Words; a longer run without punctuation is cut."""
SENTENCE = re.compile(r".*?(?:[.!?…。！？]+[\"'”’)\]]*(?=\s|$)|\n+|$)", re.DOTALL)
CLAUSE = re.compile(r".*?(?:[.,;:!?…。，；：！？\n]+|$)", re.DOTALL)
WORD = re.compile(r"\s*\S+\s*$|\s*\S+")


@dataclass(frozen=True, slots=True)
class Part:
    """A run of characters of a response."""

    start: int
    end: int
    text: str


def pieces_of(encoder: Encoder, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text of a response; joined they are that text.

    A special token adds nothing, and so does one that holds a part of a letter, up to the token that completes it.
    """
    text = encoder.decode(ids)
    ends = [0]
    for number in range(1, len(ids)):
        so_far = encoder.decode(ids[:number])
        shared = next((at for at, (a, b) in enumerate(zip(so_far, text, strict=False)) if a != b), len(so_far))
        ends.append(max(ends[-1], min(shared, len(text))))
    ends.append(len(text))
    return [text[start:end] for start, end in pairwise(ends)][: len(ids)]


def names_of(encoder: Encoder, ids: Sequence[int]) -> tuple[str, ...]:
    """The same, with the name of the token where it adds nothing."""
    return tuple(piece or token_name(encoder, token) for piece, token in zip(pieces_of(encoder, ids), ids, strict=True))


def token_name(encoder: Encoder, token: int) -> str:
    """A token of the vocabulary as text; by the tokenizer's name for it where it is none by itself."""
    text = "" if token in encoder.tokenizer.all_special_ids else str(encoder.tokenizer.decode([token]))
    return str(encoder.tokenizer.convert_ids_to_tokens(token)) if not text or "\ufffd" in text else text


def sentences_of(text: str) -> list[Part]:
    """The sentences, each with the blanks after it; none where there is only one."""
    return _several(_parts(SENTENCE, text))


def spans_of(text: str) -> list[Part]:
    """Runs of words between punctuation marks, of at most six words; none where there is only one."""
    return _several(
        [
            Part(part.start + piece.start, part.start + piece.end, piece.text)
            for part in _parts(CLAUSE, text)
            for piece in _of_words(part.text)
        ]
    )


def _of_words(text: str) -> list[Part]:
    words = list(WORD.finditer(text))
    groups = [words[at : at + LONGEST_SPAN] for at in range(0, len(words), LONGEST_SPAN)]
    edges = [(group[0].start(), group[-1].end()) for group in groups]
    return [Part(start, end, text[start:end]) for start, end in edges]


def _parts(pattern: re.Pattern[str], text: str) -> list[Part]:
    """Matches that follow each other and hold all of the text; what is blank goes with the one before."""
    found: list[Part] = []
    for match in pattern.finditer(text):
        if not match[0]:
            continue
        if not match[0].strip() and found:
            found[-1] = Part(found[-1].start, match.end(), text[found[-1].start : match.end()])
        else:
            found.append(Part(match.start(), match.end(), match[0]))
    return found


def _several(parts: list[Part]) -> list[Part]:
    return parts if len(parts) > 1 else []
