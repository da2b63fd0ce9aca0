"""What to set where a row lacks a column: only what was tried on that row, and works."""

from collections.abc import Callable, Iterator
from itertools import combinations, islice, product
from typing import Any

from rlhfkit.data.conversations import as_messages
from rlhfkit.data.known_forms import ANSWERS, QUESTIONS
from rlhfkit.data.rows import Row
from rlhfkit.errors import DataError
from rlhfkit.wording import listed

__all__ = ["remedy_for_missing"]

USUAL = {
    "prompt": (*QUESTIONS, "input", "prompts", "user", "history", "context", "source", "title", "problem", "text"),
    "completion": (*ANSWERS, "completions", "target", "assistant", "solution", "reply", "summary", "label"),
    "chosen": (
        "preferred",
        "preferred_output",
        "better",
        "accepted",
        "good",
        "positive",
        "winner",
        "chosen_response",
        "response_chosen",
        "response_j",
        "win",
    ),
    "rejected": (
        "dispreferred",
        "non_preferred_output",
        "worse",
        "refused",
        "bad",
        "negative",
        "loser",
        "rejected_response",
        "response_rejected",
        "response_k",
        "lose",
    ),
    "text": ("content", "body", "document", "article", "sentence", "review"),
}
"""Our name -> what others call it, the likeliest first."""
GROUPS = (("prompt", "completion"), ("chosen", "rejected"), ("prompt", "chosen", "rejected"))
"""Columns that may all have other names."""
MOST_TRIED = 300


def remedy_for_missing(row: Row, parse: Callable[[Row], object], column: str, named: dict[str, str]) -> str:
    """What to do for a row of which `parse` wants the `column`, as the end of a message.

    `named` is what the table's `columns` say so far, by which the row is renamed already.
    """
    texts = list(_columns_with_text(row.columns))
    dialogues = [name for name in texts if _is_messages(row.columns.get(name))]
    for columns in islice(_assignments(column, texts, dialogues), MOST_TRIED):
        if _works(row, parse, columns):
            kept = {ours: theirs for ours, theirs in named.items() if ours not in {*columns, *columns.values()}}
            all_of_them = kept | {ours: named.get(theirs, theirs) for ours, theirs in columns.items()}
            setting = ", ".join(f'{ours} = "{theirs}"' for ours, theirs in all_of_them.items())
            return f"if it has another name, say so as in columns = {{{setting}}}"
    if row.columns.keys() == {"text"} and "\t" in row.columns["text"]:
        return 'it was read as one text a line, and its lines hold tabs: if it is a table, set data.format = "tsv"'
    if column in ("chosen", "rejected"):
        if twins := _twins(texts):
            return (
                f"{listed(twins)} look like two answers of which another column may say which is better: write the "
                "better one as chosen and the other as rejected"
            )
        if {"completion", "response"} & row.columns.keys():
            marked, where = "", ""
            if "label" in row.columns:
                marked, where = " that are marked as good or bad", ", with where = {label = true}"
            return (
                f"its answers are single ones{marked}, and a preference has two to one prompt: write a good and a bad "
                f"answer to the same prompt into one row, or take the good ones as demonstrations{where}"
            )
    if not texts:
        return f'none of its columns holds text; add a column "{column}" to the file'
    which = f"; there is text in {listed(texts)}" if len(texts) > 1 else ""
    return f'add it to the file, or say which column it is, as in columns = {{{column} = "NAME"}}{which}'


def _twins(names: list[str]) -> tuple[str, str] | None:
    """Two columns whose names differ in one letter or digit, the first or the second of its kind."""
    for first, second in combinations(names, 2):
        others = [pair for pair in zip(first, second, strict=False) if pair[0] != pair[1]]
        are_twins = len(first) == len(second) and others in ([("0", "1")], [("1", "2")], [("a", "b")], [("A", "B")])
        if are_twins and not first.casefold().startswith(("model", "winner")):
            return first, second
    return None


def _works(row: Row, parse: Callable[[Row], object], columns: dict[str, str]) -> bool:
    """Whether the row can be read with these columns renamed."""
    renamed = {name: value for name, value in row.columns.items() if name not in {*columns, *columns.values()}}
    for ours, theirs in columns.items():
        value: Any = row.columns
        for part in (theirs,) if theirs in row.columns else theirs.split("."):
            value = value[part]
        renamed[ours] = value
    try:
        parse(Row(renamed, row.origin))
    except DataError:
        return False
    return True


def _columns_with_text(columns: dict[str, Any], within: str = "") -> Iterator[str]:
    """Names of columns that hold text or messages, also in objects, with dots."""
    for name, value in columns.items():
        if (isinstance(value, str) and value.strip()) or _is_messages(value):
            yield within + name
        elif isinstance(value, dict) and not within:
            yield from _columns_with_text(value, f"{name}.")


def _is_messages(value: Any) -> bool:
    try:
        return as_messages(value, "") is not None
    except DataError:
        return False


def _assignments(column: str, texts: list[str], dialogues: list[str]) -> Iterator[dict[str, str]]:
    """What may be tried, the likeliest first."""
    known = {
        ours: sorted((name for name in texts if _is_called(name, ours)), key=lambda name, ours=ours: _rank(name, ours))  # type: ignore[misc]
        for ours in USUAL
    }
    yield from ({column: name} for name in known.get(column, ()))
    yield from ({"messages": name} for name in texts)
    for group in GROUPS:
        if column in group:
            yield from (
                {ours: name for ours, name in zip(group, names, strict=True) if name != ours}
                for names in product(*([ours] if ours in texts else known[ours] for ours in group))
                if len(set(names)) == len(names)
            )
    ours = set() if column == "text" else {*USUAL, "response", "messages"}
    free = [name for name in texts if name not in ours]
    for left in (free, [name for name in dialogues if name in free]):
        if len(left) == 1:
            yield {column: left[0]}


def _is_called(name: str, ours: str) -> bool:
    """Whether a column's name is one of those that others give to ours, or has it in an object."""
    parts = name.strip().casefold().split(".")
    if parts == [ours] and name != ours:  # "Prompt", or " prompt"
        return True
    return any(part in USUAL[ours] for part in parts) or (len(parts) > 1 and ours in parts)


def _rank(name: str, ours: str) -> int:
    """How likely a column that is called so is ours: where its name stands among the usual ones."""
    parts = name.strip().casefold().split(".")
    return min((USUAL[ours].index(part) for part in parts if part in USUAL[ours]), default=-1)
