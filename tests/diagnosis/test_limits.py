"""There is one table of limits: nothing that tells what is wrong with a run has numbers of its own."""

import ast
from pathlib import Path

import pytest

import rlhfkit

PACKAGE = Path(rlhfkit.__file__).parent
WHO_TELLS = [
    *PACKAGE.glob("doctor/*.py"),
    *PACKAGE.glob("diagnosis/**/*.py"),
    *(PACKAGE / "training" / f"{name}.py" for name in ("preflight", "reactions")),
]


def shares(node):
    """Numbers with a point below a node, apart from 0 and 1, which are no matter of taste."""
    found = (each.value for each in ast.walk(node) if isinstance(each, ast.Constant))
    return [value for value in found if isinstance(value, float) and value not in {0.0, 1.0}]


@pytest.mark.parametrize("path", WHO_TELLS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_limits_stand_in_the_one_table(path):
    if path.name == "limits.py":
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants = [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    own = [ast.unparse(node) for node in constants if shares(node) and "SECONDS" not in ast.unparse(node)]
    compared = [node for node in ast.walk(tree) if isinstance(node, ast.Compare) and shares(node)]
    own += [ast.unparse(node) for node in compared if not isinstance(node.ops[0], ast.Eq | ast.NotEq)]
    rules = {line for line in own if " = Rule(" in line}  # their texts are made of the table's numbers
    assert set(own) - rules == set()
