import signal
from functools import cache
from pathlib import Path

import pytest

from tests.tiny import Directory, save_family


def pytest_configure() -> None:
    """Tests send signals, which a shell may have told this process to ignore: Ctrl-C by "&", hang-ups by nohup."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def directory_of(tmp_path_factory: pytest.TempPathFactory) -> Directory:
    """Name of a family -> directory of a tiny model; made once, so leave it as it is."""

    @cache
    def directory(family: str) -> Path:
        return save_family(family, tmp_path_factory.mktemp(family))

    return directory
