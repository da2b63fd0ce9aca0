"""A store on SQLite, and one on a PostgreSQL server that the tests start for themselves."""

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text


def _programs() -> Path | None:
    """The newest directory with PostgreSQL's server programs."""
    installed = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(installed, key=lambda path: float(path.parent.parent.name), default=None)
    found = newest or shutil.which("initdb")
    return Path(found).parent if found and (Path(found).parent / "pg_ctl").exists() else None


class Server:
    """A PostgreSQL server of our own, which can crash and start again."""

    def __init__(self, programs: Path, directory: Path, as_user: list[str], settings: str = "") -> None:
        self.programs, self.directory, self.as_user = programs, directory, as_user
        # Without replication and vacuuming the server writes nothing to its log by itself, which a test looks at.
        quiet = "-c wal_level=minimal -c max_wal_senders=0 -c autovacuum=off"
        self.options = f"-k {directory} -c listen_addresses='' -c max_connections=150 {quiet} {settings}"
        self.url = f"postgresql://postgres@/postgres?host={directory}"
        self._call("initdb", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync")

    def start(self) -> None:
        self._call("pg_ctl", "-w", "-l", str(self.directory / "log"), "-o", self.options, "start")

    def crash(self) -> None:
        """End all its processes at once, with nothing written that was not."""
        self._call("pg_ctl", "-m", "immediate", "stop")

    def _call(self, program: str, *arguments: str) -> None:
        command = [*self.as_user, str(self.programs / program), "-D", str(self.directory / "data"), *arguments]
        with (self.directory / "output").open("a") as output:
            done = subprocess.run(command, cwd=self.directory, stdout=output, stderr=output)
        assert done.returncode == 0, (self.directory / "output").read_text()


@contextmanager
def running_server(settings: str = "") -> Iterator[Server]:
    """A server with PostgreSQL's defaults but for `settings`; skips where there are no programs to start one."""
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL's initdb and pg_ctl are not installed")
    directory = Path(tempfile.mkdtemp(prefix="rlhfkit-postgresql-"))
    as_user: list[str] = []
    if os.geteuid() == 0:
        try:
            owner = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        if shutil.which("runuser") is None:
            pytest.skip("PostgreSQL does not run as root, and there is no runuser")
        os.chown(directory, owner.pw_uid, owner.pw_gid)
        as_user = ["runuser", "-u", "postgres", "--"]
    try:
        server = Server(programs, directory, as_user, settings)
        server.start()
        try:
            yield server
        finally:
            server.crash()
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """URL of a database on a server of our own."""
    with running_server("-c fsync=off") as server:
        yield server.url


@pytest.fixture
def postgresql(postgresql_server: str) -> str:
    """URL under which no tables are there yet: of a new schema, which is quicker to make than a database."""
    name = f"test_{uuid.uuid4().hex}"
    engine = create_engine(postgresql_server.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {name}"))
    engine.dispose()
    return f"{postgresql_server}&options=-csearch_path%3D{name}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that has no tables yet, of each kind in turn."""
    if request.param == "sqlite":
        return str(tmp_path / "labels.db")
    return str(request.getfixturevalue("postgresql"))
