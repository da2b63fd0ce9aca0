"""The store of votes: opening."""

import json
import math
import sqlite3
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import text

from rlhfkit.errors import ConfigError, MissingDependencyError, StoreError
from rlhfkit.feedback import database as database_module
from rlhfkit.feedback.states import AnnotatorProgress, QueueState, RoundState, Snapshot, StoreSettings
from rlhfkit.feedback.store import Store
from rlhfkit.feedback.votes import Pair
from rlhfkit.records import Message
from tests.feedback.store.desk import A, B, pair, say, work


def test_settings_are_kept(make_store):
    settings = StoreSettings(overlap=2, calibration_overlap=5, lease_seconds=7.5)
    assert make_store(overlap=2, calibration_overlap=5, lease_seconds=7.5).settings == settings
    assert make_store().settings == settings
    assert make_store(overlap=4).settings == StoreSettings(overlap=4)
    assert make_store().settings == StoreSettings(overlap=4)


def test_a_larger_overlap_opens_pairs_again_and_a_smaller_one_finishes_them(make_store):
    store = make_store(overlap=1)
    store.add_pairs([pair("p"), pair("q"), pair("r")])
    assert [work(store, "ann"), work(store, "bob")] == ["p", "q"]
    store = make_store(overlap=2)
    assert store.queue() == QueueState(3, 0, 0, 3, (RoundState(1, 3, 0),))
    assert store.progress("ann").num_left == 2
    assert [work(store, "bob", B), work(store, "ann", A)] == ["p", "q"]
    assert store.queue().num_finished == 1  # they disagree on p
    store = make_store(overlap=1)
    assert store.queue().num_finished == 2
    assert store.progress("ann") == AnnotatorProgress(2, 0, 1, 3, 4.0)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="overlap = 0; expected at least 1"):
        StoreSettings(overlap=0)
    with pytest.raises(ConfigError, match="calibration_overlap = -1"):
        StoreSettings(calibration_overlap=-1)
    for seconds in (0.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="lease_seconds"):
            StoreSettings(lease_seconds=seconds)


def test_guidelines_have_versions(make_store):
    store = make_store()
    assert store.guidelines() == (0, "")
    versions = [store.set_guidelines(text) for text in ("Be fair.", "Be fair.", "Be kind 🙂\x00", "Be fair.")]
    assert versions == [1, 1, 2, 3]
    assert make_store().guidelines() == (3, "Be fair.")


def test_a_reader_does_not_wait_for_a_writer(make_store):
    store, reader = make_store(), make_store()
    store.add_pairs([pair("p")])
    with store._database.writing() as connection:
        connection.execute(text("UPDATE queue SET num_needed = 9"))
        seen = []
        thread = threading.Thread(target=lambda: seen.append(reader.snapshot()))
        thread.start()
        thread.join(timeout=10)
        assert seen == [Snapshot([pair("p")], [])]


def test_a_writer_does_not_wait_for_a_reader_who_sees_one_moment(make_store):
    store, writer = make_store(), make_store()
    store.add_pairs([pair("p"), pair("q")])
    with store._database.reading() as connection:
        before = connection.execute(text("SELECT count(*) FROM votes")).scalar()
        done = []
        thread = threading.Thread(target=lambda: done.append(work(writer, "ann")))
        thread.start()
        thread.join(timeout=10)
        assert done == ["p"]
        assert connection.execute(text("SELECT count(*) FROM votes")).scalar() == before == 0
    assert len(store.votes()) == 1


def test_a_file_that_is_no_database_is_refused(tmp_path):
    path = tmp_path / "labels.db"
    path.write_text("prompt,chosen,rejected\n" * 100)
    with pytest.raises(StoreError, match=r"labels\.db: file is not a database; expected an SQLite file that rlhfkit"):
        Store.open(path)
    assert path.read_text() == "prompt,chosen,rejected\n" * 100


def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "browser.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"browser\.db holds tables that are not rlhfkit's \(bookmarks\)"):
        Store.open(path)
    assert path.read_bytes() == before


def test_tables_of_something_else_with_our_names_are_refused(postgresql):
    database = database_module.Database(postgresql)
    with database.writing() as connection:
        connection.execute(text("CREATE TABLE votes (party TEXT)"))
    database.close()
    with pytest.raises(StoreError, match=r"holds tables that are not rlhfkit's \(votes\)"):
        Store.open(postgresql)


def test_a_newer_version_of_the_tables_is_refused(make_store, database):
    with make_store()._database.writing() as connection:
        connection.execute(text("UPDATE rlhfkit_store SET value = '2' WHERE name = 'schema_version'"))
    with pytest.raises(StoreError, match="has version 2 of the tables; expected 1"):
        Store.open(database)


@pytest.mark.parametrize("path", ["no/such/directory/labels.db", "."])
def test_a_path_that_cannot_be_opened_is_refused(tmp_path, path):
    with pytest.raises(StoreError, match="expected a file in a directory that exists and can be written"):
        Store.open(tmp_path / path)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "database '' is no file"),
        (":memory:", "database ':memory:' is no file"),
        ("sqlite://", "is no file on disk"),
        ("sqlite:///:memory:", "is no file on disk"),
        ("mysql://root:secret@host/labels", "a database of kind 'mysql'"),
        ("postgresql+asyncpg://host/labels", "a database of kind 'postgresql.asyncpg'"),
        ("postgresql://host:port/labels", "a database URL that cannot be read"),
    ],
)
def test_a_url_that_makes_no_sense_is_refused(url, message):
    with pytest.raises(StoreError, match=message + ".*expected the path of a file, sqlite:///FILE or postgresql://"):
        Store.open(url)


def test_a_server_that_is_away_is_named_without_its_password(tmp_path):
    with pytest.raises(StoreError, match="check that the server runs") as caught:
        Store.open(f"postgresql://ann:secret@/labels?host={tmp_path}")
    assert "secret" not in str(caught.value)
    assert "ann:***@" in str(caught.value)


def test_a_missing_driver_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'rlhfkit\[postgres\]'"):
        Store.open("postgresql://host/labels")


def test_a_database_that_another_program_keeps_is_an_error_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(database_module, "_WAIT_SECONDS", 0.2)
    with Store.open(tmp_path / "labels.db") as store:
        store.add_pairs([pair("p")])
        connection = sqlite3.connect(tmp_path / "labels.db", isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="database is locked; another program has kept it"):
            store.lease("ann")
        assert len(store.pairs()) == 1
        connection.close()
        assert store.lease("ann").pair.id == "p"


def test_a_closed_store_says_so(make_store):
    with make_store() as store:
        pass
    with pytest.raises(StoreError, match="was closed; open the store again"):
        store.lease("ann")


def test_urls_of_sqlite_and_of_old_spelling_are_understood(tmp_path, postgresql_server, postgresql):
    with Store.open(f"sqlite:///{tmp_path}/labels.db") as store:
        store.add_pairs([pair("p")])
    with Store.open(Path(tmp_path) / "labels.db") as store:
        assert len(store.pairs()) == 1
    Store.open(postgresql.replace("postgresql:", "postgres:")).close()
    Store.open(postgresql.replace("postgresql:", "postgresql+psycopg:")).close()


def test_what_is_in_a_file_can_be_read_with_other_tools(tmp_path):
    with Store.open(tmp_path / "labels.db") as store:
        store.add_pairs([Pair("p", (Message("user", "你好"),), "a", "b")])
        say(store, "p", "ann", B)
    with sqlite3.connect(tmp_path / "labels.db") as connection:
        prompt, strength = connection.execute("SELECT prompt, strength FROM votes JOIN pairs USING (number)").fetchone()
    assert (json.loads(prompt), strength) == ([{"role": "user", "content": "你好"}], -2)
    assert "你好" in prompt
