"""Texts of which the class is known → prompts that ask for it."""

from operator import itemgetter
from pathlib import Path

from rlhfkit.config.data import LabelledConfig
from rlhfkit.data.conversations import read_text
from rlhfkit.data.formats import make_prompt, need
from rlhfkit.data.loading import load_rows
from rlhfkit.data.rows import Loaded, OnBadRow, Row
from rlhfkit.errors import DataError
from rlhfkit.records import Prompt

__all__ = ["load_labelled_prompts"]


def load_labelled_prompts(source: LabelledConfig, *, directory: str | Path, on_bad_row: OnBadRow) -> Loaded[Prompt]:
    """Texts as prompts, each with the name of its class as its reference; any stretch has the classes in proportion.

    Raises: DataError, which names the class.
    """
    classes = {name: _load_class(source, name, directory=directory, on_bad_row=on_bad_row) for name in source.classes}
    placed = [
        ((index + 0.5) / len(loaded.records), prompt)
        for loaded in classes.values()
        for index, prompt in enumerate(loaded.records)
    ]
    return Loaded(
        [prompt for _, prompt in sorted(placed, key=itemgetter(0))],
        tuple(message for loaded in classes.values() for message in loaded.skipped),
        tuple(file for loaded in classes.values() for file in loaded.sources),
        tuple(dict.fromkeys(note for loaded in classes.values() for note in loaded.notes)),
    )


def _load_class(source: LabelledConfig, name: str, *, directory: str | Path, on_bad_row: OnBadRow) -> Loaded[Prompt]:
    def parse(row: Row) -> Prompt:
        return make_prompt(read_text(need(row, "text"), "text"), row, formats=source, response=name)

    try:
        return load_rows(source.classes[name], parse, directory=directory, on_bad_row=on_bad_row)
    except DataError as error:
        raise DataError(f"classes.{name}: {error}") from error
