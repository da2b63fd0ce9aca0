"""Connections to SQLite and PostgreSQL, with one writer at a time and readers that never wait."""

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from rlhfkit.config.secrets import filled, hidden, remember
from rlhfkit.errors import MissingDependencyError, StoreError

__all__ = ["Database"]

_WAIT_SECONDS = 30
_LOCK_KEY = int.from_bytes(b"rlhfkit")
# A search for the next task stops at the first row of an index that fits; the planner, which cannot know that the first
# rows fit, would rather look at all rows and sort them.
_WRITER = {"synchronous_commit": "off", "enable_sort": "off", "enable_bitmapscan": "off", "jit": "off"}
_TAKE_TURN = "SELECT {}, pg_advisory_xact_lock({})".format(
    ", ".join(f"set_config('{name}', '{value}', true)" for name, value in _WRITER.items()), _LOCK_KEY
)
# A transaction that waits for the disk takes along all that were committed before it, if it has something to write:
# where it has not, PostgreSQL does not wait. So it writes an empty message to the log.
_FLUSH = "SELECT set_config('synchronous_commit', {}, true), pg_logical_emit_message(true, 'rlhfkit', '')".format(
    "CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END"
)
_RISKS = {
    "fsync": "a crash of its machine may lose votes that were confirmed, or the whole database",
    "full_page_writes": "a crash of its machine may damage the database",
}
_FORMS = "expected the path of a file, sqlite:///FILE or postgresql://USER@HOST/NAME"


class Database:
    """A database with `writing()` and `reading()` transactions; safe to use from several threads and processes.

    Writers take turns: by BEGIN IMMEDIATE in SQLite, by an advisory lock in PostgreSQL, and by a lock within the
    process, where it is cheaper to wait. So a transaction sees all that was written before it, and the same reasoning
    holds for both. A commit waits for the disk, unless `is_durable=False`: then losing power, though not losing the
    process, may lose it.
    """

    def __init__(self, database: str | Path) -> None:
        """Connect to `database`; nothing is created but an empty file. Raises: StoreError, MissingDependencyError."""
        url = _url_of(filled(str(database), of="database", encode=quote) if "://" in str(database) else database)
        remember("PGPASSWORD", os.environ.get("PGPASSWORD", ""))
        self.name = (
            url.database or ""
            if url.get_backend_name() == "sqlite"
            else hidden(url.render_as_string().replace("+psycopg", "", 1))
        )
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self._engine = _engine(url)
        if self.is_sqlite:
            event.listen(self._engine, "connect", _prepare_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)
            self._readers = self._engine
        else:
            event.listen(self._engine, "connect", _prepare_postgresql)
            self._readers = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._writers = {
            is_durable: self._engine.execution_options(is_writing=True, is_durable=is_durable)
            for is_durable in (True, False)
        }
        self._turn = threading.Lock()
        self._is_closed = False

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that sees one state of the database, whatever others write meanwhile. Raises: StoreError."""
        with self._translated(), self._readers.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self, *, is_durable: bool = True) -> Iterator[Connection]:
        """The connection of the only writer; it commits at the end. Raises: StoreError."""
        with self._translated(), ExitStack() as stack:
            with self._turn:
                connection = stack.enter_context(self._writers[is_durable].connect())
                with connection.begin():
                    if not self.is_sqlite:
                        connection.exec_driver_sql(_TAKE_TURN)
                    yield connection
            if is_durable and not self.is_sqlite:
                # Out of turn, so that one wait for the disk serves many writers.
                with connection.begin():
                    connection.exec_driver_sql(_FLUSH)

    def risks(self) -> list[str]:
        """What may lose votes that were confirmed, by the settings of the server. Raises: StoreError."""
        if self.is_sqlite:
            return []
        with self.reading() as connection:
            found = {name: connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in _RISKS}
        return [
            f"{self.name} runs with {name} = off, so that {lost}; set {name} = on in postgresql.conf and reload it"
            for name, lost in _RISKS.items()
            if found[name] == "off"
        ]

    def table_names(self) -> set[str]:
        """Names of the tables that the database has. Raises: StoreError."""
        with self.reading() as connection:
            return set(inspect(connection).get_table_names())

    def keep_a_log(self) -> None:
        """Let SQLite write ahead to a log, so that readers and writers do not wait for each other."""
        if not self.is_sqlite:
            return
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            try:
                with self._translated():
                    self._switch_to_log()
                return
            except StoreError as error:
                # SQLite does not wait for its turn here when two processes open a new file at once.
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def _switch_to_log(self) -> None:
        connection = self._engine.raw_connection()
        try:
            cursor = connection.cursor()
            cursor.execute("PRAGMA journal_mode=WAL")
            mode = cursor.fetchone()
            cursor.close()
        except sqlite3.Error as error:
            raise StoreError(f"{self.name}: {error}; {_remedy(str(error), is_sqlite=True)}") from error
        finally:
            connection.close()
        if mode is None or mode[0] != "wal":
            raise StoreError(
                f"{self.name} is on a file system where SQLite cannot write ahead to a log; use a local disk, "
                "or a PostgreSQL server"
            )

    def close(self) -> None:
        """Close all connections."""
        self._is_closed = True
        self._engine.dispose()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        if self._is_closed:
            raise StoreError(f"{self.name} was closed; open the store again")
        try:
            yield
        except DBAPIError as error:
            message = hidden(" ".join(str(error.orig).split()))
            raise StoreError(f"{self.name}: {message}; {_remedy(message, is_sqlite=self.is_sqlite)}") from error
        except SQLAlchemyError as error:
            raise StoreError(f"{self.name}: {hidden(str(error))}") from error


def _url_of(database: str | Path) -> URL:
    text = str(database)
    if isinstance(database, Path) or "://" not in text:
        if not text or text == ":memory:":
            raise StoreError(f"database {text!r} is no file; {_FORMS}")
        return URL.create("sqlite", database=text)
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise StoreError(f"a database URL that cannot be read; {_FORMS}") from error
    scheme = url.drivername
    if scheme in ("postgres", "postgresql", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    if scheme != "sqlite":
        raise StoreError(f"a database of kind {scheme!r}; {_FORMS}")
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise StoreError(f"{text} is no file on disk; {_FORMS}")
    return url


def _engine(url: URL) -> Engine:
    # One writer at a time, so that a process needs few connections however many threads it has.
    try:
        if url.get_backend_name() == "sqlite":
            return create_engine(
                url, pool_size=4, max_overflow=60, connect_args={"timeout": _WAIT_SECONDS, "isolation_level": None}
            )
        return create_engine(
            url, pool_size=5, max_overflow=15, pool_pre_ping=True, connect_args={"connect_timeout": 10}
        )
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"{hidden(url.render_as_string())} needs a package that is missing ({error.name}); "
            "pip install 'rlhfkit[postgres]'"
        ) from error


def _prepare_sqlite(connection: Any, record: Any) -> None:
    connection.execute("PRAGMA foreign_keys=ON")


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    if options.get("is_writing"):
        connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if options['is_durable'] else 'NORMAL'}")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.exec_driver_sql("BEGIN")


def _prepare_postgresql(connection: Any, record: Any) -> None:
    with connection.cursor() as cursor:
        # A writer that froze in the middle must not stop the others for ever.
        cursor.execute(f"SET lock_timeout = '{_WAIT_SECONDS}s'")
        cursor.execute(f"SET idle_in_transaction_session_timeout = '{_WAIT_SECONDS}s'")
    connection.commit()


def _remedy(message: str, *, is_sqlite: bool) -> str:
    if not is_sqlite:
        return "check that the server runs, that the URL is right and that the user may create and write tables"
    if "locked" in message:
        return f"another program has kept it for more than {_WAIT_SECONDS} s; close that program"
    if "not a database" in message or "malformed" in message:
        return "expected an SQLite file that rlhfkit made; choose another path"
    if "unable to open" in message or "readonly" in message or "read-only" in message:
        return "expected a file in a directory that exists and can be written; choose another path"
    return "check the disk and the file, then try again"
