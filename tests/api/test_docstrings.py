"""Every public name says what it is, and its example runs."""

import doctest
import inspect
import subprocess
import sys
from functools import cached_property
from pathlib import Path

import pytest

import rlhfkit
from rlhfkit.rewards import binding
from rlhfkit.rundir import results

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
    kinds = (property, cached_property)
    assert all(member.__doc__ for member in public if inspect.isfunction(member) or isinstance(member, kinds))


@pytest.mark.parametrize("result", [results.Evaluation, results.ModelResults, results.Estimate, results.WinRate])
def test_each_field_of_a_result_is_documented(result):
    silent = [name for name, field in result.model_fields.items() if not field.description]
    assert silent == []


@pytest.mark.parametrize("kind", ["SFTTrainer", "RewardTrainer"])
def test_the_page_has_what_a_trainer_shares_with_others(kind):
    page = (ROOT / "docs" / "api.md").read_text()
    assert all(f"#### `{kind}.{method}`" in page for method in ("train", "save", "close"))


@pytest.mark.parametrize("name", ["prompts", "responses", "completions", "prompt", "response", "completion"])
def test_the_page_names_what_reward_functions_are_called_with(name):
    page = (ROOT / "docs" / "api.md").read_text()
    assert f"`{name}`" in page.partition("## Reward functions")[2].partition("## Results")[0]
    assert name in (*binding.PROMPTS, *binding.RESPONSES)


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


@pytest.mark.thorough
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
