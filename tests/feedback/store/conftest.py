"""A clock that stands, and stores on databases of each kind."""

import pytest

from rlhfkit.feedback.states import StoreSettings
from rlhfkit.feedback.store import Store
from tests.feedback.store.desk import Clock


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make_store(database, clock):
    """Opens the same database, as often as asked."""
    opened = []

    def make(**settings):
        opened.append(Store.open(database, settings=StoreSettings(**settings) if settings else None, clock=clock))
        return opened[-1]

    yield make
    for store in opened:
        store.close()
