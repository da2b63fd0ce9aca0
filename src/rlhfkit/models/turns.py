"""What a chat template writes around turns, read from its own renderings of short conversations.

Every turn of these says one character that no template writes (①, ②, …), so that what stands between them is what the
template writes there. Nothing of the template's source is looked at.
"""

import re
from dataclasses import dataclass, replace
from itertools import takewhile

from rlhfkit.models.chat_template import ChatTemplate, TemplateFailure
from rlhfkit.records import Message

__all__ = ["Turns", "common_prefix", "read_turns"]

ASKED, ANSWERED, ASKED_AGAIN, ANSWERED_AGAIN, ASKED_LAST = "①②③④⑤"
TALK = tuple(Message(role, text) for role, text in zip(("user", "assistant") * 3, (*"①②③④⑤",), strict=False))


@dataclass(frozen=True)
class Turns:
    """What a template writes around the assistant's turn and before the user's next one."""

    header: str = ""
    """The assistant's header, where the template ignores `add_generation_prompt`: it belongs to the prompt."""
    head: str = ""
    """What stands in a finished conversation between the prompt and the assistant's words."""
    tail: str = ""
    """All that follows the assistant's last words."""
    ending: str = ""
    """The beginning of `tail` that ends the turn; empty where the template writes no ending."""
    closing: str = ""
    """What ends the turn, here and in training: `ending`, or the mark that begins the next turn where there is none."""
    opened: str = ""
    """What the prompt ends with and a finished conversation has not, as a "<think>" that is opened for the model."""
    fault: str = ""
    """Why the assistant's turn cannot be read, where it cannot."""
    between: str = ""
    """What stands between the assistant's words and the user's next ones."""
    after: str = ""
    """What follows the user's next words, up to where the assistant begins to speak."""
    earlier_head: str = ""
    """As `head`, of an assistant's turn that others follow."""
    earlier_ending: str = ""
    """The beginning of `between` that ends the assistant's turn."""
    earlier_fault: str = ""
    """Why the user's next turn cannot be read, where it cannot."""


def common_prefix(one: str, other: str) -> int:
    """Number of characters that two texts begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def read_turns(template: ChatTemplate, marks: re.Pattern[str]) -> Turns:
    """What `template` writes around turns; `marks` finds the tokens that mark them.

    Raises: ConfigError where the template does not come to an end.
    """
    try:
        asked = template.render(TALK[:1], generation=True)
        unprompted = template.render(TALK[:1], generation=False)
        finished = template.render(TALK[:2], generation=False)
    except TemplateFailure as error:
        why = f"it fails on a question and its answer: {error}"
        return Turns(fault=why, earlier_fault=why)
    if ASKED not in asked or ANSWERED not in finished:
        whose = "user" if ASKED not in asked else "assistant"
        why = f"what the {whose} says is not in what it writes"
        return Turns(fault=why, earlier_fault=why)
    before, _, tail = finished.rpartition(ANSWERED)
    shared = common_prefix(asked, before)
    head, opened = before[shared:], asked[shared:]
    header = head if asked == unprompted and head.strip() and not opened else ""
    if header:
        head = ""
    ending = _run(marks, tail)
    return _with_next_turn(template, marks, Turns(header, head, tail, ending, ending, opened), asked + header)


def _with_next_turn(template: ChatTemplate, marks: re.Pattern[str], turns: Turns, asked: str) -> Turns:
    """`turns` with what the template writes between two of them."""
    try:
        longer = template.render(TALK[:3], generation=True) + turns.header
        longest = template.render(TALK, generation=True) + turns.header
    except TemplateFailure as error:
        return replace(turns, earlier_fault=f"it fails on a second question: {error}")
    parts, later = _parted(longer, ANSWERED, ASKED_AGAIN), _parted(longest, ANSWERED_AGAIN, ASKED_LAST)
    if parts is None or later is None:
        return replace(turns, earlier_fault="it drops or rewrites earlier turns")
    if parts[1:] != later[1:]:
        return replace(turns, earlier_fault="what it writes around a turn depends on the turns before")
    start, between, after = parts
    run = _run(marks, between)
    ending = _shared_run(marks, turns.ending, run) or turns.ending
    earlier = _shared_run(marks, turns.ending, run)
    first = _first(marks, run)
    if not earlier and run and (not turns.ending or first == _first(marks, after)):
        # As both speakers' turns end; or what begins the next turn is all that ends this one.
        earlier = run[: run.index(first) + len(first)]
    return replace(
        turns,
        ending=ending,
        closing=ending or earlier,
        between=between,
        after=after,
        earlier_head=start[common_prefix(asked, start) :],
        earlier_ending=earlier,
    )


def _parted(text: str, first: str, second: str) -> tuple[str, str, str] | None:
    """What stands before `first`, between the two, and after `second`; None where they are not there, in this order."""
    start, has_first, rest = text.rpartition(first)
    between, has_second, after = rest.partition(second)
    return (start, between, after) if has_first and has_second else None


def _run(marks: re.Pattern[str], text: str) -> str:
    """The marks that `text` begins with, and the blanks before them."""
    place = re.compile(r"\s*").match(text).end()  # type: ignore[union-attr]  # it matches the empty text
    end = 0
    while found := marks.match(text, place):
        place = end = found.end()
    return text[:end]


def _shared_run(marks: re.Pattern[str], one: str, other: str) -> str:
    """The marks that two runs begin with alike."""
    shared = one[: common_prefix(one, other)]
    return _run(marks, shared)


def _first(marks: re.Pattern[str], text: str) -> str:
    found = marks.search(text)
    return found[0] if found else ""
