"""An HTTP endpoint that is asked for scores: patiently, within bounds, and without showing a secret."""

import itertools
import json
import logging
import os
import time
from collections.abc import Callable
from urllib.parse import quote, urlsplit

import httpx

from rlhfkit.config.rewards import EndpointConfig
from rlhfkit.config.secrets import filled, hidden, remember
from rlhfkit.errors import ConfigError, RewardError

__all__ = ["TRIAL_SECONDS", "Endpoint", "excerpt"]

logger = logging.getLogger(__name__)

LONGEST_WAIT_SECONDS = 30.0
TRIAL_SECONDS = 3.0
LARGEST_ANSWER = 16_000_000
"""Bytes; a score takes some 20."""
PACKED = frozenset({"content-encoding", "content-length", "transfer-encoding"})
"""Headers that say how the answer was sent, and no longer hold once it is unpacked."""
NOTABLE_ATTEMPTS = 3
"""A single failed attempt is not worth a message."""


class Endpoint:
    """Answers of an endpoint to JSON that is posted to it.

    No answer in time, 429 and 5xx are tried again, each time after twice the wait of the last, or as long as the
    endpoint asks for; any other fault is final at once.
    """

    def __init__(
        self, config: EndpointConfig, *, expected: str, path: str = "", tell: Callable[[str], None] = logger.warning
    ) -> None:
        """Check the address, with `path` at its end, and read the bearer token; nothing is sent yet.

        `expected` says in messages what an answer looks like; `tell` hears when it has to wait.
        Raises: ConfigError where the address is malformed or the token's environment variable is not set.
        """
        self._config, self._tell, self._expected = config, tell, expected
        address = _with_path(config.url, path)
        self._url = filled(address, of="reward.url", encode=lambda value: quote(value, safe=""))
        try:
            url = httpx.URL(self._url)
        except httpx.InvalidURL as error:
            raise ConfigError(
                f"reward.url is not an address ({hidden(str(error))}); expected https://host/path"
            ) from None
        if not url.host:
            raise ConfigError(f"reward.url = {config.url!r} names no host; expected https://host/path")
        shown = urlsplit(address)
        self.shown = shown._replace(netloc=shown.netloc.rpartition("@")[2], query="", fragment="").geturl()
        """What messages show: ${NAME} as it stands, without user name, password and query."""
        self._token = _read_token(config.token_env)
        for library in ("httpx", "httpcore"):
            logging.getLogger(library).addFilter(_without_secrets)

    def client(self) -> httpx.Client:
        """What keeps connections open, for several threads if need be; to be closed."""
        return httpx.Client(timeout=self._config.timeout_seconds)

    def post(self, client: httpx.Client, body: object, *, before: Callable[[], None] = lambda: None) -> object:
        """The JSON of the first answer that reports success; `before` is called before each attempt.

        Raises: RewardError where there is none after the last attempt, or it is not JSON.
        """
        answer = self._post(client, json.dumps(body).encode("ascii"), before)
        try:
            return answer.json()
        except (ValueError, RecursionError) as error:
            raise RewardError(
                f"{self.shown} answered something that is not JSON: {excerpt(answer.text)}; expected {self._expected}"
            ) from error

    def _post(self, client: httpx.Client, body: bytes, before: Callable[[], None]) -> httpx.Response:
        """The first answer that reports success."""
        headers = {"content-type": "application/json"}
        if self._token is not None:
            headers["authorization"] = f"Bearer {self._token}"
        begin = time.monotonic()
        for attempt in itertools.count(1):
            asked_seconds = 0.0
            before()
            try:
                answer = self._bounded(client.build_request("POST", self._url, content=body, headers=headers), client)
            except httpx.RequestError as error:
                fault = hidden(f"gave no answer ({type(error).__name__}: {error})")
            else:
                if answer.is_success:
                    if attempt >= NOTABLE_ATTEMPTS:
                        self._tell(f"{self.shown} answers again, after {time.monotonic() - begin:.0f} s")
                    return answer
                fault = f"answered {answer.status_code} {hidden(answer.reason_phrase)}: {excerpt(answer.text)}"
                if answer.status_code != httpx.codes.TOO_MANY_REQUESTS and answer.status_code < 500:
                    raise RewardError(f"{self.shown} {fault}; fix the request or the endpoint")
                asked_seconds = _retry_after(answer)
            left = self._config.patience_seconds - (time.monotonic() - begin)
            if left <= 0 or (self._config.retries is not None and attempt > self._config.retries):
                raise self._given_up(fault, attempt, time.monotonic() - begin)
            wait = min(self._config.retry_wait_seconds * 2 ** min(attempt - 1, 30), LONGEST_WAIT_SECONDS)
            if attempt == NOTABLE_ATTEMPTS - 1:
                self._tell(f"{self.shown} {fault}; trying again for up to {left:.0f} s")
            time.sleep(min(max(wait, asked_seconds), left))
        raise AssertionError("the loop above has no end of its own")

    def _bounded(self, request: httpx.Request, client: httpx.Client) -> httpx.Response:
        """The whole answer to a request, unless it is larger than any list of scores, packed or unpacked.

        Raises: RewardError where it is, or cannot be unpacked; httpx.RequestError where there is none.
        """
        answer = client.send(request, stream=True)
        blocks, num_bytes = [], 0
        try:
            for block in answer.iter_bytes():
                blocks.append(block)
                num_bytes += len(block)
                if num_bytes > LARGEST_ANSWER:
                    raise RewardError(
                        f"{self.shown} answered with more than {LARGEST_ANSWER / 1e6:.0f} MB; expected "
                        f"{self._expected}; correct the endpoint"
                    )
        except httpx.DecodingError as error:
            raise RewardError(
                f"{self.shown} answered something that cannot be unpacked ({error}); correct the endpoint's "
                "content-encoding"
            ) from error
        finally:
            answer.close()
        headers = [(name, value) for name, value in answer.headers.items() if name not in PACKED]
        return httpx.Response(answer.status_code, headers=headers, content=b"".join(blocks), request=request)

    def _given_up(self, fault: str, attempts: int, seconds: float) -> RewardError:
        config = self._config
        return RewardError(
            f"{self.shown} {fault} at the last of {attempts} attempts in {seconds:.0f} s; see that the endpoint "
            f"runs, then give the same command again to go on, or raise reward.patience_seconds "
            f"({config.patience_seconds:g}), reward.timeout_seconds ({config.timeout_seconds:g})"
            + (f" or reward.retries ({config.retries})" if config.retries is not None else "")
        )


def excerpt(text: str) -> str:
    """The beginning of what an endpoint said, without secrets."""
    return repr(hidden(text)[:200])


def _with_path(address: str, path: str) -> str:
    parts = urlsplit(address)
    base = parts.path.rstrip("/")
    return address if not path or base.endswith(path) else parts._replace(path=base + path).geturl()


def _retry_after(answer: httpx.Response) -> float:
    """Seconds that the endpoint asks to be left alone; 0 where it does not say, or gives a date."""
    asked = answer.headers.get("retry-after", "")
    return float(asked) if asked.isascii() and asked.isdigit() else 0.0


def _without_secrets(record: logging.LogRecord) -> bool:
    """Lets a record of the library pass, without the secrets of addresses and headers."""
    record.msg, record.args = hidden(record.getMessage()), None
    return True


def _read_token(variable: str | None) -> str | None:
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    if not token:
        raise ConfigError(
            f"reward.token_env names the environment variable {variable!r}, which is not set; export it, "
            "or remove reward.token_env if the endpoint needs no token"
        )
    if not (token.isascii() and token.isprintable()):
        raise ConfigError(f"the token in the environment variable {variable!r} has characters that no header may have")
    remember(variable, token)
    return token
