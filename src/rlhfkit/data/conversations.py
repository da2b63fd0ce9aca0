"""Conversations in a column of a row: lists of messages, and Human/Assistant transcripts."""

import ast
import json
import math
import re
from decimal import Decimal
from typing import Any

from rlhfkit.data.rows import MissingColumnError, described
from rlhfkit.errors import DataError
from rlhfkit.records import Conversation, Message

__all__ = ["as_messages", "part_dialogues", "read_messages", "read_text", "read_transcript"]

ROLES = {
    "system": "system",
    "developer": "system",  # OpenAI
    "user": "user",
    "human": "user",  # ShareGPT; Anthropic HH
    "prompter": "user",  # OpenAssistant
    "assistant": "assistant",
    "gpt": "assistant",  # ShareGPT
    "chatgpt": "assistant",
    "model": "assistant",  # Gemini
    "bot": "assistant",
    "chatbot": "assistant",
    "ai": "assistant",
}
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value", "text", "parts")
TOOL_KEYS = ("tool_calls", "function_call")
TOOL_ROLES = frozenset({"tool", "ipython", "function", "function_call", "observation", "tool_call", "tool_response"})
LONGEST_TEXT = 10_000_000
"""Characters: no prompt and no book has more, and a tokenizer would take minutes over it."""
TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
WITHOUT_TOOLS = "tool calls are not read; leave such rows out, or write what was called and said as text"


def read_text(value: Any, column: str, *, expected: str = "text", nan_is_missing: bool = True) -> str:
    """`value`, which is text that can be written as UTF-8; a number is its text.

    A whole cell "nan" is what pandas writes for a missing value; what somebody said in a message is not.

    Raises: DataError.
    """
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    if not isinstance(value, str):
        raise DataError(f'column "{column}" is {described(value)}; expected {expected}')
    if nan_is_missing and value.strip().casefold() == "nan":
        raise DataError(f'column "{column}" is {value!r}, which stands for a missing value; expected {expected}')
    if len(value) > LONGEST_TEXT:
        raise DataError(
            f'column "{column}" has {len(value):,} characters; expected at most {LONGEST_TEXT:,}; cut it into several'
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        raise DataError(f'column "{column}" holds half a character, {half}, at {error.start}; correct it') from None
    return value


def as_messages(value: Any, column: str) -> list[Any] | None:
    """The list of messages that a value is, as itself or written as text (JSON, or as Python prints it); else None.

    Raises: DataError for text that begins like messages and cannot be read.
    """
    if isinstance(value, str):
        value = _parsed(value, column)
    if isinstance(value, dict):
        columns = {key: list(inner) for key, inner in value.items() if isinstance(inner, list | tuple)}
        if _is_message(value) and len(columns) < 2:
            return [value]
        if not _is_message(value) or len({len(inner) for inner in columns.values()}) != 1:
            return None
        # A list of messages as a dict of columns, as `datasets` stores it.
        return [dict(zip(columns, turn, strict=True)) for turn in zip(*columns.values(), strict=True)]
    return value if isinstance(value, list) and any(_is_message(message) for message in value) else None


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and any(key in value for key in ROLE_KEYS) and any(k in value for k in CONTENT_KEYS)


def _parsed(text: str, column: str) -> Any:
    """What a text that begins like a list of messages holds; None for any other text."""
    stripped = text.strip().lstrip("\ufeff")
    if stripped[:1] == '"':  # JSON inside JSON
        try:
            inner = json.loads(stripped)
        except (ValueError, RecursionError):
            return None
        return _parsed(inner, column) if isinstance(inner, str) else None
    if not BEGINS_LIKE_MESSAGES.match(stripped):
        return None
    try:
        return json.loads(stripped)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(stripped)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise DataError(
            f'column "{column}" is the text {stripped[:60]!r}, which looks like messages and cannot be read as JSON; '
            "write the rows as JSONL, whose lists stay lists (of a table in pandas: "
            'df.to_json("rows.jsonl", orient="records", lines=True))'
        ) from None


BEGINS_LIKE_MESSAGES = re.compile(r"""[\[\s(]*\{\s*["'](role|from|content|value|parts)["']\s*:""")


def read_messages(value: Any, column: str) -> Conversation:
    """Turns of a list of messages: {"role", "content"}, ShareGPT's {"from", "value"}, OpenAssistant's {"role", "text"}.

    The list may be written as text, as in a CSV file. The content may be text, or a list of parts that are text.
    Raises: DataError.
    """
    messages = as_messages(value, column)
    if messages is None:
        messages = value
    if not isinstance(messages, list) or not messages:
        raise DataError(f'column "{column}" is {described(value)}; expected a list of messages {{"role", "content"}}')
    return tuple(_message(message, f"{column}[{number}]") for number, message in enumerate(messages, start=1))


def _message(message: object, turn: str) -> Message:
    if not isinstance(message, dict):
        raise DataError(f'{turn} is {described(message)}; expected a message {{"role", "content"}}')
    named = next((message[key] for key in ROLE_KEYS if message.get(key) is not None), None)
    role = ROLES.get(named.strip().casefold()) if isinstance(named, str) else None
    has_calls = any(message.get(key) for key in TOOL_KEYS)
    if role is None:
        if isinstance(named, str) and named.casefold() in TOOL_ROLES:
            raise DataError(f"{turn} has the role {named!r}; expected system, user or assistant: {WITHOUT_TOOLS}")
        raise DataError(f"{turn} has the role {named!r}; expected system, user or assistant; rename it")
    content = next((message[key] for key in CONTENT_KEYS if message.get(key) is not None), None)
    if has_calls:
        raise DataError(f"{turn} calls a tool: {WITHOUT_TOOLS}")
    if content is None and "content" in message:
        raise DataError(f"{turn}.content is empty; expected text")
    return Message(role, _content(content, f"{turn}.content"))


def _content(content: object, place: str) -> str:
    """The text of a message, whose parts, where it has several, are joined as they stand."""
    if not isinstance(content, list):
        return read_text(content, place, nan_is_missing=False)
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if isinstance(kind, str) and "tool" in kind:
            raise DataError(f"{place} holds a part of type {kind!r}: {WITHOUT_TOOLS}")
        if kind not in ("text", "input_text", "output_text"):
            raise DataError(
                f"{place} holds a part of type {kind!r}, and only text can be read; leave such rows out, or describe "
                "in words what it shows"
            )
        texts.append(read_text(part.get("text") if isinstance(part, dict) else part, place, nan_is_missing=False))
    return "".join(texts)


def read_transcript(text: str, column: str) -> Conversation:
    r"""Turns of a transcript "\n\nHuman: …\n\nAssistant: …", without the blanks around them.

    Where a speaker has two turns in a row they become one, because chat templates want speakers to alternate; only the
    last turn, the response, stays as it is.
    Raises: MissingColumnError where it does not begin with a speaker.
    """
    start, *turns = TURN.split(text)
    if start or not turns:
        raise MissingColumnError(
            "prompt",
            f'there is no column "prompt", and "{column}" is no dialogue that holds it; expected messages, or a '
            'transcript that begins with "Human:"',
        )
    messages = [
        Message(ROLES[role.lower()], words.strip()) for role, words in zip(turns[::2], turns[1::2], strict=True)
    ]
    merged: list[Message] = []
    for message in messages[:-1]:
        if merged and merged[-1].role == message.role:
            message = Message(message.role, f"{merged.pop().content}\n\n{message.content}")
        merged.append(message)
    return (*merged, messages[-1])


def part_dialogues(chosen: Conversation, rejected: Conversation) -> tuple[Conversation, str, str]:
    """Shared turns, and the two last turns, of dialogues that differ in their last turn only, an assistant's.

    Two dialogues that part earlier are answers to different prompts, and so no preference.
    Raises: DataError where they part earlier or do not end with an assistant's turn.
    """
    for column, dialogue in (("chosen", chosen), ("rejected", rejected)):
        if dialogue[-1].role != "assistant":
            raise DataError(f'column "{column}" ends with a turn of the {dialogue[-1].role}; expected the assistant')
    if chosen[:-1] != rejected[:-1]:
        shared = 0
        while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
            shared += 1
        raise DataError(
            f"chosen and rejected part at turn {shared + 1} of {len(chosen)} and {len(rejected)}; "
            "expected two dialogues that differ in their last turn only"
        )
    return chosen[:-1], chosen[-1].content, rejected[-1].content
