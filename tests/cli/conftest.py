"""What the tests of the command line share."""

import pytest


@pytest.fixture
def invoke(command_line, monkeypatch, tmp_path):
    """Run the command line in a directory of its own → exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    return command_line
