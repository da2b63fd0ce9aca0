r"""Anthropic HH: {"chosen", "rejected"}, two transcripts "\n\nHuman: …\n\nAssistant: …"; JSON lines."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from rlhfkit.data.conversations import read_text
from rlhfkit.errors import DataError
from rlhfkit.feedback.exchange.files import read_records
from rlhfkit.feedback.exchange.labels import Content, Labels, Split, Written, turns_of
from rlhfkit.feedback.exchange.majority import Ties, preferences_of
from rlhfkit.feedback.exchange.names import PreferenceNames
from rlhfkit.feedback.exchange.preferences import (
    expect_columns,
    joined,
    labels_of_rows,
    renamed_records,
    write_aggregated,
)
from rlhfkit.feedback.votes import Pair, Part, Vote
from rlhfkit.records import Conversation, Message, Preference

__all__ = ["read_hh", "split_transcripts", "transcript", "turns_of_transcript", "write_hh"]

ChosenIs = Literal["better", "worse"]

SPEAKERS = {"user": "Human", "assistant": "Assistant"}
ROLES = {speaker: role for role, speaker in SPEAKERS.items()}
TURN = re.compile(r"\n\n(Human|Assistant):")


def read_hh(
    path: str | Path,
    *,
    chosen_is: ChosenIs = "better",
    annotator: str = "imported",
    split: Split | None = None,
    names: PreferenceNames | None = None,
) -> Labels:
    """Pairs and votes of transcripts; what the two share is the prompt if they share all but the last turn.

    `chosen_is` says which way the file points: with "worse" people chose what is worse, as where they were asked for
    the more harmful answer. For the rest as `read_preferences`. Raises: DataError.
    """

    def parse(row: dict[str, Any]) -> tuple[Content, Content, Content]:
        expect_columns(row, "chosen", "rejected")
        prompt, chosen, rejected = split_transcripts(row.get("chosen"), row.get("rejected"))
        if chosen_is == "worse":
            chosen, rejected = rejected, chosen
        return prompt, chosen, rejected

    records = renamed_records(read_records(path), names)
    return labels_of_rows(records, parse, annotator=annotator, split=split or Split(), setting="hh")


def write_hh(
    path: str | Path,
    pairs: Sequence[Pair],
    votes: Sequence[Vote],
    *,
    part: Part | None = None,
    rounds: Collection[int] | None = None,
    min_votes: int = 1,
    ties: Ties = "drop",
    details: bool = False,
) -> Written:
    """Write the preferences of the majority as transcripts, of which "chosen" is the better.

    A prompt that is text becomes the human's turn. Left out are pairs with a turn of the system, and those whose text
    holds what would be read as a new turn. `details` as in `write_preference_rows`. Raises: DataError.
    """
    aggregated = preferences_of(pairs, votes, part=part, rounds=rounds, min_votes=min_votes, ties=ties)

    def as_row(pair: Pair, preference: Preference) -> dict[str, Any] | str:
        turns = turns_of(preference.prompt.content)
        texts = []
        for response in (preference.chosen, preference.rejected):
            dialogue = (*turns, Message("assistant", response))
            if any(turn.role not in SPEAKERS for turn in dialogue):
                return "pairs with a turn of the system"
            texts.append(transcript(dialogue))
            if turns_of_transcript(texts[-1], "chosen") != dialogue:
                return "pairs whose text looks like a turn"
        row = dict(pair.settings.get("hh", {}).get("columns", {}))
        return row | {"chosen": texts[0], "rejected": texts[1]}

    return write_aggregated(path, pairs, votes, aggregated, as_row, details=details, carries_margin=False, setting="hh")


def split_transcripts(chosen: Any, rejected: Any) -> tuple[Content, Content, Content]:
    """Prompt and responses of two transcripts. Raises: DataError."""
    one, other = (
        turns_of_transcript(read_text(text, column), column)
        for column, text in (("chosen", chosen), ("rejected", rejected))
    )
    return joined((), one, other)


def transcript(turns: Conversation) -> str:
    """The turns as one text."""
    return "".join(f"\n\n{SPEAKERS[turn.role]}: {turn.content}" for turn in turns)


def turns_of_transcript(text: str, column: str) -> Conversation:
    """Turns of a transcript, every blank of theirs kept but the one after the colon.

    Raises: DataError where it does not begin with a speaker.
    """
    start, *turns = TURN.split(text if text.startswith("\n\n") else f"\n\n{text.lstrip()}")
    if start or not turns:
        raise DataError(
            f'"{column}" is no transcript: it begins with {text.strip()[:40]!r}; expected "Human: …" and '
            '"Assistant: …", each after an empty line; add it, or, where the prompt has a column of its own, read the '
            "file with --format preferences"
        )
    return tuple(
        Message(ROLES[speaker], words.removeprefix(" ")) for speaker, words in zip(turns[::2], turns[1::2], strict=True)
    )
