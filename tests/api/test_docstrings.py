"""Every public name says what it is, and its example runs."""

import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import rlhfkit

ROOT = Path(__file__).parents[2]
NAMES = [name for name in rlhfkit.__all__ if name != "__version__"]
WITHOUT_EXAMPLE = {name for name in NAMES if name.endswith("Error")}
"""An error is shown by what raises it."""


def examples(name):
    """The doctests of a public name and of its methods."""
    value = getattr(rlhfkit, name)
    finder = doctest.DocTestFinder(recurse=inspect.isclass(value), exclude_empty=True)
    return [test for test in finder.find(value, name, module=False) if test.examples]


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_documented(name):
    value = getattr(rlhfkit, name)
    assert value.__doc__ and value.__doc__.strip()[0].isupper()
    public = [member for key, member in vars(value).items() if key[0] != "_"] if inspect.isclass(value) else []
    assert all(member.__doc__ for member in public if inspect.isfunction(member) or isinstance(member, property))


@pytest.mark.parametrize("name", sorted(set(NAMES) - WITHOUT_EXAMPLE))
def test_its_example_runs(name, model_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tests = examples(name)
    assert tests, f"{name} has no example"
    for number, test in enumerate(tests):
        test.globs = {
            "model_dir": model_dir,
            "out_dir": str(tmp_path / f"out-{number}"),
            "run_dir": str(tmp_path / "run"),
        }
        result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
        assert result.failed == 0


def test_the_page_is_what_the_docstrings_say():
    written = subprocess.run([sys.executable, "docs/make_api.py", "--print"], cwd=ROOT, capture_output=True, text=True)
    assert written.returncode == 0, written.stderr
    assert written.stdout == (ROOT / "docs" / "api.md").read_text(), "run python docs/make_api.py"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: rlhfkit.PPOConfig(clip_rang=0.1), "clip_rang: no such setting; did you mean clip_range"),
        (lambda: rlhfkit.PPOConfig(epochs=0), "epochs = 0: expected a number above 0"),
        (lambda: rlhfkit.PPOConfig(rollout_episodes=6, minibatch_episodes=4), "minibatch_episodes 4 does not divide"),
        (
            lambda: rlhfkit.PPOConfig(kl={"type": "fixed", "coef": -1}),
            r"kl\.coef = -1: expected a number of at least 0",
        ),
    ],
)
def test_settings_are_refused_in_the_words_of_the_command_line(make, words):
    with pytest.raises(rlhfkit.ConfigError, match=words):
        make()
