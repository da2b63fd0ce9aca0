"""What tests of labelling share."""

import pytest

from rlhfkit.feedback.store import Store


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "labels.db") as opened:
        yield opened
