"""Files and splits that lie beside those that are read, and that no table reads."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from rlhfkit.config.data import DataConfig, RowsConfig
from rlhfkit.config.section import Section
from rlhfkit.data.rows import FORMATS, SourceFile
from rlhfkit.wording import listed

__all__ = ["note_on_unread"]

SPLIT = re.compile(
    r"(?<![a-z])(train(ing)?|valid(ation)?|val|dev|test(ing)?|eval(uation)?|held_?out)(?![a-z])", re.IGNORECASE
)
SHARD = re.compile(r"\d+-of-\d+")


def note_on_unread(data: DataConfig, sources: Iterable[SourceFile]) -> str | None:
    """One sentence that names files like those that are read, but for their split, and splits; None where all are read.

    `sources` say which splits the datasets have that were read.
    """
    read = list(_rows_of(data))
    directory = Path(data.directory).expanduser()
    files = [directory / Path(path).expanduser() for rows in read for path in _paths(rows)]
    unread = [path.name for path in _siblings([file for file in files if file.is_file()])]
    for source in {source.path: source for source in sources if source.splits}.values():
        taken = {rows.split for rows in read if source.path in _paths(rows)}
        unread += [f'split "{name}" of {source.path}' for name in source.splits if name not in taken]
    if not unread:
        return None
    return f"data: no table reads {listed(unread)}; if one is for evaluation, name it in data.test_prompts"


def _rows_of(section: Section) -> Iterator[RowsConfig]:
    """All sources of rows in a section, also those of the classes or kinds in a table."""
    for _, value in section:
        for part in value.values() if isinstance(value, dict) else (value,):
            if isinstance(part, RowsConfig):
                yield part
            elif isinstance(part, Section):
                yield from _rows_of(part)


def _paths(rows: RowsConfig) -> tuple[str, ...]:
    return (rows.path,) if isinstance(rows.path, str) else rows.path


def _siblings(files: list[Path]) -> list[Path]:
    """Files of rows beside `files` with the same names but for the split, or the number of the part."""
    known = {file.resolve() for file in files}
    families = {(file.resolve().parent, family) for file in files if (family := _family(file)) is not None}
    return [
        file
        for directory in sorted({directory for directory, _ in families})
        for file in sorted(directory.iterdir())
        if (directory, _family(file)) in families and file.resolve() not in known and file.is_file()
    ]


def _family(file: Path) -> str | None:
    """The name without ending, split and number of its part; None where it has neither, or is no file of rows."""
    plain = Path(file.name.lower().removesuffix(".gz"))
    if plain.suffix not in FORMATS:
        return None
    family = SHARD.sub("#", SPLIT.sub("*", plain.stem))
    return None if family == plain.stem else family
