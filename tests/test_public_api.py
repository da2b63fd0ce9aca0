"""What `import rlhfkit` offers, and what it leaves alone."""

import subprocess
import sys
from importlib.metadata import version

import pytest

import rlhfkit
from rlhfkit import errors

HEAVY = ["torch", "transformers", "numpy", "pydantic"]


def test_all_names_what_can_be_imported():
    for name in rlhfkit.__all__:
        assert getattr(rlhfkit, name) is not None
    assert dir(rlhfkit) == sorted(rlhfkit.__all__)


def test_all_names_every_error():
    assert set(errors.__all__) <= set(rlhfkit.__all__)


def test_names_are_the_ones_of_their_modules():
    from rlhfkit.config.load import load_recipe
    from rlhfkit.pipeline.control import load_control_policy
    from rlhfkit.rundir.directory import RunDir

    assert rlhfkit.load_recipe is load_recipe
    assert rlhfkit.load_control_policy is load_control_policy
    assert rlhfkit.RunDir is RunDir
    assert rlhfkit.ConfigError is errors.ConfigError
    assert rlhfkit.__version__ == version("rlhfkit")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'; it has AdaptiveKLConfig"):
        _ = rlhfkit.nonsense


def test_importing_the_package_imports_nothing_heavy():
    code = f"import sys, rlhfkit; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_every_error_refines_a_builtin():
    for name in set(errors.__all__) - {"RlhfkitError"}:
        error = getattr(errors, name)
        assert issubclass(error, errors.RlhfkitError)
        assert issubclass(error, ValueError | RuntimeError | ImportError | MemoryError)


def test_the_tree_of_errors_is_drawn_whole():
    assert all(name in errors.__doc__ for name in errors.__all__)
