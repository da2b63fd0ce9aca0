"""Fixtures of these tests."""

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bad_input.desk import Desk, Endpoint
from tests.tiny import Directory


@pytest.fixture
def desk(
    tmp_path: Path,
    directory_of: Directory,
    command_line: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Desk]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a fixed module may have the size and second of the old one
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    desk = Desk(tmp_path, directory_of("llama"), command_line)
    capsys.readouterr()  # what making the model said
    yield desk
    sys.modules.pop("rewarding", None)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    thread = threading.Thread(target=endpoint.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()
