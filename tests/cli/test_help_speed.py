"""`--help` and `recipes` answer at once, as they import nothing heavy."""

import subprocess
import sys

import pytest

HEAVY = ["torch", "transformers", "numpy", "matplotlib", "datasets", "pandas", "sklearn"]

PROBE = f"""
import sys
from rlhfkit.cli.app import main
try:
    main()
except SystemExit as end:
    print("exit", end.code, [name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["recipes", "--help"],
        ["generate", "--help"],
        ["evaluate", "--help"],
        ["report", "--help"],
        ["cluster", "--help"],
        ["doctor", "--help"],
        ["export", "--help"],
        ["import", "--help"],
        ["recipes"],
    ],
    ids=" ".join,
)
def test_command_imports_nothing_heavy(arguments):
    ended = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True)
    assert ended.stderr == "exit 0 []\n"
    assert ended.stdout


def test_a_wrong_recipe_is_refused_before_anything_heavy_is_imported():
    ended = subprocess.run([sys.executable, "-c", PROBE, "run", "nonsense"], capture_output=True, text=True)
    assert ended.stderr.splitlines()[-1] == "exit 1 []"
