"""A terminal without letters, a cache that cannot be written, a user without a name: none of them ends a command."""

import os
import subprocess
import sys

import pytest

from rlhfkit.machine.surroundings import CACHE, make_do


def rlhfkit(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "rlhfkit", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


@pytest.mark.parametrize("encoding", ["ascii:strict", "latin-1:strict"])
def test_text_is_printed_on_a_terminal_that_lacks_its_letters(encoding):
    ended = rlhfkit("recipes", "translation", PYTHONIOENCODING="ascii:strict")
    assert ended.returncode == 0
    assert 'name = "translation"' in ended.stdout
    program = "from rlhfkit.machine.surroundings import make_do; make_do(); print('→ done')"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        text=True,
        encoding="latin-1",
    )
    assert (ended.returncode, ended.stdout) == (0, "\\u2192 done\n")


def test_a_cache_that_cannot_be_written_is_replaced_by_one_that_can(monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE, "/proc/nowhere")
    make_do()
    assert os.environ[CACHE] != "/proc/nowhere"
    assert os.access(os.environ[CACHE], os.W_OK)
    os.rmdir(os.environ[CACHE])


def test_a_user_without_a_name_gets_a_cache(monkeypatch):
    def nameless():
        raise KeyError("getpwuid(): uid not found: 1234567")

    monkeypatch.delenv(CACHE, raising=False)
    monkeypatch.setattr("getpass.getuser", nameless)
    make_do()
    assert os.access(os.environ[CACHE], os.W_OK)
    os.rmdir(os.environ.pop(CACHE))


def test_a_cache_that_works_is_left_as_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    make_do()
    assert os.environ[CACHE] == str(tmp_path / "cache")
