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

class Louder(Hello):
    pass

made = Louder()
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
            r"there is no module 'no_worlds'; write `package\.module:name`, importable",
        ),
        ("my_worlds:Helo", ConfigError, r"my_worlds has no function 'Helo'; did you mean 'Hello'\?"),
        ("my_worlds:made", ConfigError, r"is of type Louder, not a function; name its class, my_worlds:Louder$"),
        ("my_broken_worlds:Hello", EnvError, r"importing its module raised ZeroDivisionError: .*; correct the module"),
    ],
)
def test_a_name_that_leads_nowhere_is_reported(desk, name, error, message):
    (desk / "my_broken_worlds.py").write_text("1 / 0")
    with pytest.raises(error, match=message):
        load_factory(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "my_worlds:nothing",
            r"env\.function 'my_worlds:nothing' returned a NoneType, without reset and step; return a",
        ),
        (
            "my_worlds:failing",
            r"env\.function 'my_worlds:failing' raised KeyError: 'map\.txt' \(at .*my_worlds\.py:14\)",
        ),
    ],
)
def test_a_factory_that_makes_no_environment_is_reported(name, message):
    with pytest.raises(EnvError, match=message):
        load_factory(name)()


WAYS = """
from rlhfkit.envs.text import TextStep

class Base:
    def reset(self, seed):
        return "Say hello:"
    def step(self, response):
        return TextStep("", float("hello" in response), terminated=True)

class Seedless(Base):
    def reset(self, split="train"):
        return split

class ByKeyword(Base):
    def reset(self, *, seed=None):
        return "Say hello:"

class WithOptions(Base):
    def reset(self, seed=None, options=None):
        return "Say hello:"

class Unused(Base):
    def reset(self, _seed):
        return "Say hello:"
    def step(self, action):
        return TextStep("", 0.0, terminated=True)

class TwoArguments(Base):
    def step(self, response, tokens):
        return TextStep("", 0.0, terminated=True)

class Waits(Base):
    async def step(self, response):
        return TextStep("", 0.0, terminated=True)

class Sized(Base):
    def __init__(self, size):
        self.size = size

async def coming():
    return Base()
"""


@pytest.mark.parametrize("name", ["WithOptions", "Unused"])
def test_a_seed_goes_to_a_parameter_that_is_meant_for_it(desk, name):
    (desk / "my_broken_worlds.py").write_text(WAYS)
    assert load_factory(f"my_broken_worlds:{name}")().reset(0) == "Say hello:"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Seedless", r"Seedless\.reset takes \(split='train'\); expected \(seed\)"),
        ("ByKeyword", r"ByKeyword\.reset takes \(\*, seed=None\); expected \(seed\)"),
        ("TwoArguments", r"TwoArguments\.step takes \(response, tokens\); expected \(response\)"),
        ("Waits", r"Waits\.step is a coroutine; expected a plain method"),
    ],
)
def test_a_method_that_would_take_something_else_is_refused(desk, name, message):
    (desk / "my_broken_worlds.py").write_text(WAYS)
    with pytest.raises(EnvError, match=message):
        load_factory(f"my_broken_worlds:{name}")()


def test_a_factory_that_is_a_coroutine_is_refused_at_once(desk):
    (desk / "my_broken_worlds.py").write_text(WAYS)
    with pytest.raises(ConfigError, match="coming' is a coroutine; expected a plain function"):
        load_factory("my_broken_worlds:coming")


def test_a_factory_that_wants_arguments_is_refused_at_once(desk):
    (desk / "my_broken_worlds.py").write_text(WAYS)
    with pytest.raises(
        ConfigError, match=r"Sized' takes \(size\); expected a class or a function .* without arguments"
    ):
        load_factory("my_broken_worlds:Sized")
