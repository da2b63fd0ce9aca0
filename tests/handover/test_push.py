"""What goes to a hub, and what never does; the hub is a stand-in on this machine."""

import os
import subprocess
import sys

import pytest

from rlhfkit.errors import CheckpointError, ConfigError
from rlhfkit.handover.push import to_push
from tests.handover.hub import hub
from tests.report.conftest import write_fake_run

WEIGHTS = bytes(range(256)) * 4000  # a megabyte


@pytest.fixture
def model(tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text('{"model_type": "gpt2"}')
    (directory / "tokenizer.json").write_text('{"vocab": {"Ab1Cd2Ef3Gh4Ij5Kl6Mn7": 1}}')
    (directory / "model.safetensors").write_bytes(WEIGHTS)
    return directory


def push(model, address, *more, token="hf_right"):
    """The command, in a process of its own: the library reads its environment once."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_TOKEN": token,
        "HF_HOME": str(model.parent / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    ended = subprocess.run(
        [sys.executable, "-m", "rlhfkit", "push", str(model), "me/mine", *more],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return ended.returncode, ended.stdout, ended.stderr


def test_the_files_of_a_model_go_with_their_sizes(model):
    planned = to_push(model, "me/mine")
    assert [(file.name, file.num_bytes) for file in planned.files] == [
        ("config.json", 22), ("model.safetensors", 1024000), ("tokenizer.json", 39)]  # fmt: skip
    assert str(planned).splitlines()[2] == "  model.safetensors        1,024,000 bytes"


def test_the_card_of_a_run_is_what_it_would_be_now_and_nothing_is_written(tmp_path, model):
    run = write_fake_run(tmp_path / "run")
    run.recipe.write_text("")
    for path in model.iterdir():
        run.model("policy").mkdir(exist_ok=True)
        (run.model("policy") / path.name).write_bytes(path.read_bytes())
    before = sorted(path.name for path in run.path.rglob("*"))
    card = next(file for file in to_push(run.path, "me/mine").files if file.name == "README.md")
    assert b"library_name: transformers" in card.content
    assert sorted(path.name for path in run.path.rglob("*")) == before
    (run.model("policy") / "README.md").write_text("# My own words\n")
    card = next(file for file in to_push(run.path, "me/mine").files if file.name == "README.md")
    assert card.content.read_text() == "# My own words\n"


@pytest.mark.parametrize(
    "name", ["labels.db", "preferences.jsonl", "votes.csv", "pytorch_model.bin", ".env", "deep/.netrc", "id.pem"]
)
def test_votes_data_pickles_and_keys_do_not_go_out_with_a_model(model, name):
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text("x")
    with pytest.raises(ConfigError, match=f"holds {name}, which is no part of a model"):
        to_push(model, "me/mine")


def test_a_link_that_leads_out_of_the_directory_is_refused(model, tmp_path):
    (tmp_path / "elsewhere.txt").write_text("x")
    (model / "notes.txt").symlink_to(tmp_path / "elsewhere.txt")
    with pytest.raises(ConfigError, match=r"holds notes\.txt"):
        to_push(model, "me/mine")


def test_secrets_do_not_go_out(model, monkeypatch):
    (model / "README.md").write_text("fine\nwritten with hf_abcdefghijklmnop\n")
    with pytest.raises(ConfigError, match=r"^README\.md:2 holds what looks like a key or a token; take it out"):
        to_push(model, "me/mine")
    (model / "README.md").write_text("fine\n")
    monkeypatch.setenv("MY_TOKEN", "Ab1Cd2Ef3Gh4Ij5Kl6Mn7")  # an entry of the vocabulary, as chance would have it
    with pytest.raises(ConfigError, match=r"^tokenizer\.json:1 holds the value of an environment variable"):
        to_push(model, "me/mine")


def test_what_is_no_model_is_refused(model, tmp_path):
    with pytest.raises(ConfigError, match=r"'mine' is no name of a repository; expected OWNER/NAME"):
        to_push(model, "mine")
    with pytest.raises(CheckpointError, match="neither a run directory nor a model's"):
        to_push(tmp_path, "me/mine")
    (model / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        to_push(model, "me/mine")


@pytest.mark.thorough
def test_a_model_is_pushed_privately_in_one_commit_and_large_files_by_lfs(model):
    with hub() as (held, address):
        code, output, errors = push(model, address, "--message", "First")
    assert (code, errors) == (0, "") and f"{address}/me/mine has it" in output
    assert held.repos == {"me/mine": True} and held.commits == ["First"]
    assert held.files["me/mine"] == {path.name: path.read_bytes() for path in model.iterdir()}
    assert list(held.objects.values()) == [WEIGHTS]


@pytest.mark.thorough
def test_a_file_in_parts_arrives_whole(model):
    with hub() as (held, address):
        held.chunk_bytes = 300_000
        code, _, errors = push(model, address)
    assert (code, errors) == (0, "") and len(held.parts) == 4
    assert held.files["me/mine"]["model.safetensors"] == WEIGHTS


@pytest.mark.thorough
def test_a_dry_run_asks_nobody(model):
    with hub() as (held, address):
        code, output, _ = push(model, address, "--dry-run")
    assert code == 0 and held.asked == [] and "nothing was sent" in output and "private" in output


@pytest.mark.thorough
def test_a_refusal_names_what_was_expected(model):
    with hub() as (held, address):
        code, _, errors = push(model, address, token="hf_wrong")
        assert code == 1 and "refuses me/mine (401, Invalid credentials" in errors and "hf auth login" in errors
        held.may_write = False
        code, _, errors = push(model, address)
        assert code == 1 and "refuses me/mine (403, You don't have the rights" in errors
        assert "hf_" not in errors and "Traceback" not in errors and len(errors.splitlines()) == 1
        assert push(model, address, token="")[2].startswith(f"error: nobody is logged in to {address}")
    assert held.repos == {} and held.files == {}


@pytest.mark.thorough
def test_nothing_private_lands_in_a_public_repository(model):
    with hub() as (held, address):
        held.repos["me/mine"] = False
        code, _, errors = push(model, address)
        assert code == 1 and "me/mine exists and is public" in errors and held.files == {}
        assert push(model, address, "--public")[0] == 0
        held.repos["me/mine"] = True
        assert "exists and is private" in push(model, address, "--public")[2]


@pytest.mark.thorough
def test_an_upload_that_breaks_off_changes_nothing_and_goes_on_later(model):
    with hub() as (held, address):
        held.breaks_off = True
        code, _, errors = push(model, address)
        assert code == 1 and "did not take me/mine" in errors and "the same command goes on" in errors
        assert held.files == {} and held.commits == [] and len(errors.splitlines()) == 1
        held.breaks_off = False
        assert push(model, address)[0] == 0
        assert held.files["me/mine"]["model.safetensors"] == WEIGHTS
        (model / "config.json").write_text('{"model_type": "qwen2"}')
        held.asked.clear()
        assert push(model, address)[0] == 0
        assert not any(command == "PUT" for command, _ in held.asked)  # the weights are there
    assert held.files["me/mine"]["config.json"] == b'{"model_type": "qwen2"}'


@pytest.mark.thorough
def test_a_hub_that_is_away_is_one_line(model):
    code, _, errors = push(model, "http://127.0.0.1:9")
    assert code == 1 and "did not take me/mine" in errors and len(errors.splitlines()) == 1
