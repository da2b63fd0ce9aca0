import os
import signal
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from rlhfkit.machine.dtype import NO_BFLOAT16
from tests.tiny import Directory, save_family

# Tiny models give the same numbers on every machine: "auto" takes float32 for them, whatever the CPU computes faster.
os.environ.setdefault(NO_BFLOAT16, "1")


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


@pytest.fixture
def command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line in this process, with the arguments that it is given → exit code, stdout, stderr."""
    from rlhfkit.cli import app

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["rlhfkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            app.main()
        assert isinstance(end.value.code, int)
        return end.value.code, *capsys.readouterr()

    return run
