"""What of the driver's environment goes to the actors of a cluster."""

import pytest

pytest.importorskip("ray")

from rlhfkit.launch.connecting import passed_on


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "PGPASSWORD",
        "RLHFKIT_API_KEY",
        "VLLM_API_KEY",
        "RLHFKIT_token",
        "RAY_AUTH_TOKEN",
    ],
)
def test_no_secret_goes_to_actors(monkeypatch, name):
    monkeypatch.setenv(name, "hush")
    assert "hush" not in passed_on().values()


@pytest.mark.parametrize("name", ["PYTHONPATH", "RLHFKIT_NO_BFLOAT16", "HF_HUB_OFFLINE", "ATEN_CPU_CAPABILITY"])
def test_what_decides_about_numbers_does(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert passed_on()[name] == "1"
