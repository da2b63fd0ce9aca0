from functools import cache
from pathlib import Path

import pytest

from tests.tiny import Directory, save_family


@pytest.fixture(scope="session")
def directory_of(tmp_path_factory: pytest.TempPathFactory) -> Directory:
    """Name of a family -> directory of a tiny model; made once, so leave it as it is."""

    @cache
    def directory(family: str) -> Path:
        return save_family(family, tmp_path_factory.mktemp(family))

    return directory
