"""What came from the environment is shown by its name, however encoded; what stands plain in an address is refused."""

import html
import json
import logging
import os
import subprocess
import sys
from urllib.parse import quote

import pytest

from rlhfkit.config import secrets
from rlhfkit.config.feedback import usable_database
from rlhfkit.config.load import load_recipe
from rlhfkit.config.rewards import HttpRewardConfig
from rlhfkit.config.secrets import filled, hidden, hidden_in, remember, secret_in
from rlhfkit.errors import ConfigError, RewardError, StoreError
from rlhfkit.feedback.database import Database
from rlhfkit.machine.progress import Progress
from rlhfkit.records import Prompt
from rlhfkit.rewards import ScoredText
from rlhfkit.rewards.http import HttpReward

TOKEN = 'Zq81/pá ss+%w"x'


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(secrets, "_remembered", {})


@pytest.mark.parametrize(
    "shown",
    [
        TOKEN,
        quote(TOKEN),
        quote(TOKEN, safe=""),
        quote(TOKEN, safe="").lower().replace("zq81", "Zq81"),
        json.dumps(TOKEN),
        json.dumps(TOKEN, ensure_ascii=False),
        repr(TOKEN),
        html.escape(f"<b>{TOKEN}"),
        f"https://host/hook/{quote(TOKEN, safe='')}/score?x={TOKEN}",
    ],
)
def test_a_secret_is_hidden_however_it_is_encoded(shown):
    remember("HOOK", TOKEN)
    found = hidden(f"before {shown} after")
    assert "Zq81" not in found
    assert "${HOOK}" in found
    assert found.startswith("before ")
    assert found.endswith(" after")


def test_a_short_value_is_hidden_in_addresses_and_spoils_no_other_word():
    remember("PORT", "80")
    remember("PIN", "12345")
    assert hidden("http://host:80/x, 80 %, 1.80, 123456, 12345") == "http://host:${PORT}/x, 80 %, 1.80, 123456, ${PIN}"


def test_the_longer_of_two_secrets_is_hidden_whole():
    remember("ONE", "abcdefgh")
    remember("TWO", "abcdefghij")
    assert hidden("abcdefghij abcdefgh") == "${TWO} ${ONE}"


def test_variables_that_are_called_secrets_are_hidden_without_being_named(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_a1b2c3d4e5")
    monkeypatch.setenv("PGPASSWORD", "x")
    assert hidden("Bearer hf_a1b2c3d4e5, x") == "Bearer ${HF_TOKEN}, x"
    assert hidden_in({"a": ["hf_a1b2c3d4e5", 3, None, True]}) == {"a": ["${HF_TOKEN}", 3, None, True]}


def test_a_variable_that_is_not_set_is_reported(monkeypatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(ConfigError, match="database names the environment variable 'NOT_SET', which is not set"):
        filled("postgresql://a:${NOT_SET}@h/d", of="database")


# ── what may not stand in an address ─────────────────────────────────────────────────────────────────────────────────

PLAIN = [
    *(f"https://h/f?{name}=S3" for name in ("code", "pwd", "pass", "jwt", "sig", "key", "apiKey", "api-key", "TOKEN")),
    *(f"https://h/f?{name}=S3" for name in ("passwd", "access_token", "X-Amz-Signature", "auth", "session_id", "otp")),
    "https://h/f?%74oken=S3",
    "https://h/f?a=1&b=2&secret=S3",
    "https://h/f;token=S3",
    "https://h/f#access_token=S3",
    "https://ghp_S3@h/f",
    "https://S3@h/f",
    "https://me:S3@h/f",
    "https://:S3@h/f",
    "https://me:pa/S3@h/f",
    "https://h/f?ghp_S3",
    "https://h/f?id=ghp_S3aaaaaaaaaa",
    "https://hooks.h/services/T00/B00/aB3dE6gH9jK2mN5pQ8sT1vS3",
    "https://h/hf_S3abcdefghijkl/score",
    "https://h/f?token=${NAME}S3",
]


@pytest.mark.parametrize("address", PLAIN)
def test_a_secret_that_stands_plain_is_refused_and_not_shown(address):
    assert secret_in(address)
    with pytest.raises(ConfigError) as caught:
        load_recipe("demo", [f'reward={{type="http", url="{address}"}}'])
    assert "write ${NAME} in its place" in str(caught.value)
    assert "S3" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:8750/hook/${HOOK}/score?token=${T}&code=${C}",
        "https://me:${PASSWORD}@h/f",
        "https://${TOKEN}@h/f",
        "https://h:8080/v1/models/Meta-Llama-3-8B-Instruct-2024/score?version=2&encoding=utf8&top=3",
        "https://h/3f2a9c1e-1b2c-4d5e-8f90-abcdefabcdef/score",
        "https://[::1]:9/score",
    ],
)
def test_an_address_without_a_secret_is_taken_as_it_stands(address):
    assert secret_in(address) is None
    assert HttpRewardConfig(type="http", url=address).url == address


@pytest.mark.parametrize("name", ["hf_abcdefS3", "not a name", "Bearer S3"])
def test_a_token_in_the_place_of_a_variables_name_is_refused_and_not_shown(name):
    with pytest.raises(ConfigError, match="no name of an environment variable") as caught:
        load_recipe("demo", [f'reward={{type="http", url="https://h/f", token_env="{name}"}}'])
    assert name not in str(caught.value)


@pytest.mark.parametrize(
    "database",
    [
        "postgresql://h/d?sslpassword=S3",
        "postgresql://h/d?password=S3",
        "postgresql://me:S3@h/d",
        "postgresql://me:p/S3@h/d",
        "mysql://me:S3@h/d",
        "host=h password=S3 dbname=d",
    ],
)
def test_a_database_with_a_secret_is_refused_with_a_remedy(database):
    with pytest.raises(ValueError, match=r"PGPASSWORD or in ~/\.pgpass") as caught:
        usable_database(database)
    assert "S3" not in str(caught.value)


@pytest.mark.parametrize("database", ["postgresql://me@h:5432/d?passfile=/home/me/.pgpass&sslkey=/k", "a/labels.db"])
def test_a_database_without_a_secret_is_taken(database):
    assert usable_database(database) == database


# ── where text leaves ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_failing_endpoint_shows_the_name_of_what_its_path_holds(monkeypatch, caplog):
    monkeypatch.setenv("HOOK", "S3CRET/VALUE")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    config = HttpRewardConfig(type="http", url="http://127.0.0.1:9/hook/${HOOK}/score", retries=0, patience_seconds=0)
    with caplog.at_level(logging.DEBUG), pytest.raises(RewardError) as caught:
        HttpReward(config).score([ScoredText(Prompt("a"), "a", "b")])
    assert "http://127.0.0.1:9/hook/${HOOK}/score gave no answer" in str(caught.value)
    logging.getLogger("httpx").warning("POST %s", "http://127.0.0.1:9/hook/S3CRET%2FVALUE/score")
    assert "S3CRET" not in caplog.text
    assert "${HOOK}" in caplog.text


def test_the_name_of_a_database_and_its_errors_show_no_secret(monkeypatch):
    pytest.importorskip("psycopg")
    monkeypatch.setenv("DB_SECRET", "S3CRET VALUE")
    address = "postgresql://me:${DB_SECRET}@127.0.0.1:9/d?sslpassword=${DB_SECRET}"
    assert usable_database(address) == address
    database = Database(address)
    with pytest.raises(StoreError, match="connection") as caught:
        database.table_names()
    assert "S3CRET" not in f"{database.name} {caught.value}"


def test_the_terminal_shows_no_secret(capsys):
    remember("HOOK", "S3CRETVALUE")
    Progress().warn("https://h/S3CRETVALUE is silent")
    shown = capsys.readouterr()
    assert "https://h/${HOOK} is silent" in shown.out + shown.err


@pytest.mark.thorough
@pytest.mark.parametrize("options", [[], ["--debug"]])
def test_no_output_of_a_failing_command_holds_the_secret(tmp_path, options):
    (tmp_path / "mine.py").write_text(
        "import os\ndef score(prompts, responses): raise RuntimeError('no access with ' + os.environ['API_TOKEN'])\n"
    )
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        'name = "r"\nstages = ["ppo"]\n[model]\npath = "none"\n[data.prompts]\npath = "p.jsonl"\n'
        '[reward]\ntype = "http"\nurl = "http://127.0.0.1:9/${API_TOKEN}"\n'
    )
    command = [sys.executable, "-m", "rlhfkit", "run", str(recipe), "--run-dir", str(tmp_path / "run"), *options]
    environment = {**os.environ, "API_TOKEN": "S3CRETVALUE"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 1
    assert "S3CRETVALUE" not in done.stdout + done.stderr
