import sys

import pytest

from rlhfkit.envs.function import load_factory
from rlhfkit.errors import ConfigError, EnvError

MODULE = """
from rlhfkit.envs.text import TextStep

class Hello:
    def reset(self, seed):
        return "Say hello:"
    def step(self, response):
        return TextStep("", float("hello" in response), terminated=True)

def nothing():
    return None

def failing():
    raise KeyError("map.txt")
"""


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_worlds.py").write_text(MODULE)
    yield tmp_path
    for name in ("my_worlds", "my_broken_worlds"):
        sys.modules.pop(name, None)


def test_a_class_is_a_factory():
    factory = load_factory("my_worlds:Hello")
    assert factory().reset(0) == "Say hello:"
    assert factory() is not factory()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "no_worlds:Hello",
            ConfigError,
            r"there is no module 'no_worlds'; write `package\.module:factory`, importable",
        ),
        ("my_worlds:Helo", ConfigError, r"my_worlds has no class or function 'Helo'; it has Hello, failing, nothing"),
        ("my_broken_worlds:Hello", EnvError, r"importing its module raised ZeroDivisionError: .*; mend the module"),
    ],
)
def test_a_name_that_leads_nowhere_is_told(desk, name, error, message):
    (desk / "my_broken_worlds.py").write_text("1 / 0")
    with pytest.raises(error, match=message):
        load_factory(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "my_worlds:nothing",
            r"env\.function = 'my_worlds:nothing' returned a NoneType, without reset and step; return a",
        ),
        (
            "my_worlds:failing",
            r"env\.function = 'my_worlds:failing' raised KeyError: 'map\.txt' \(at .*my_worlds\.py:14\)",
        ),
    ],
)
def test_a_factory_that_makes_no_environment_is_told(name, message):
    with pytest.raises(EnvError, match=message):
        load_factory(name)()
