"""Rows → records, each row by a parser of its table; which rows are taken, and what is said of the others."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from rlhfkit.config.data import RowsConfig
from rlhfkit.data.notes import notes_on, notes_on_joins
from rlhfkit.data.remedies import remedy_for_missing
from rlhfkit.data.rows import Loaded, MissingColumnError, OnBadRow, Row, read_rows
from rlhfkit.errors import DataError
from rlhfkit.records import Demonstration, Preference, Prompt, place_of_prompt

__all__ = ["load_rows", "refuse_bad_rows"]

T = TypeVar("T")


def load_rows(
    source: RowsConfig, parse: Callable[[Row], T], *, directory: str | Path, on_bad_row: OnBadRow
) -> Loaded[T]:
    """Records that `parse` makes of the rows of `source`.

    A bad row is one that cannot be read, or of which `parse` says DataError (without its origin, which is added here).
    Raises: DataError for the first bad row where `on_bad_row` is "stop", and where no good row is left.
    """
    rows, sources = read_rows(source, directory=directory)
    records: list[T] = []
    faults: list[str] = []
    remedies: dict[str, str] = {}
    for row in rows:
        if isinstance(row, DataError):
            faults.append(str(row))
            continue
        try:
            records.append(parse(row))
        except MissingColumnError as error:
            if error.column not in remedies:  # rows of a file are alike
                remedies[error.column] = remedy_for_missing(row, parse, error.column, source.columns)
            faults.append(f"{row.origin}: {error}; {remedies[error.column]}")
        except DataError as error:
            faults.append(f"{row.origin}: {error}")
    refuse_bad_rows(faults, num_rows=len(rows), on_bad_row=on_bad_row)
    kept = _in_share(records, source.prompt_share)
    notes = (*notes_on([row for row in rows if isinstance(row, Row)], source), *notes_on_joins(records))
    return Loaded(_one_per_prompt(kept) if source.one_per_prompt else kept, tuple(faults), sources, notes)


def _in_share(records: list[T], share: str) -> list[T]:
    """The records whose prompt's hash lies in `share`, in per cent."""
    low, high = (bound.strip().removesuffix("%") for bound in share.split(":"))
    if not low and not high:
        return records
    start, stop = int(low or 0) / 100, int(high or 100) / 100
    kept = [record for record in records if start <= place_of_prompt(_prompt_of(record).content) < stop]
    if not kept:
        raise DataError(
            f'prompt_share = "{share}" leaves none of the {len(records)} rows; give rows of more prompts, or widen it'
        )
    return kept


def _one_per_prompt(records: list[T]) -> list[T]:
    """The first record of each prompt; where it is a prompt itself, with the references of them all."""
    rows: dict[object, list[T]] = {}
    for record in records:
        rows.setdefault(_prompt_of(record).content, []).append(record)
    return [_merged(same) for same in rows.values()]


def _merged(records: Sequence[T]) -> T:
    first, *others = records
    if not isinstance(first, Prompt):
        return first
    references = [prompt.reference for prompt in others if isinstance(prompt, Prompt) and prompt.reference is not None]
    return replace(first, further_references=tuple(references))


def _prompt_of(record: object) -> Prompt:
    match record:
        case (Prompt() as prompt) | Demonstration(prompt=prompt) | Preference(prompt=prompt):
            return prompt
    raise DataError("prompt_share and one_per_prompt go by the prompt, and whole texts have none; use rows")


def refuse_bad_rows(faults: Sequence[str], *, num_rows: int, on_bad_row: OnBadRow) -> None:
    """Check that `num_rows` rows will do, of which those with `faults` are bad.

    Raises: DataError with the first fault where `on_bad_row` is "stop", and where no good row is left.
    """
    if faults and len(faults) == num_rows:
        raise DataError(f"none of the {num_rows} rows can be used; the first: {faults[0]}")
    if faults and on_bad_row == "stop":
        bad, them = ("1 bad row", "it") if len(faults) == 1 else (f"{len(faults)} bad rows", "them")
        raise DataError(
            f'{faults[0]} ({bad} of {num_rows}; correct {them}, or leave {them} out with data.on_bad_row = "skip")'
        )
