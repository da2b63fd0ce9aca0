"""What somebody should know of rows that can be read: text that takes no part, and signs of a wrong conversion."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from rlhfkit.config.data import RowsConfig
from rlhfkit.data.formats import OWN_COLUMNS
from rlhfkit.data.known_forms import used_columns
from rlhfkit.data.rows import Row
from rlhfkit.records import Demonstration, Preference
from rlhfkit.wording import listed

__all__ = ["notes_on", "notes_on_joins"]

NUM_LOOKED_AT = 200
FEW_WORDS = 3
"""A shorter text is a name, a key or a class."""
MISREAD = re.compile("[\x80-\x9f\ufffd]|Ã[\xa0-\xbf]|â€")
"""Windows-1252 read as Latin-1; what could not be decoded; UTF-8 read as Windows-1252."""
ENTITY = re.compile(r"&(?:amp|lt|gt|quot|nbsp|#\d{2,5}|#x[0-9a-fA-F]{2,4});")


def notes_on_joins(records: Sequence[object]) -> Iterator[str]:
    """What is noteworthy where prompts that are text meet their responses, out of records that are evenly spaced."""
    joins = []
    for record in _spaced(records):
        match record:
            case Demonstration(prompt=prompt, response=response) | Preference(prompt=prompt, chosen=response):
                if isinstance(prompt.content, str) and prompt.content:
                    joins.append((prompt.content, response))
    repeated = [join for join in joins if join[1].strip().startswith(join[0].strip())]
    glued = [join for join in joins if _is_glued(*join) and join not in repeated]
    if 2 * len(repeated) >= len(joins) > 0:
        yield (
            f"{len(repeated)} of {len(joins)} responses looked at begin with their whole prompt, which then stands "
            "there twice; leave it out of the responses"
        )
    if 2 * len(glued) >= len(joins) > 0:
        (before, after), num = glued[0], len(glued)
        yield (
            f"nothing stands between prompt and response in {num} of {len(joins)} rows looked at: "
            f"{before[-20:] + after[:20]!r}; give prompts as messages, which the chat template joins, or add "
            "to the command: 'data.prompt_format=\"{prompt}\\n\"'"
        )


def _is_glued(prompt: str, response: str) -> bool:
    """Whether a word of the response, in a script that has spaces, follows the prompt without one."""
    last, first = prompt[-1], response[0]
    return (last.isalnum() or last in ".,:;?!)\"'") and (first.isupper() or first.islower() or first.isdigit())


def _spaced(rows: Sequence[Any]) -> list[Any]:
    num = min(len(rows), NUM_LOOKED_AT)
    return [rows[index * len(rows) // num] for index in range(num)]


def notes_on(rows: Sequence[Row], source: RowsConfig) -> tuple[str, ...]:
    """One sentence for each thing that is noteworthy, out of rows that are evenly spaced."""
    spaced = _spaced(rows)
    return (*_left_out(spaced, source), *_badly_converted(spaced))


def _left_out(rows: Sequence[Row], source: RowsConfig) -> Iterator[str]:
    """Columns of text that are neither ours nor a part of a form that is known."""
    counts: dict[str, int] = {}
    for row in rows:
        used = OWN_COLUMNS | used_columns(row.columns, source) | source.where.keys()
        for name, value in row.columns.items():
            if name not in used and isinstance(value, str) and len(value.split()) >= FEW_WORDS:
                counts[name] = counts.get(name, 0) + 1
    names = [name for name, num in counts.items() if 2 * num >= len(rows)]
    if names:
        yield (
            f"the text of {listed(names)} takes no part in what the model reads (a reward function may ask for it); if "
            "it belongs to the prompt, write it into the prompt"
        )


def _badly_converted(rows: Sequence[Row]) -> Iterator[str]:
    texts = [
        text for row in rows for name, value in row.columns.items() if name in OWN_COLUMNS for text in _texts(value)
    ]
    escaped = sum("\\n" in text and "\n" not in text for text in texts)
    misread = sum(bool(MISREAD.search(text)) for text in texts)
    entities = sum(bool(ENTITY.search(text)) for text in texts)
    for num, what, remedy in (
        (escaped, r"backslash and n where a line break is meant, it seems (\n)", "write real line breaks"),
        (entities, "HTML entities such as &amp; or &quot;", "turn them back into characters (html.unescape)"),
        (
            misread,
            "signs of a file that was read in the wrong encoding (as â€™, \ufffd or unprintable characters)",
            'set data.encoding, perhaps to "windows-1252", or write the file again',
        ),
    ):
        if 10 * num >= len(texts) > 0:
            yield f"{num} of {len(texts)} texts looked at hold {what}; {remedy}, or the model will write them too"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        yield from (text for turn in value if isinstance(turn, dict) for text in _texts(turn.get("content")))
