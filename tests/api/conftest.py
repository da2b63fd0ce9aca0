import io
from pathlib import Path

import pytest
from rich.console import Console

from rlhfkit.machine.progress import Progress
from tests.tiny import save_family


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Directory of a tiny Llama that writes any bytes; leave it as it is."""
    directory: Path = tmp_path_factory.mktemp("llama")
    return str(save_family("llama", directory, max_position_embeddings=256))


class Heard(Progress):
    """Shows nothing, and remembers its lines."""

    def __init__(self):
        self.file = io.StringIO()
        super().__init__(console=Console(file=self.file, width=1000))

    @property
    def lines(self):
        return self.file.getvalue().splitlines()


@pytest.fixture
def heard() -> Heard:
    """A progress whose lines can be read."""
    return Heard()
