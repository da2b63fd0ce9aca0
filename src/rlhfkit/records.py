"""Typed records that rows become: Prompt, Demonstration, Preference."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["Conversation", "Demonstration", "Message", "Preference", "Prompt", "folded", "place_of_prompt"]


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    """"system", "user" or "assistant"."""
    content: str


Conversation = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the policy answers: text to continue, or a conversation whose next turn is the assistant's."""

    content: str | Conversation
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Further columns of the row, such as a label or a reference; reward functions may ask for them by name."""
    origin: str = ""
    """Where it comes from, as "reviews.jsonl:17"."""
    reference: str | None = None
    """The response that its row gives, where it gives one: the true label, a translation by a person."""
    further_references: tuple[str, ...] = ()
    """Other right responses, of the other rows with the same prompt, where they were made one."""

    @property
    def references(self) -> tuple[str, ...]:
        """All right responses that are known, without the blanks around them; none where there is no reference."""
        if self.reference is None:
            return ()
        return tuple(dict.fromkeys(text.strip() for text in (self.reference, *self.further_references)))


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt with a good response."""

    prompt: Prompt
    response: str


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt with two responses, of which people prefer the first."""

    prompt: Prompt
    chosen: str
    rejected: str
    margin: float | None = None
    """How much better, in the reward's unit, where the data say so."""


def place_of_prompt(content: str | Conversation, *, seed: int = 0) -> float:
    """A number in [0, 1) out of the hash of a prompt: uniform over prompts, the same for ever for each of them.

    Of a conversation its beginning counts, up to the first turn of the user, so that a later turn of it is where the
    earlier one is. Blanks and capitals make no difference. Parts that are cut by it hold all rows of a prompt or none,
    whatever file it comes again in.
    """
    text = content if isinstance(content, str) else _beginning(content)
    text = _folded(text)
    digest = hashlib.sha256(f"{seed}\x1d{text}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48  # 6 bytes: exact as a float, and so never rounded up to 1


def folded(content: str | Conversation) -> str | Conversation:
    """A prompt without the differences that blanks and capitals make, to find it again."""
    if isinstance(content, str):
        return _folded(content)
    return tuple(Message(turn.role, _folded(turn.content)) for turn in content)


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def _beginning(conversation: Conversation) -> str:
    first = next((index for index, turn in enumerate(conversation) if turn.role == "user"), len(conversation) - 1)
    return "\x1e".join(f"{turn.role}\x1f{turn.content}" for turn in conversation[: first + 1])
