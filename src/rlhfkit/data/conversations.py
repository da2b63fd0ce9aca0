"""Conversations in a column of a row: lists of messages, and Human/Assistant transcripts."""

import re
from typing import Any

from rlhfkit.data.rows import described
from rlhfkit.errors import DataError
from rlhfkit.records import Conversation, Message

__all__ = ["part_dialogues", "read_messages", "read_text", "read_transcript"]

ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "prompter": "user",  # OpenAssistant
    "human": "user",
    "Human": "user",  # Anthropic HH
    "Assistant": "assistant",
}
TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def read_text(value: Any, column: str, *, expected: str = "text") -> str:
    """`value`, which is text that can be written as UTF-8.

    Raises: DataError.
    """
    if not isinstance(value, str):
        raise DataError(f'column "{column}" is {described(value)}; expected {expected}')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        raise DataError(f'column "{column}" holds half a character, {half}, at {error.start}; mend it') from None
    return value


def read_messages(value: Any, column: str) -> Conversation:
    """Turns of a list of messages, {"role", "content"} or OpenAssistant's {"role", "text"}.

    Raises: DataError.
    """
    if not isinstance(value, list) or not value:
        raise DataError(f'column "{column}" is {described(value)}; expected a list of messages {{"role", "content"}}')
    turns = []
    for number, message in enumerate(value, start=1):
        turn = f"{column}[{number}]"
        if not isinstance(message, dict):
            raise DataError(f'{turn} is {described(message)}; expected a message {{"role", "content"}}')
        role = message.get("role")
        if role not in ROLES:
            raise DataError(f"{turn} has the role {role!r}; expected system, user or assistant; rename it")
        content = message.get("content", message.get("text"))
        turns.append(Message(ROLES[role], read_text(content, f"{turn}.content")))
    return tuple(turns)


def read_transcript(text: str, column: str) -> Conversation:
    r"""Turns of a transcript "\n\nHuman: …\n\nAssistant: …", without the blanks around them.

    Where a speaker has two turns in a row they become one, because chat templates want speakers to alternate; only the
    last turn, the response, stays as it is.
    Raises: DataError where it does not begin with a speaker.
    """
    start, *turns = TURN.split(text)
    if start or not turns:
        raise DataError(
            f'there is no column "prompt", and "{column}" is no dialogue that holds it; expected messages, or a '
            'transcript that begins with "Human:"; add the prompt, or name it as in columns = {prompt = "question"}'
        )
    messages = [Message(ROLES[role], words.strip()) for role, words in zip(turns[::2], turns[1::2], strict=True)]
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
