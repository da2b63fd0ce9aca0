"""Demonstrations: prompts with a good response."""

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
from rlhfkit.data.formats import make_prompt, make_response, read_answered_prompt
from rlhfkit.data.known_forms import in_known_form, marks_a_bad_answer
from rlhfkit.data.labelled import load_labelled_prompts
from rlhfkit.data.loading import load_rows
from rlhfkit.data.rows import Loaded, OnBadRow, Row
from rlhfkit.errors import DataError
from rlhfkit.records import Demonstration

__all__ = ["demonstration_of", "load_demonstrations"]


def load_demonstrations(
    source: SourceConfig, *, directory: str | Path = ".", on_bad_row: OnBadRow = "stop", seed: int = 0
) -> Loaded[Demonstration]:
    """Demonstrations of `source`, in the order of its rows; of preferences, the chosen response. Raises: DataError."""
    if isinstance(source, GrammarConfig):
        return grammar.load(grammar.demonstrations, source, seed)
    if isinstance(source, ContrastConfig):
        raise DataError(
            'type = "contrast" makes preferences without prompts; for demonstrations, name a file with path'
        )

    if isinstance(source, StoreConfig):
        raise DataError('type = "store" holds votes, which make preferences; for demonstrations, name a file with path')
    if isinstance(source, LabelledConfig):
        loaded = load_labelled_prompts(source, directory=directory, on_bad_row=on_bad_row)
        demonstrations = [Demonstration(prompt, prompt.reference) for prompt in loaded.records if prompt.reference]
        return Loaded(demonstrations, loaded.skipped, loaded.sources, loaded.notes)

    parse = partial(demonstration_of, source=source, seed=seed)
    return load_rows(source, parse, directory=directory, on_bad_row=on_bad_row)


def demonstration_of(row: Row, *, source: RowsConfig, seed: int = 0) -> Demonstration:
    """The demonstration of a row of `source`. Raises: DataError where it has none."""
    row = in_known_form(row, source)
    if marks_a_bad_answer(row):
        raise DataError(
            f"label is {row.columns['label']!r}: the row shows a bad answer, which would be learnt like a good "
            "one; keep the good ones with where = {label = true}"
        )
    content, response = read_answered_prompt(row, beginning_words=source.beginning_words, seed=seed)
    prompt = make_prompt(content, row, formats=source, response=response)
    return Demonstration(prompt, make_response(response, formats=source))
