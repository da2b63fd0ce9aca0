import ast
from pathlib import Path

import pytest

from tests.planted_faults import FAULTS, ROOT, Fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_fault_can_be_planted(fault: Fault) -> None:
    """The list follows the code: the right line stands once in its file, and the wrong one is Python."""
    text = Path(ROOT, "src/rlhfkit", fault.file).read_text(encoding="utf-8")
    assert text.count(fault.right) == 1
    ast.parse(text.replace(fault.right, fault.wrong))
