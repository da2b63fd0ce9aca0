"""A hub that does not answer costs seconds, not minutes, and the message says what was probably meant."""

import pytest
from transformers import AutoConfig

from rlhfkit.errors import ModelError
from rlhfkit.models import hub
from rlhfkit.models.inspection import inspect_model


class NoConnection:
    """As the hub's client where there is no net."""

    def __init__(self):
        self.asked = 0

    def head(self, url, timeout):
        self.asked += 1
        assert timeout < 10
        raise OSError("Name or service not known")


@pytest.fixture
def no_connection(monkeypatch, tmp_path):
    session = NoConnection()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "get_session", lambda: session)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    hub._answers.cache_clear()
    yield session
    hub._answers.cache_clear()


@pytest.mark.parametrize("name", ["tuned2", "someone/tuned2"])
def test_without_a_connection_the_hub_is_asked_once_and_not_for_each_file(no_connection, monkeypatch, tmp_path, name):
    (tmp_path / "tuned").mkdir()
    (tmp_path / "someone" / "tuned").mkdir(parents=True)
    given = []

    def from_pretrained(path, **options):
        given.append(options["local_files_only"])
        raise OSError("not in the cache")

    monkeypatch.setattr(AutoConfig, "from_pretrained", from_pretrained)
    near = name[:-1]
    with pytest.raises(ModelError, match=rf"did you mean {near}\?\), and the hub does not give .* does not answer"):
        inspect_model(name, subject="model")
    assert given == [True] and no_connection.asked == 1


def test_a_hub_that_is_switched_off_is_not_asked(no_connection, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub.hub_options("someone/model") == {"local_files_only": True}
    assert no_connection.asked == 0


def test_a_directory_needs_no_hub(no_connection, tmp_path):
    assert hub.hub_options(str(tmp_path)) == {} and no_connection.asked == 0


def test_a_hub_that_answers_is_used(no_connection, monkeypatch):
    monkeypatch.setattr(no_connection, "head", lambda url, timeout: None)
    assert hub.hub_options("someone/model") == {}
