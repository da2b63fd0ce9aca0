"""How a prompt that is too long is cut: what was said last, and what was asked last, always stays."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from rlhfkit.records import Message, Prompt

__all__ = ["cut", "words_on_cut"]

LEFT_OUT = " ... "
"""Stands where the middle of a turn was."""
LAST_CHARACTERS = 100
"""Of what the user says last, what stays before the system's turn is cut."""
HEAD_SHARE = 1 / 3
"""Of a turn that is cut, the share of what is kept that stands before the gap: the end is usually the question."""


def cut(prompt: Prompt, fits: Callable[[Prompt], bool]) -> Prompt:
    """The most of `prompt` that fits; where nothing does, the least that there can be.

    Text loses its beginning. A conversation loses its oldest turns, then the middle of the last one, then the middle of
    the system's.
    """
    if isinstance(prompt.content, str):
        return _cut_text(prompt, prompt.content, fits)
    system = tuple(message for message in prompt.content[:1] if message.role == "system")
    turns = prompt.content[len(system) :]

    def said(*messages: Message) -> Prompt:
        return replace(prompt, content=messages)

    while len(turns) > 1 and not fits(said(*system, *turns)):
        turns = turns[2:] if len(turns) > 2 else turns[1:]
    if fits(said(*system, *turns)) or not turns:
        return said(*system, *turns)
    last = turns[0]
    shortened = _shortened(last, lambda message: fits(said(*system, message)))
    keeps_words = len(shortened.content) >= min(len(last.content), LAST_CHARACTERS) and fits(said(*system, shortened))
    if keeps_words or not system:
        return said(*system, shortened)
    words = Message(last.role, _at_boundary_from_left(last.content, LAST_CHARACTERS))
    of_system = _shortened(system[0], lambda message: fits(said(message, words)))
    if fits(said(of_system, words)):
        return said(of_system, words)
    return said(of_system, _shortened(last, lambda message: fits(said(of_system, message))))


def words_on_cut(shares_lost: Sequence[float], *, of: int, max_tokens: int) -> str:
    """What to say of prompts, so many of which were cut, each by a share of its tokens; empty where none was."""
    num = len(shares_lost)
    if not num:
        return ""
    return (
        f"{num} of {of} prompts were cut to {max_tokens} tokens, a cut one by {sum(shares_lost) / num:.0%} of its "
        f"tokens on average, {max(shares_lost):.0%} at most"
    )


def _cut_text(prompt: Prompt, text: str, fits: Callable[[Prompt], bool]) -> Prompt:
    def last(n: int) -> Prompt:
        return replace(prompt, content=text[-n:])

    keep = _most(len(text), lambda n: fits(last(n)))
    whole_words = last(len(_at_boundary_from_left(text, keep)))
    # Without the space before it, the first word may take more tokens.
    return whole_words if fits(whole_words) else last(keep)


def _shortened(message: Message, fits: Callable[[Message], bool]) -> Message:
    """The turn without its middle: as many characters as fit, at words where that is possible."""
    role, text = message

    def raw(n: int) -> Message:
        head = int(n * HEAD_SHARE) if n > 3 * len(LEFT_OUT) else 0
        return Message(role, text[:head] + (LEFT_OUT if head else "") + text[head - n :])

    keep = _most(len(text) - 1, lambda n: fits(raw(n)))
    head = int(keep * HEAD_SHARE) if keep > 3 * len(LEFT_OUT) else 0
    tail = _at_boundary_from_left(text, keep - head)
    beginning = _at_boundary_from_right(text, head).rstrip() if head else ""
    whole_words = Message(role, f"{beginning}{LEFT_OUT}{tail.lstrip()}" if beginning else tail)
    return whole_words if fits(whole_words) else raw(keep)


def _most(upper: int, fits: Callable[[int], bool]) -> int:
    """The largest n in 1..upper for which `fits(n)`, by bisection; 1 if none."""
    low, high = 1, max(1, upper)
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _at_boundary_from_left(text: str, keep: int) -> str:
    """The last `keep` characters, less up to a quarter of them, so that they begin a line or else a word."""
    tail = text[-keep:]
    if keep >= len(text):
        return text
    for mark in ("\n", " "):
        place = tail.find(mark)
        if 0 <= place < max(1, keep // 4):
            return tail[place + 1 :] or tail
    return tail


def _at_boundary_from_right(text: str, keep: int) -> str:
    """The first `keep` characters, less up to half of them, so that they end a line or else a word."""
    if text[keep : keep + 1].isspace():
        return text[:keep]
    head = text[:keep]
    for mark in ("\n", " "):
        place = head.rfind(mark)
        if place > keep - max(1, keep // 2):
            return head[:place] or head
    return head
