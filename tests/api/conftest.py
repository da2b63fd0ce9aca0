import pytest

from tests.tiny import Directory


@pytest.fixture
def model_dir(directory_of: Directory) -> str:
    """Directory of a tiny Llama that writes any bytes."""
    return str(directory_of("llama"))
