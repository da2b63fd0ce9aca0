"""Preferences: a prompt with two responses, of which people prefer the first."""

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rlhfkit.config.data import (
    ContrastConfig,
    GrammarConfig,
    LabelledConfig,
    RowsConfig,
    SourceConfig,
    StoreConfig,
)
from rlhfkit.data import grammar
from rlhfkit.data.formats import make_prompt, make_response, read_pair
from rlhfkit.data.known_forms import in_known_form
from rlhfkit.data.loading import load_rows
from rlhfkit.data.rows import Loaded, OnBadRow, Row
from rlhfkit.data.texts import load_located_texts
from rlhfkit.errors import DataError
from rlhfkit.records import Preference, Prompt
from rlhfkit.rundir.atomic import write_atomically

__all__ = ["load_preferences", "preference_of", "write_preferences"]


def load_preferences(
    source: SourceConfig, *, directory: str | Path = ".", on_bad_row: OnBadRow = "stop", seed: int = 0
) -> Loaded[Preference]:
    """Preferences of `source`, in the order of its rows; a store's are read by `feedback`. Raises: DataError."""
    assert not isinstance(source, StoreConfig)
    if isinstance(source, GrammarConfig):
        return grammar.load(grammar.preferences, source, seed)
    if isinstance(source, ContrastConfig):
        return _contrast(source, directory=directory, on_bad_row=on_bad_row, seed=seed)
    if isinstance(source, LabelledConfig):
        raise DataError('type = "labelled" makes no preferences; for two kinds of text use type = "contrast"')

    parse = partial(preference_of, source=source)
    return load_rows(source, parse, directory=directory, on_bad_row=on_bad_row)


def preference_of(row: Row, *, source: RowsConfig) -> Preference:
    """The preference of a row of `source`. Raises: DataError where it has none."""
    row = in_known_form(row, source)
    content, *responses = read_pair(row)
    chosen, rejected = (make_response(response, formats=source) for response in responses)
    prompt = make_prompt(content, row, formats=source)
    return Preference(prompt, chosen, rejected, _margin(row.columns.get("margin")))


def write_preferences(path: str | Path, preferences: Sequence[Preference]) -> None:
    """Write JSONL in the ecosystem's format.

    `load_preferences` reads the same records back, except that their origin is then the written file.
    """
    lines = [json.dumps(_as_row(preference), ensure_ascii=False) + "\n" for preference in preferences]
    write_atomically(Path(path), "".join(lines))


def _margin(value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        margin = float(value)
    except (TypeError, ValueError):
        margin = math.nan
    if not math.isfinite(margin):
        raise DataError(f'column "margin" is {value!r}; expected a finite number or nothing')
    return margin


def _as_row(preference: Preference) -> dict[str, Any]:
    prompt = preference.prompt
    row: dict[str, Any] = dict(prompt.columns)
    if isinstance(prompt.content, str):
        row |= {"prompt": prompt.content, "chosen": preference.chosen, "rejected": preference.rejected}
    else:
        row["prompt"] = [turn._asdict() for turn in prompt.content]
        row["chosen"] = [{"role": "assistant", "content": preference.chosen}]
        row["rejected"] = [{"role": "assistant", "content": preference.rejected}]
    if preference.margin is not None:
        row["margin"] = preference.margin
    return row


def _contrast(source: ContrastConfig, *, directory: str | Path, on_bad_row: OnBadRow, seed: int) -> Loaded[Preference]:
    """The i-th of the shuffled chosen texts against the i-th of the shuffled rejected ones, up to the shorter."""
    kinds = [
        load_located_texts(rows, directory=directory, on_bad_row=on_bad_row)
        for rows in (source.chosen, source.rejected)
    ]
    chosen, rejected = (
        [kind.records[index] for index in np.random.default_rng([seed, number]).permutation(len(kind.records))]
        for number, kind in enumerate(kinds)
    )
    preferences = []
    equal = []
    for (better, its_origin), (worse, other_origin) in zip(chosen, rejected, strict=False):
        origin = f"{its_origin} against {other_origin}"
        if better == worse:
            equal.append(f"{origin}: the same text is of both kinds")
        else:
            preferences.append(Preference(Prompt("", origin=origin), better, worse))
    if not preferences:
        raise DataError(f"no pair is left: {equal[0]}; expected two kinds of text that differ")
    return Loaded(
        preferences,
        (*kinds[0].skipped, *kinds[1].skipped, *equal),
        (*kinds[0].sources, *kinds[1].sources),
        tuple(dict.fromkeys((*kinds[0].notes, *kinds[1].notes))),
    )
