"""Votes and pairs of a store, to files and from files; and how far they can be trusted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhfkit.config.feedback import usable_database
from rlhfkit.config.recipe import Recipe
from rlhfkit.errors import ConfigError, DataError
from rlhfkit.feedback.exchange import (
    ExportFormat,
    ImportFormat,
    export_labels,
    import_labels,
)
from rlhfkit.feedback.source import new_pairs, open_existing, trust_in
from rlhfkit.feedback.states import StoreSettings, Undo
from rlhfkit.feedback.store import Store
from rlhfkit.feedback.trust.report import TrustReport
from rlhfkit.feedback.votes import Part
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.resume import recipe_of
from rlhfkit.wording import counted

__all__ = [
    "TEST_SHARE",
    "export_store",
    "import_into_store",
    "report_of",
    "usable",
]

SQLITE_MAGIC = b"SQLite format 3\0"


TEST_SHARE = 0.2
"""Share of the prompts whose pairs measure a reward model and never train one."""


def report_of(store: str) -> TrustReport:
    """How far the votes of a store can be trusted. Raises: StoreError where there is none."""
    with open_existing(_database(usable(store))) as opened:
        return trust_in(opened)


def export_store(
    store: str, path: Path, *, format: ExportFormat, part: Part | None, use_margin: bool, min_votes: int
) -> list[str]:
    """Write the labels of a store to a file; what was written, for the terminal. Raises: StoreError, DataError."""
    _refuse_databases(path)
    with open_existing(_database(usable(store))) as opened:
        snapshot, num_undone = opened.snapshot(), sum(isinstance(event, Undo) for event in opened.events())
        version, _ = opened.guidelines()
        overlaps = {False: opened.settings.overlap, True: opened.settings.calibration_overlap}
    written = export_labels(
        snapshot.pairs,
        snapshot.votes,
        path,
        format=format,
        part=part,
        use_margin=use_margin,
        min_votes=min_votes,
        needed={pair.id: overlaps[pair.is_calibration] for pair in snapshot.pairs},
    )
    kept_back = {"votes that were taken back": num_undone, "texts of the guidelines": version}
    left_out = written.left_out | {what: number for what, number in kept_back.items() if number}
    return [f"{written.path}: {counted(written.num_records, 'record')}", *_left_out(left_out)]


def _refuse_databases(path: Path) -> None:
    """Refuse to write over a database, perhaps the store itself.

    Raises: DataError, also where there is no directory to write to.
    """
    if not path.parent.is_dir():
        raise DataError(f"{path} cannot be written, as there is no directory {path.parent}; make it, or fix the path")
    if path.is_file():
        with path.open("rb") as file:
            is_database = file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC
        if is_database or path.name.endswith(("-wal", "-shm")):
            raise DataError(f"{path} is a database, in which votes may be; choose another file to write to")


def import_into_store(store: str, path: Path, *, format: ImportFormat, **options: Any) -> list[str]:
    """Put the labels of a file into a store, a new one if need be; what came in, for the terminal.

    `options` are those of `import_labels`. A new store lets pairs have as many votes as they had where they come from.
    Raises: StoreError, DataError.
    """
    labels = import_labels(path, format=format, test_share=TEST_SHARE, **options)
    # The votes of simulated people are the run's, and go with it.
    database = _database(usable(store), takes_simulated=False)
    with Store.open(database) as opened:
        old, is_new = opened.settings, not opened.queue().num_pairs
    known = StoreSettings() if is_new else old
    overlap, calibration_overlap = labels.overlaps(overlap=known.overlap, calibration_overlap=known.calibration_overlap)
    asked = replace(old, overlap=overlap, calibration_overlap=calibration_overlap)
    with Store.open(database, settings=asked if is_new else None) as opened:
        num_pairs = opened.add_pairs(new_pairs(opened, labels.pairs))
        num_votes = opened.add_votes(labels.votes)
    lines = [
        f"{store}: {counted(num_pairs, 'new pair')}, {counted(num_votes, 'new vote')}",
        *_left_out(labels.left_out),
    ]
    if num_votes < len(labels.votes):
        lines.append(f"  known already: {counted(len(labels.votes) - num_votes, 'vote')}")
    if is_new and asked != StoreSettings():
        lines.append(f"  pairs have {overlap} votes each here, those that show agreement {calibration_overlap}")
    if not is_new and (overlap, calibration_overlap) != (old.overlap, old.calibration_overlap):
        lines.append(f"  pairs had {overlap} votes each there; here they have {old.overlap}, as the store was made")
    return lines


def usable(database: str) -> str:
    """The name of a database as the command line gives it. Raises: ConfigError where it holds a password."""
    try:
        return usable_database(database)
    except ValueError as error:
        shown = f"{database.partition('://')[0]}://…"
        raise ConfigError(f"database {shown}: {error}") from error


def _left_out(left_out: dict[str, int]) -> list[str]:
    return [f"  left out: {what} ({number})" for what, number in left_out.items()]


def _database(store: str, *, takes_simulated: bool = True) -> str:
    """A run directory stands for its store: the one of its people, or else what its recipe names."""
    if "://" in store or not Path(store).is_dir():
        return store
    run = RunDir(store)
    if run.labels.exists() or not takes_simulated:
        return str(run.labels)
    recipe = recipe_of(run) if run.is_run() else None
    if isinstance(recipe, Recipe) and recipe.preferences.database is not None:
        return recipe.preferences.database
    return str(run.simulated_labels if run.simulated_labels.exists() else run.labels)
