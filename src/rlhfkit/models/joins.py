"""The check that prompt and response together are what the chat template writes, row by row."""

from collections.abc import Iterator, Sequence

from rlhfkit.models.encoder import Encoder
from rlhfkit.records import Demonstration, Message, Preference, Prompt

__all__ = ["remarks_on_rows", "why_not_joined"]

NUM_JOINED = 64
"""Rows of a table whose ids are compared."""


def remarks_on_rows(encoder: Encoder, records: Sequence[object]) -> Iterator[str]:
    """What to warn of in the rows of a table, each with the first row that it is about."""
    rows = [(_prompt_of(record), _response_of(record)) for record in records]
    if encoder.turns.header and any(prompt is not None and not isinstance(prompt.content, str) for prompt, _ in rows):
        yield (
            f"the chat template ignores add_generation_prompt, so prompts end with {encoder.turns.header!r}, the "
            "assistant's header in its finished conversations; look whether that is right"
        )
    yield from _marks_in_texts(encoder, [prompt for prompt, _ in rows if prompt is not None])
    step = max(1, len(rows) // NUM_JOINED)
    whys: dict[str, list[str]] = {}
    for prompt, response in rows[::step]:
        if prompt is not None and response is not None and (why := why_not_joined(encoder, prompt, response)):
            whys.setdefault(why, []).append(prompt.origin or "a row")
    for why, origins in whys.items():
        more = f" and {len(origins) - 1} more of those looked at" if len(origins) > 1 else ""
        yield f"{origins[0]}{more}: {why}"


def why_not_joined(encoder: Encoder, prompt: Prompt, response: str) -> str | None:
    """Why the ids of prompt and response are not those that the tokenizer gives to the template's own conversation.

    None where they are. Raises: DataError where the template refuses the conversation, or fails on it.
    """
    if isinstance(prompt.content, str):
        return None
    messages = (*prompt.content, Message("assistant", response))
    text = encoder.render(prompt, messages, generation=False)
    words = response.rpartition("</think>")[2].strip()
    if words and words not in text:
        return "the chat template does not write what the assistant says, so it cannot be learnt; look at the template"
    own: list[int] = encoder.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    before, after = encoder.joined(prompt, response)
    joined = [*before, *after]
    if not encoder.turns.ending:
        joined = joined[:-1]  # what begins the next turn, where the template writes no ending
    if encoder.turns.opened:
        return (
            f"the prompt ends with {encoder.turns.opened!r}, which a finished conversation has not: it is trained "
            "without it and sampled with it; give a chat template that writes the same in both"
        )
    if own[: len(joined)] == joined:
        return None
    spelled = [mark for message in messages for mark in encoder.spelled_marks(message.content)]
    if spelled:
        return (
            f"{spelled[0]!r} in a turn is read as letters, not as the token that marks turns; leave it out of the rows"
        )
    if response != response.strip() or any(message.content != message.content.strip() for message in messages):
        return None  # the template takes the blanks away, or one of two
    return (
        f"one token of the tokenizer would cover the end of the prompt ({encoder.prompt_text(prompt)[-12:]!r}) and the "
        "beginning of the response; they are two tokens here, as in sampling"
    )


def _marks_in_texts(encoder: Encoder, prompts: Sequence[Prompt]) -> Iterator[str]:
    """Text prompts that hold marks of the chat template, which is then written twice, or read as letters."""
    turns = encoder.turns
    if encoder.uses_fallback:
        return
    marks = set(encoder.marks_in(f"{turns.header}{turns.head}{turns.tail}{turns.between}{turns.after}"))
    found = [
        (prompt.origin, mark)
        for prompt in prompts
        if isinstance(prompt.content, str)
        for mark in encoder.marks_in(prompt.content)[:1]
        if mark in marks
    ]
    if found:
        origin, mark = found[0]
        yield (
            f"{origin or 'a row'}: the prompt is text that holds {mark!r}, a mark of the model's own chat template "
            f"({len(found)} of {len(prompts)} rows), which is read as letters; give messages instead, as in "
            '{"prompt": [{"role": "user", "content": "…"}]}'
        )


def _prompt_of(record: object) -> Prompt | None:
    match record:
        case Prompt():
            return record
        case Demonstration(prompt=prompt) | Preference(prompt=prompt):
            return prompt
        case _:
            return None


def _response_of(record: object) -> str | None:
    match record:
        case Demonstration(response=response) | Preference(chosen=response):
            return response
        case _:
            return None
