"""Votes of a store as a source of training data."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rlhfkit.config.data import StoreConfig
from rlhfkit.data.rows import Loaded, SourceFile
from rlhfkit.errors import DataError, StoreError
from rlhfkit.feedback.exchange import Aggregated, preferences_of
from rlhfkit.feedback.states import Snapshot
from rlhfkit.feedback.store import Store
from rlhfkit.feedback.trust.compute import trust_report
from rlhfkit.feedback.trust.report import TrustReport
from rlhfkit.feedback.votes import Pair
from rlhfkit.records import Preference

__all__ = [
    "is_missing",
    "load_labels",
    "new_pairs",
    "open_existing",
    "trust_in",
    "with_strengths",
]


def new_pairs(store: Store, pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs that the store does not have, each of the part that other pairs of its prompt have there.

    What the store knows of the others, such as how they were chosen, stays.
    """
    known = store.pairs()
    ids, parts = {pair.id for pair in known}, {pair.prompt: pair.part for pair in known if pair.prompt}
    return [replace(pair, part=parts.get(pair.prompt, pair.part)) for pair in pairs if pair.id not in ids]


def with_strengths(found: Aggregated) -> list[Preference]:
    """The preferences, each with further columns: `pair`, mean degree `strength` (1 to 4), and `lead` in votes."""
    facts = zip(found.preferences, found.pair_ids, found.strengths, found.leads, strict=True)
    return [
        replace(given, prompt=replace(given.prompt, columns={"pair": pair, "strength": strength, "lead": lead}))
        for given, pair, strength, lead in facts
    ]


def open_existing(database: str | Path) -> Store:
    """The store in `database`.

    Raises: StoreError where there is none.
    """
    if is_missing(database):
        raise StoreError(f"there is no store {database}; make one with: rlhfkit label RUN")
    return Store.open(database)


def is_missing(database: str | Path) -> bool:
    """Whether `database` is a file that is not there; servers are asked only when they are opened."""
    name = str(database).removeprefix("sqlite:///")
    return "://" not in name and not Path(name).exists()


def load_labels(source: StoreConfig) -> Loaded[Preference]:
    """Preferences that the votes of a store amount to now, in the order of its pairs.

    Raises: StoreError where there is no such store; DataError where its votes make no preference.
    """
    with open_existing(source.database) as store:
        snapshot = store.snapshot()
    found = preferences_of(
        snapshot.pairs,
        snapshot.votes,
        part=None if source.part == "all" else source.part,
        use_margin=source.use_margin,
        min_votes=source.min_votes,
    )
    if not found.preferences:
        raise DataError(
            f"the votes of {source.database} make no preference: of {found.num_pairs} pairs {_of_part(source)}, "
            f"{found.num_without_votes} have no vote, {found.num_too_few} too few, {found.num_skipped} were skipped, "
            f"and {found.num_tied + found.num_both_bad} are undecided; label more pairs"
        )
    preferences = with_strengths(found)
    digest = hashlib.sha256(repr(preferences).encode("utf-8", "backslashreplace")).hexdigest()
    return Loaded(preferences, found.unusable, (SourceFile(source.database, digest, len(preferences)),))


def trust_in(store: Store, snapshot: Snapshot | None = None) -> TrustReport:
    """How far the votes of a store can be trusted, with the votes that its pairs get by plan."""
    settings = store.settings
    return trust_report(
        snapshot or store.snapshot(), overlap=settings.overlap, calibration_overlap=settings.calibration_overlap
    )


def _of_part(source: StoreConfig) -> str:
    return "in all" if source.part == "all" else f'of the part "{source.part}"'
