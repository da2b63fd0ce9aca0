"""The one converter between people's labels and the formats of the world, there and back."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from rlhfkit.errors import DataError
from rlhfkit.feedback.exchange.argilla import WithoutStatus, read_argilla, write_argilla
from rlhfkit.feedback.exchange.hh import ChosenIs, read_hh, write_hh
from rlhfkit.feedback.exchange.label_studio import read_label_studio, write_label_studio
from rlhfkit.feedback.exchange.labels import Labels, Split, Written
from rlhfkit.feedback.exchange.majority import Aggregated, Outcome, Ties, outcome_of, preferences_of
from rlhfkit.feedback.exchange.names import (
    LABELS,
    ArgillaNames,
    LabelStudioNames,
    PreferenceNames,
    configuration,
    named,
)
from rlhfkit.feedback.exchange.own import read_labels, write_labels
from rlhfkit.feedback.exchange.pair_files import read_pairs
from rlhfkit.feedback.exchange.preferences import read_preferences, write_preference_rows
from rlhfkit.feedback.votes import Pair, Part, Vote

__all__ = [
    "LABELS",
    "Aggregated",
    "ArgillaNames",
    "ExportFormat",
    "ImportFormat",
    "LabelStudioNames",
    "Labels",
    "Outcome",
    "PreferenceNames",
    "Split",
    "Ties",
    "Written",
    "configuration",
    "export_labels",
    "import_labels",
    "outcome_of",
    "preferences_of",
    "read_argilla",
    "read_hh",
    "read_label_studio",
    "read_labels",
    "read_pairs",
    "read_preferences",
    "write_argilla",
    "write_hh",
    "write_label_studio",
    "write_labels",
    "write_preference_rows",
]

ImportFormat = Literal["rlhfkit", "preferences", "hh", "argilla", "argilla-nested", "label-studio"]
ExportFormat = Literal["rlhfkit", "preferences", "hh", "argilla", "argilla-nested", "label-studio"]


def export_labels(
    pairs: Sequence[Pair],
    votes: Sequence[Vote],
    path: str | Path,
    *,
    format: ExportFormat,
    part: Part | None = None,
    rounds: Collection[int] | None = None,
    use_margin: bool = False,
    min_votes: int = 1,
    details: bool = False,
    needed: Mapping[str, int] | None = None,
) -> Written:
    """Write the labels of one part and of some rounds to a file, whole or not at all.

    `needed` has how many votes each pair shall have, which all formats keep that hold every vote.

    `use_margin`, `min_votes` and `details` are for "preferences" and "hh", which hold the majority's preferences; "hh"
    has no margin. Raises: DataError.
    """
    chosen = [pair for pair in pairs if part in (None, pair.part) and (rounds is None or pair.round in rounds)]
    ids = {pair.id for pair in chosen}
    known = {pair.id for pair in pairs}
    theirs = [vote for vote in votes if vote.pair_id in ids or vote.pair_id not in known]
    match format:
        case "rlhfkit":
            return write_labels(path, chosen, theirs, needed=needed)
        case "preferences":
            return write_preference_rows(
                path, chosen, theirs, use_margin=use_margin, min_votes=min_votes, details=details
            )
        case "hh":
            if use_margin:
                raise DataError('"hh" has no margin; leave it out, or write "preferences"')
            return write_hh(path, chosen, theirs, min_votes=min_votes, details=details)
        case "argilla":
            return write_argilla(path, chosen, theirs, needed=needed)
        case "argilla-nested":
            return write_argilla(path, chosen, theirs, form="nested", needed=needed)
        case "label-studio":
            return write_label_studio(path, chosen, theirs, needed=needed)
    raise DataError(f'format "{format}" is unknown; expected one of {", ".join(get_args(ExportFormat))}')


def import_labels(
    path: str | Path,
    *,
    format: ImportFormat,
    test_share: float = 0.1,
    seed: int = 0,
    annotator: str = "imported",
    chosen_is: ChosenIs = "better",
    without_status: WithoutStatus = "refuse",
    names: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    users: Mapping[str, str] | None = None,
) -> Labels:
    """Pairs and votes of a file, all or none.

    `names` has the file's names for ours, `labels` what its labels mean, `users` its people's names by their ids.

    `annotator` names the person behind "preferences" and "hh", `chosen_is` the direction of "hh"; `without_status` says
    what becomes of Argilla's responses without a status. Raises: DataError.
    """
    split, names, labels = Split(test_share, seed), names or {}, labels or {}
    if unknown := [meaning for meaning in labels.values() if meaning not in LABELS]:
        raise DataError(f"--label …={unknown[0]} means nothing; expected one of {', '.join(LABELS)}")
    if labels and format not in ("argilla", "argilla-nested", "label-studio"):
        raise DataError(f"--label has no use for {format}, which has no labels of its own; leave it out")
    match format:
        case "rlhfkit":
            if names:
                raise DataError("--name has no use for rlhfkit, whose names are ours; leave it out")
            return read_labels(path)
        case "preferences":
            columns = named(PreferenceNames, names)
            return read_preferences(path, annotator=annotator, split=split, names=columns)
        case "hh":
            columns = named(PreferenceNames, names)
            return read_hh(path, chosen_is=chosen_is, annotator=annotator, split=split, names=columns)
        case "argilla" | "argilla-nested":
            return read_argilla(
                path,
                names=named(ArgillaNames, names),
                users=users,
                labels=labels,
                without_status=without_status,
                split=split,
            )
        case "label-studio":
            return read_label_studio(
                path, names=named(LabelStudioNames, names), users=users, labels=labels, split=split
            )
    raise DataError(f'format "{format}" is unknown; expected one of {", ".join(get_args(ImportFormat))}')
