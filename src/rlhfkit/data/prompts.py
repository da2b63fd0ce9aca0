"""Prompts, from rows of any format that has one."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rlhfkit.config.data import (
    ContrastConfig,
    GrammarConfig,
    LabelledConfig,
    RowsConfig,
    SourceConfig,
    StoreConfig,
)
from rlhfkit.data import grammar
from rlhfkit.data.formats import make_prompt, read_prompt
from rlhfkit.data.known_forms import in_known_form, marks_a_bad_answer
from rlhfkit.data.labelled import load_labelled_prompts
from rlhfkit.data.loading import load_rows
from rlhfkit.data.rows import Loaded, OnBadRow, Row
from rlhfkit.errors import DataError
from rlhfkit.records import Prompt, folded

__all__ = ["find_overlap", "load_prompts", "prompt_of"]


def load_prompts(
    source: SourceConfig, *, directory: str | Path = ".", on_bad_row: OnBadRow = "stop", seed: int = 0
) -> Loaded[Prompt]:
    """Prompts of `source`, in the order of its rows; the same prompt may come more than once. Raises: DataError."""
    if isinstance(source, GrammarConfig):
        return grammar.load(grammar.prompts, source, seed)
    if isinstance(source, ContrastConfig):
        raise DataError('type = "contrast" makes preferences without prompts; for prompts, name a file with path')

    if isinstance(source, StoreConfig):
        raise DataError('type = "store" holds votes, which make preferences; for prompts, name a file with path')
    if isinstance(source, LabelledConfig):
        return load_labelled_prompts(source, directory=directory, on_bad_row=on_bad_row)

    parse = partial(prompt_of, source=source, seed=seed)
    return load_rows(source, parse, directory=directory, on_bad_row=on_bad_row)


def prompt_of(row: Row, *, source: RowsConfig, seed: int = 0) -> Prompt:
    """The prompt of a row of `source`. Raises: DataError where it has none."""
    row = in_known_form(row, source)
    content, response = read_prompt(row, beginning_words=source.beginning_words, seed=seed)
    reference = None if marks_a_bad_answer(row) else response
    return make_prompt(content, row, formats=source, response=reference)


def find_overlap(train: Sequence[Prompt], test: Sequence[Prompt]) -> int:
    """How many of the test prompts occur among the training prompts too; more than 0 means that the test leaks.

    Blanks and capitals make no difference. Prompts without any text, as of contrasted texts, are no prompts.
    """
    known = {folded(prompt.content) for prompt in train} - {""}
    return sum(folded(prompt.content) in known for prompt in test)
