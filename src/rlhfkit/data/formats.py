"""The shapes that a row may have, and what prompt and responses are in each.

{"prompt"}                              text or messages           a prompt
{"prompt", "completion"}                "response" will do too     a demonstration
{"messages"}                            the last turn answers      a demonstration, or a prompt if the user comes last
{"prompt", "chosen", "rejected"}        text or messages           a preference; as a demonstration, the chosen one
{"chosen", "rejected"}                  whole dialogues            the same; the prompt is what they share
{"text"}                                with `beginning_words`     a demonstration: the first words, and the rest

Rows of well-known data sets are brought into these shapes first, by `known_forms.py`.
"""

import random
import re
from typing import Any

from rlhfkit.config.data import LabelledConfig, RowsConfig, has_formats
from rlhfkit.data.conversations import as_messages, part_dialogues, read_messages, read_text, read_transcript
from rlhfkit.data.rows import MissingColumnError, Row
from rlhfkit.errors import DataError
from rlhfkit.records import Conversation, Message, Prompt
from rlhfkit.wording import listed

__all__ = ["make_prompt", "make_response", "need", "read_answered_prompt", "read_pair", "read_prompt"]

OWN_COLUMNS = frozenset({"prompt", "completion", "response", "messages", "chosen", "rejected", "margin", "text"})

Content = str | Conversation
Formats = RowsConfig | LabelledConfig


def make_prompt(content: Content, row: Row, *, formats: Formats, response: str | None = None) -> Prompt:
    """The prompt in its format, or as a chat, with the other columns of its row, and `response` as its reference.

    Raises: DataError where there is nothing in it, nothing for the assistant to answer, or no text to format.
    """
    if not content or not (content if isinstance(content, str) else content[-1].content).strip():
        raise DataError("the prompt is empty; expected text")
    if not isinstance(content, str) and content[-1].role != "user":
        raise DataError(f"the prompt ends with a turn of the {content[-1].role}; expected the user")
    if isinstance(content, str):
        content = formats.prompt_format.replace("{prompt}", content)
        if formats.as_chat or formats.system is not None:
            content = (Message("user", content),)
    elif has_formats(formats):
        raise DataError(
            "prompt_format and response_format are for text, and this prompt is a conversation; leave them out, the "
            "chat template does their work"
        )
    if formats.system is not None and not isinstance(content, str) and content[0].role != "system":
        content = (Message("system", formats.system), *content)
    columns = {name: value for name, value in row.columns.items() if name not in OWN_COLUMNS}
    reference = make_response(response, formats=formats) if response and response.strip() else None
    return Prompt(content, columns, row.origin, reference)


def make_response(response: str, *, formats: Formats) -> str:
    """The response in its format."""
    return formats.response_format.replace("{response}", response)


def read_prompt(row: Row, *, beginning_words: tuple[int, int] | None, seed: int) -> tuple[Content, str | None]:
    """The prompt in a row of any shape, and the (chosen) response of a row that has one. Raises: DataError."""
    return _read(row, beginning_words, seed, is_prompt=True)


def read_answered_prompt(row: Row, *, beginning_words: tuple[int, int] | None, seed: int) -> tuple[Content, str]:
    """The prompt and the (chosen) response in a row of any shape.

    Raises: DataError where the row has no response, or an empty one.
    """
    content, response = _read(row, beginning_words, seed, is_prompt=False)
    if response is None and ("completion" in row.columns or "response" in row.columns):
        raise DataError("the response is empty; expected text")
    if response is None:
        raise MissingColumnError(
            "completion",
            f'no response; the row has {listed(row.columns)}; expected "completion", or "messages" that end with a '
            "turn of the assistant",
        )
    return content, _not_blank(response, "response")


def read_pair(row: Row) -> tuple[Content, str, str]:
    """Prompt, chosen and rejected response of a row with a preference.

    Raises: DataError where a response is empty, both are equal, or they answer different prompts.
    """
    content, chosen, rejected = _split_pair(row)
    if _not_blank(chosen, "chosen response") == _not_blank(rejected, "rejected response"):
        raise DataError("chosen and rejected are equal; expected two responses of which one is better")
    return content, chosen, rejected


def need(row: Row, column: str) -> Any:
    """The value of a column. Raises: DataError where there is none."""
    if column not in row.columns:
        raise MissingColumnError(column, f'no column "{column}"; the row has {listed(row.columns)}')
    if row.columns[column] is None:
        raise DataError(f'column "{column}" is empty; expected a value')
    return row.columns[column]


def _read(
    row: Row, beginning_words: tuple[int, int] | None, seed: int, *, is_prompt: bool
) -> tuple[Content, str | None]:
    columns = {name: value for name, value in row.columns.items() if value is not None}
    if "chosen" in columns and "rejected" in columns:
        content, chosen, _ = _split_pair(row)
        return content, chosen
    if "prompt" in columns:
        answer = columns.get("response", columns.get("completion"))
        content = _text_or_messages(columns["prompt"], "prompt")
        return (content, None) if answer is None else _join(content, answer, "completion")
    if "messages" in columns:
        turns = read_messages(columns["messages"], "messages")
        return (turns[:-1], turns[-1].content) if turns[-1].role == "assistant" else (turns, None)
    if "text" in columns and beginning_words is None and isinstance(columns.get("label"), str):
        raise DataError(
            "a text with a label, and no prompt; if the label is the response to the text, say so as in "
            'columns = {prompt = "text", completion = "label"}'
        )
    if "text" in columns and not beginning_words:
        whole = 'if a text is a whole prompt, set columns = {prompt = "text"}; ' if is_prompt else ""
        raise DataError(
            f"a whole text, of which nothing says where the prompt ends; {whole}to make its first 4 to 8 words the "
            "prompt, set beginning_words = [4, 8]"
        )
    if "text" in columns and beginning_words:
        return _split_text(read_text(columns["text"], "text"), beginning_words, f"{seed} {row.origin}")
    return need(row, "prompt"), None


def _split_pair(row: Row) -> tuple[Content, str, str]:
    chosen, rejected = need(row, "chosen"), need(row, "rejected")
    if row.columns.get("prompt") is None:
        return part_dialogues(_dialogue(chosen, "chosen"), _dialogue(rejected, "rejected"))
    content = _text_or_messages(row.columns["prompt"], "prompt")
    answered, chosen = _join(content, chosen, "chosen")
    if (other := _join(content, rejected, "rejected"))[0] != answered:
        raise DataError("chosen and rejected answer different prompts; expected the same turns before both")
    return answered, chosen, other[1]


def _dialogue(value: Any, column: str) -> Conversation:
    if isinstance(value, str) and as_messages(value, column) is None:
        return read_transcript(read_text(value, column), column)
    return read_messages(value, column)


def _text_or_messages(value: Any, column: str) -> Content:
    if isinstance(value, list) or as_messages(value, column) is not None:
        return read_messages(value, column)
    return read_text(value, column, expected="text or a list of messages")


def _join(content: Content, answer: Any, column: str) -> tuple[Content, str]:
    """Prompt and response, where the response may be text, the assistant's message, or the whole dialogue."""
    if not isinstance(answer, list) and as_messages(answer, column) is None:
        return content, read_text(answer, column, expected="text or messages")
    *before, last = read_messages(answer, column)
    if last.role != "assistant":
        raise DataError(f'column "{column}" ends with a turn of the {last.role}; expected the assistant')
    turns = (Message("user", content),) if isinstance(content, str) else content
    if not before:
        return turns, last.content
    if tuple(before[-len(turns) :]) != turns:
        raise DataError(f'the turns in "{column}" before the response are not the prompt; expected the same turns')
    return tuple(before), last.content


def _split_text(text: str, beginning_words: tuple[int, int], seed: str) -> tuple[str, str]:
    """The first words of a text, and the rest with the blank before it; drawn by the row alone, whatever the others."""
    ends = [word.end() for word in re.finditer(r"\S+", text)]
    low, high = beginning_words
    if len(ends) <= low:
        raise DataError(f"{len(ends)} words; beginning_words = [{low}, {high}] needs at least {low + 1}")
    end = ends[random.Random(seed).randint(low, min(high, len(ends) - 1)) - 1]
    return text[:end], text[end:]


def _not_blank(response: str, what: str) -> str:
    if not response.strip():
        raise DataError(f"the {what} is empty; expected text")
    return response
