import base64
import gzip
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rlhfkit.config.load import load_recipe
from rlhfkit.config.rewards import HttpRewardConfig
from rlhfkit.errors import ConfigError, RewardError
from rlhfkit.rewards import HttpReward


class Endpoint:
    """A reward server in this process: `answers` maps the number of a request and its body to (status, bytes)."""

    def __init__(self) -> None:
        self.requests: list[dict[str, list[str]]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.more_headers: dict[str, str] = {}
        self.answer: Callable[[int, dict[str, list[str]]], tuple[int, bytes]]
        self.answer = lambda number, body: (200, lengths(body))
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                endpoint.requests.append(body)
                endpoint.paths.append(self.path)
                endpoint.headers.append({name.lower(): value for name, value in self.headers.items()})
                status, content = endpoint.answer(len(endpoint.requests), body)
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                for name, value in endpoint.more_headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                pass

        class QuietServer(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a client that left after its timeout

        self.server = QuietServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        self.url = f"http://{self.address}/score"


def lengths(body: dict[str, list[str]]) -> bytes:
    return json.dumps({"scores": [len(response) for response in body["responses"]]}).encode()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    thread = threading.Thread(target=endpoint.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield endpoint
    endpoint.server.shutdown()
    thread.join(timeout=5)
    endpoint.server.server_close()


def build(url: str, **settings: object) -> HttpReward:
    quick = {"retries": 2, "retry_wait_seconds": 0.01, "timeout_seconds": 5.0}
    return HttpReward(HttpRewardConfig.model_validate({"type": "http", "url": url, **quick, **settings}))


def test_endpoint_scores_in_batches_and_in_order(endpoint: Endpoint, make_episodes):
    scores = build(endpoint.url, batch_episodes=2).score(make_episodes("a", "bb", "ccc", "dddd", "eeeee"))
    assert scores.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert [request["responses"] for request in endpoint.requests] == [["a", "bb"], ["ccc", "dddd"], ["eeeee"]]
    assert endpoint.requests[1]["prompts"] == ["prompt 2", "prompt 3"]


def test_no_episodes_need_no_request(endpoint: Endpoint):
    assert build(endpoint.url).score([]).shape == (0,)
    assert endpoint.requests == []


def test_text_that_is_not_valid_unicode_is_sent(endpoint: Endpoint, make_episodes):
    assert build(endpoint.url).score(make_episodes("\ud800 é \u202e")).tolist() == [5.0]
    assert endpoint.requests[0]["responses"] == ["\ud800 é \u202e"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_endpoint_that_recovers_is_asked_again(endpoint: Endpoint, make_episodes, status: int):
    endpoint.answer = lambda number, body: (status, b"busy") if number < 3 else (200, lengths(body))
    assert build(endpoint.url).score(make_episodes("abc")).tolist() == [3.0]
    assert len(endpoint.requests) == 3


def test_waits_double(endpoint: Endpoint, make_episodes):
    times: list[float] = []

    def answer(number: int, body: dict[str, list[str]]) -> tuple[int, bytes]:
        times.append(time.monotonic())
        return 500, b""

    endpoint.answer = answer
    with pytest.raises(RewardError):
        build(endpoint.url, retry_wait_seconds=0.05).score(make_episodes("a"))
    assert times[1] - times[0] >= 0.05
    assert times[2] - times[1] >= 0.10


def test_an_endpoint_that_stays_broken_stops_the_run_with_its_words(endpoint: Endpoint, make_episodes):
    endpoint.answer = lambda number, body: (500, b"x" * 150 + b"y" * 150)
    with pytest.raises(RewardError) as caught:
        build(endpoint.url).score(make_episodes("abc"))
    message = str(caught.value)
    assert f"{endpoint.url} answered 500" in message
    assert "at the last of 3 attempts" in message
    assert "x" * 150 + "y" * 50 in message
    assert "y" * 51 not in message
    assert len(endpoint.requests) == 3


def test_a_refused_request_is_not_repeated(endpoint: Endpoint, make_episodes):
    endpoint.answer = lambda number, body: (401, b"who are you")
    with pytest.raises(RewardError, match=r"answered 401 .*who are you"):
        build(endpoint.url).score(make_episodes("abc"))
    assert len(endpoint.requests) == 1


def test_an_endpoint_that_hangs_is_left_after_the_timeout(endpoint: Endpoint, make_episodes):
    release = threading.Event()
    endpoint.answer = lambda number, body: (200, lengths(body)) if release.wait(5) else (200, b"")
    started = time.monotonic()
    with pytest.raises(RewardError, match=r"gave no answer \(ReadTimeout.*last of 2 attempts"):
        build(endpoint.url, timeout_seconds=0.2, retries=1).score(make_episodes("abc"))
    assert time.monotonic() - started < 3
    release.set()


def test_nobody_listening_is_an_error_with_the_address(make_episodes):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/score"
    with pytest.raises(RewardError, match=rf"{url} gave no answer \(ConnectError.*last of 1 attempts"):
        build(url, retries=0).score(make_episodes("abc"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<html>hello</html>", "not JSON: '<html>hello</html>'"),
        (b"\xff\xfe", "not JSON"),
        (b"", "not JSON: ''"),
        (b"[1.0, 2.0]", 'without a list "scores"'),
        (b'{"score": [1.0, 2.0]}', 'without a list "scores"'),
        (b'{"scores": 1.0}', 'without a list "scores"'),
        (b'{"scores": [1.0]}', "returned 1 score for 2 responses"),
        (b'{"scores": ["a", "b"]}', "not a list of numbers"),
        (b'{"scores": [1.0, null]}', "not a list of numbers"),
        (b'{"scores": [1.0, NaN]}', "returned nan for response 1"),
        (b'{"scores": [1.0, 1' + b"0" * 400 + b"]}", "returned inf for response 1"),
        (b'{"scores": [1.0, {"score": 2}]}', "not a list of numbers"),
        (b'{"scores": "12"}', 'without a list "scores"'),
        (b"[" * 100_000, "not JSON"),
        (b'{"scores": [' + b" " * 20_000_000 + b"1, 2]}", "answered with more than 16 MB"),
    ],
)
def test_a_malformed_answer_is_an_error_at_once(endpoint: Endpoint, make_episodes, content: bytes, words: str):
    endpoint.answer = lambda number, body: (200, content)
    with pytest.raises(RewardError, match=words):
        build(endpoint.url).score(make_episodes("a", "b"))
    assert len(endpoint.requests) == 1


def test_an_answer_that_cannot_be_unpacked_is_final_at_once(endpoint: Endpoint, make_episodes):
    endpoint.answer = lambda number, body: (200, b"not gzip at all")
    endpoint.more_headers = {"content-encoding": "gzip"}
    with pytest.raises(RewardError, match=r"cannot be unpacked \(.*content-encoding"):
        build(endpoint.url).score(make_episodes("a"))
    assert len(endpoint.requests) == 1


def test_an_answer_that_unpacks_without_end_is_bounded(endpoint: Endpoint, make_episodes):
    packed = gzip.compress(b'{"scores": [' + b" " * 50_000_000 + b"1]}")
    endpoint.answer = lambda number, body: (200, packed)
    endpoint.more_headers = {"content-encoding": "gzip"}
    with pytest.raises(RewardError, match="answered with more than 16 MB"):
        build(endpoint.url).score(make_episodes("a"))


def test_a_packed_answer_is_read(endpoint: Endpoint, make_episodes):
    endpoint.answer = lambda number, body: (200, gzip.compress(lengths(body)))
    endpoint.more_headers = {"content-encoding": "gzip"}
    assert build(endpoint.url).score(make_episodes("a", "bc")).tolist() == [1.0, 2.0]


def test_token_is_sent_and_never_shown(endpoint: Endpoint, make_episodes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("REWARD_TOKEN", " s3cret-token\n")
    endpoint.answer = lambda number, body: (403, b"not allowed: Bearer s3cret-token")
    with pytest.raises(RewardError) as caught:
        build(endpoint.url, token_env="REWARD_TOKEN").score(make_episodes("a"))
    assert endpoint.headers[0]["authorization"] == "Bearer s3cret-token"
    assert "s3cret-token" not in str(caught.value)
    assert "not allowed: Bearer ${REWARD_TOKEN}" in str(caught.value)


def test_credentials_in_the_address_come_from_the_environment_and_are_not_shown(
    endpoint: Endpoint, make_episodes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("REWARD_PASSWORD", "hunter/2")
    monkeypatch.setenv("REWARD_KEY", "k1k1")
    endpoint.answer = lambda number, body: (500, b"broken: hunter/2, k1k1")
    address = f"http://anna:${{REWARD_PASSWORD}}@{endpoint.address}/score?key=${{REWARD_KEY}}&version=2"
    with pytest.raises(RewardError) as caught:
        build(address, retries=0).score(make_episodes("a"))
    message = str(caught.value)
    assert endpoint.url in message
    assert "broken: ${REWARD_PASSWORD}, ${REWARD_KEY}" in message
    assert not any(secret in message for secret in ("anna", "hunter", "k1k1"))
    assert endpoint.headers[0]["authorization"] == f"Basic {base64.b64encode(b'anna:hunter/2').decode()}"
    assert endpoint.paths == ["/score?key=k1k1&version=2"]


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("http://anna:hunter2@host/score", "a password"),
        ("http://host/score?api_key=hunter2", "the parameter 'api_key'"),
        ("http://host/score?v=1&Access_Token=x${NAME}hunter2", "the parameter 'Access_Token'"),
    ],
)
def test_a_secret_in_the_address_is_refused_and_not_shown(address: str, what: str):
    with pytest.raises(ConfigError) as caught:
        load_recipe("demo", [f'reward={{type="http", url="{address}"}}'])
    assert f"the address holds {what}, which would stand in the files" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_an_environment_variable_of_the_address_that_is_not_set_is_a_config_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("REWARD_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"reward\.url names the environment variable 'REWARD_KEY', which is not set"):
        build("http://host/score?key=${REWARD_KEY}")


def test_an_endpoint_that_asks_to_wait_is_left_alone_for_so_long(endpoint: Endpoint, make_episodes):
    times: list[float] = []

    def answer(number: int, body: dict[str, list[str]]) -> tuple[int, bytes]:
        times.append(time.monotonic())
        return (429, b"") if number == 1 else (200, lengths(body))

    endpoint.answer = answer
    endpoint.more_headers = {"retry-after": "1"}
    assert build(endpoint.url).score(make_episodes("ab")).tolist() == [2.0]
    assert times[1] - times[0] >= 1.0


def test_a_long_silence_is_reported_once_and_its_end_too(endpoint: Endpoint, make_episodes):
    told: list[str] = []
    endpoint.answer = lambda number, body: (500, b"") if number < 6 else (200, lengths(body))
    settings = {"type": "http", "url": endpoint.url, "retry_wait_seconds": 0.01, "patience_seconds": 30}
    HttpReward(HttpRewardConfig.model_validate(settings), tell=told.append).score(make_episodes("a"))
    assert [re.sub(r"\d+ s", "N s", text.removeprefix(endpoint.url)) for text in told] == [
        " answered 500 Internal Server Error: ''; trying again for up to N s",
        " answers again, after N s",
    ]


@pytest.mark.parametrize("token", [None, "", "  ", "to\tken", "tok\u00e9n"])
def test_a_token_that_is_missing_or_unusable_is_a_config_error(monkeypatch: pytest.MonkeyPatch, token: str | None):
    monkeypatch.delenv("REWARD_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("REWARD_TOKEN", token)
    with pytest.raises(ConfigError, match="'REWARD_TOKEN'") as caught:
        build("http://127.0.0.1:9/score", token_env="REWARD_TOKEN")
    assert not (token or "").strip() or token not in str(caught.value)


def test_a_malformed_address_is_a_config_error():
    with pytest.raises(ConfigError, match=r"reward\.url is not an address"):
        build("http://127.0.0.1:notaport/score")


def test_an_address_without_a_host_is_a_config_error():
    with pytest.raises(ConfigError, match=r"reward\.url = 'http://' names no host; expected https://host/path"):
        build("http://")
