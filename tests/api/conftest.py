from pathlib import Path

import pytest

from tests.tiny import save_family


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Directory of a tiny Llama that writes any bytes; leave it as it is."""
    directory: Path = tmp_path_factory.mktemp("llama")
    return str(save_family("llama", directory, max_position_embeddings=256))
