"""Whole texts."""

import hashlib
from pathlib import Path

from rlhfkit.config.data import (
    ContrastConfig,
    GrammarConfig,
    GuessTextsConfig,
    LabelledConfig,
    RowsConfig,
    TextsConfig,
)
from rlhfkit.data import grammar
from rlhfkit.data.conversations import read_text
from rlhfkit.data.formats import need
from rlhfkit.data.loading import load_rows
from rlhfkit.data.rows import Loaded, OnBadRow, Row, SourceFile
from rlhfkit.envs.guess import transcripts
from rlhfkit.errors import DataError

__all__ = ["load_located_texts", "load_texts"]


def load_texts(
    source: TextsConfig, *, directory: str | Path = ".", on_bad_row: OnBadRow = "stop", seed: int = 0
) -> Loaded[str]:
    """Texts of the column `text`, of lines, of the grammar, or of the guessing game. Raises: DataError."""
    if isinstance(source, GuessTextsConfig):
        return _games(source, seed)
    if isinstance(source, GrammarConfig):
        return grammar.load(grammar.texts, source, seed)
    if isinstance(source, ContrastConfig):
        raise DataError('type = "contrast" makes preferences only; for texts, name their file with path')
    if isinstance(source, LabelledConfig):
        raise DataError('type = "labelled" makes prompts and demonstrations; for texts, name their files with path')
    located = load_located_texts(source, directory=directory, on_bad_row=on_bad_row)
    return Loaded([text for text, _ in located.records], located.skipped, located.sources, located.notes)


def _games(source: GuessTextsConfig, seed: int) -> Loaded[str]:
    rules = {"highest": source.highest, "max_guesses": source.max_guesses}
    texts = transcripts(source.num_rows, seed + source.seed_offset, **rules)
    sha256 = hashlib.sha256(repr(texts).encode()).hexdigest()
    return Loaded(texts, (), (SourceFile("guess", sha256, len(texts)),))


def load_located_texts(source: RowsConfig, *, directory: str | Path, on_bad_row: OnBadRow) -> Loaded[tuple[str, str]]:
    """Texts with their origins. Raises: DataError."""

    def parse(row: Row) -> tuple[str, str]:
        text = read_text(need(row, "text"), "text")
        if not text.strip():
            raise DataError("the text is empty; expected text")
        return text, row.origin

    return load_rows(source, parse, directory=directory, on_bad_row=on_bad_row)
