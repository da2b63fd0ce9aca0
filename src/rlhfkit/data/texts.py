"""Whole texts."""

from pathlib import Path

from rlhfkit.config.schema import ContrastConfig, GrammarConfig, LabelledConfig, RowsConfig, SourceConfig
from rlhfkit.data import grammar
from rlhfkit.data.conversations import read_text
from rlhfkit.data.formats import need
from rlhfkit.data.rows import Loaded, OnBadRow, Row, load_rows
from rlhfkit.errors import DataError

__all__ = ["load_located_texts", "load_texts"]


def load_texts(
    source: SourceConfig, *, directory: str | Path = ".", on_bad_row: OnBadRow = "stop", seed: int = 0
) -> Loaded[str]:
    """Texts of the column `text`, of lines, or of the grammar. Raises: DataError."""
    if isinstance(source, GrammarConfig):
        return grammar.load(grammar.texts, source, seed)
    if isinstance(source, ContrastConfig):
        raise DataError('type = "contrast" makes preferences only; for texts, name their file with path')
    if isinstance(source, LabelledConfig):
        raise DataError('type = "labelled" makes prompts and demonstrations; for texts, name their files with path')
    located = load_located_texts(source, directory=directory, on_bad_row=on_bad_row)
    return Loaded([text for text, _ in located.records], located.skipped, located.sources)


def load_located_texts(source: RowsConfig, *, directory: str | Path, on_bad_row: OnBadRow) -> Loaded[tuple[str, str]]:
    """Texts with their origins. Raises: DataError."""

    def parse(row: Row) -> tuple[str, str]:
        text = read_text(need(row, "text"), "text")
        if not text.strip():
            raise DataError("the text is empty; expected text")
        return text, row.origin

    return load_rows(source, parse, directory=directory, on_bad_row=on_bad_row)
