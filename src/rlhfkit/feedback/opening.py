"""Opening a store: whose it is, and the settings that it keeps."""

from dataclasses import fields

from sqlalchemy import (
    Connection,
    delete,
    insert,
    inspect,
    select,
)

from rlhfkit.errors import StoreError
from rlhfkit.feedback import queue as tasks
from rlhfkit.feedback import tables
from rlhfkit.feedback.database import Database
from rlhfkit.feedback.states import StoreSettings
from rlhfkit.feedback.tables import (
    SCHEMA_VERSION,
    properties,
)

__all__ = [
    "check_owner",
    "kept_settings",
    "prepare",
]


def check_owner(database: Database) -> None:
    """Raise StoreError where the tables are somebody else's, before anything is changed."""
    names = database.table_names()
    if properties.name not in names:
        foreign = names if database.is_sqlite else names & set(tables.metadata.tables)
        if foreign:
            raise StoreError(
                f"{database.name} holds tables that are not rlhfkit's ({', '.join(sorted(foreign)[:3])}); "
                "expected a store or an empty database; choose another"
            )


def prepare(connection: Connection, settings: StoreSettings | None, *, name: str) -> StoreSettings:
    """The settings that hold from now on; makes the tables where there are none."""
    if not inspect(connection).has_table(properties.name):
        tables.metadata.create_all(connection)
        connection.execute(insert(properties), {"name": "schema_version", "value": str(SCHEMA_VERSION)})
        return keep_settings(connection, settings or StoreSettings())
    version = _kept(connection).get("schema_version")
    if version != str(SCHEMA_VERSION):
        raise StoreError(
            f"{name} has version {version} of the tables; expected {SCHEMA_VERSION}; another release of rlhfkit made "
            "them: pip install --upgrade rlhfkit"
        )
    old = kept_settings(connection)
    if settings is None or settings == old:
        return old
    if (settings.overlap, settings.calibration_overlap) != (old.overlap, old.calibration_overlap):
        tasks.count_anew(connection, overlap=settings.overlap, calibration_overlap=settings.calibration_overlap)
    return keep_settings(connection, settings)


def _kept(connection: Connection) -> dict[str, str]:
    return {row.name: row.value for row in connection.execute(select(properties))}


def kept_settings(connection: Connection) -> StoreSettings:
    """The settings that the store was made with."""
    kept = _kept(connection)
    return StoreSettings(
        int(kept["overlap"]), int(kept["calibration_overlap"]), lease_seconds=float(kept["lease_seconds"])
    )


def keep_settings(connection: Connection, settings: StoreSettings) -> StoreSettings:
    rows = [{"name": field.name, "value": str(getattr(settings, field.name))} for field in fields(settings)]
    connection.execute(delete(properties).where(properties.c.name.in_([row["name"] for row in rows])))
    connection.execute(insert(properties), rows)
    return settings
