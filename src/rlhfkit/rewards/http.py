"""An HTTP endpoint as a reward."""

import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from urllib.parse import quote, urlsplit

import httpx
import torch

from rlhfkit.config.rewards import HttpRewardConfig
from rlhfkit.config.secrets import filled, hidden, remember
from rlhfkit.distributed.ranks import on_first
from rlhfkit.errors import ConfigError, RewardError
from rlhfkit.rewards.source import ScoredText, check_scores

__all__ = ["HttpReward"]

logger = logging.getLogger(__name__)

LONGEST_WAIT_SECONDS = 30.0
TRIAL_SECONDS = 3.0
LARGEST_ANSWER = 16_000_000
"""Bytes; a score takes some 20."""
PACKED = frozenset({"content-encoding", "content-length", "transfer-encoding"})
"""Headers that say how the answer was sent, and no longer hold once it is unpacked."""
NOTABLE_ATTEMPTS = 3
"""A single failed attempt is not worth a message."""


class HttpReward:
    """Scores of an endpoint that answers POST {"prompts": […], "responses": […]} with {"scores": […]}.

    No answer in time, 429 and 5xx are tried again, each time after twice the wait of the last, or as long as the
    endpoint asks for; any other fault is final at once. There is no score to fall back on: when patience is over the
    run stops, and goes on later where it stopped.
    """

    def __init__(self, config: HttpRewardConfig, *, tell: Callable[[str], None] = logger.warning) -> None:
        """Check the address and read the bearer token; nothing is sent yet. `tell` hears when it has to wait.

        Raises: ConfigError where the address is malformed or the token's environment variable is not set.
        """
        self._config, self._tell = config, tell
        self._url = filled(config.url, of="reward.url", encode=lambda value: quote(value, safe=""))
        try:
            url = httpx.URL(self._url)
        except httpx.InvalidURL as error:
            raise ConfigError(
                f"reward.url is not an address ({hidden(str(error))}); expected https://host/path"
            ) from None
        if not url.host:
            raise ConfigError(f"reward.url = {config.url!r} names no host; expected https://host/path")
        # What messages show: ${NAME} as it stands, without user name, password and query.
        shown = urlsplit(config.url)
        self._public_url = shown._replace(netloc=shown.netloc.rpartition("@")[2], query="", fragment="").geturl()
        self._token = _read_token(config.token_env)
        for library in ("httpx", "httpcore"):
            logging.getLogger(library).addFilter(_without_secrets)

    def impatient(self) -> "HttpReward":
        """The same, for a first try: whoever waits at the screen wants to know at once that nobody listens."""
        patience = min(self._config.patience_seconds, TRIAL_SECONDS)
        return HttpReward(self._config.model_copy(update={"patience_seconds": patience}), tell=lambda text: None)

    def score(self, episodes: Sequence[ScoredText]) -> torch.Tensor:
        """Scores (B,) that the endpoint gives; of several ranks the first one asks it, for all rows.

        Raises: RewardError where the endpoint still fails after the last attempt, or its answer is malformed.
        """
        return on_first(lambda: self._score(episodes))

    def _score(self, episodes: Sequence[ScoredText]) -> torch.Tensor:
        size = self._config.batch_episodes
        batches = [episodes[start : start + size] for start in range(0, len(episodes), size)]
        with httpx.Client(timeout=self._config.timeout_seconds) as client:
            scores = [self._score_batch(client, batch) for batch in batches]
        return torch.cat(scores) if scores else torch.zeros(0)

    def _score_batch(self, client: httpx.Client, episodes: Sequence[ScoredText]) -> torch.Tensor:
        body = {
            "prompts": [episode.prompt_text for episode in episodes],
            "responses": [episode.response for episode in episodes],
        }
        answer = self._post(client, json.dumps(body).encode("ascii"))
        try:
            content = answer.json()
        except (ValueError, RecursionError) as error:
            raise RewardError(
                f"{self._public_url} answered something that is not JSON: {self._excerpt(answer)}; "
                'expected {"scores": […]}'
            ) from error
        if not isinstance(content, dict) or not isinstance(content.get("scores"), list):
            raise RewardError(
                f'{self._public_url} answered without a list "scores": {self._excerpt(answer)}; '
                f'expected {{"scores": […]}} with {len(episodes)} numbers'
            )
        return check_scores(content["scores"], episodes, source=self._public_url)

    def _post(self, client: httpx.Client, body: bytes) -> httpx.Response:
        """The first answer that reports success."""
        headers = {"content-type": "application/json"}
        if self._token is not None:
            headers["authorization"] = f"Bearer {self._token}"
        begin = time.monotonic()
        for attempt in itertools.count(1):
            asked_seconds = 0.0
            try:
                answer = self._bounded(client.build_request("POST", self._url, content=body, headers=headers), client)
            except httpx.RequestError as error:
                fault = hidden(f"gave no answer ({type(error).__name__}: {error})")
            else:
                if answer.is_success:
                    if attempt >= NOTABLE_ATTEMPTS:
                        self._tell(f"{self._public_url} answers again, after {time.monotonic() - begin:.0f} s")
                    return answer
                fault = f"answered {answer.status_code} {hidden(answer.reason_phrase)}: {self._excerpt(answer)}"
                if answer.status_code != httpx.codes.TOO_MANY_REQUESTS and answer.status_code < 500:
                    raise RewardError(f"{self._public_url} {fault}; fix the request or the endpoint")
                asked_seconds = _retry_after(answer)
            left = self._config.patience_seconds - (time.monotonic() - begin)
            if left <= 0 or (self._config.retries is not None and attempt > self._config.retries):
                raise self._given_up(fault, attempt, time.monotonic() - begin)
            wait = min(self._config.retry_wait_seconds * 2 ** min(attempt - 1, 30), LONGEST_WAIT_SECONDS)
            if attempt == NOTABLE_ATTEMPTS - 1:
                self._tell(f"{self._public_url} {fault}; trying again for up to {left:.0f} s")
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
                        f"{self._public_url} answered with more than {LARGEST_ANSWER / 1e6:.0f} MB; expected "
                        f'{{"scores": […]}} with {self._config.batch_episodes} numbers at most; correct the endpoint'
                    )
        except httpx.DecodingError as error:
            raise RewardError(
                f"{self._public_url} answered something that cannot be unpacked ({error}); correct the endpoint's "
                "content-encoding"
            ) from error
        finally:
            answer.close()
        headers = [(name, value) for name, value in answer.headers.items() if name not in PACKED]
        return httpx.Response(answer.status_code, headers=headers, content=b"".join(blocks), request=request)

    def _given_up(self, fault: str, attempts: int, seconds: float) -> RewardError:
        config = self._config
        return RewardError(
            f"{self._public_url} {fault} at the last of {attempts} attempts in {seconds:.0f} s; see that the endpoint "
            f"runs, then give the same command again to go on, or raise reward.patience_seconds "
            f"({config.patience_seconds:g}), reward.timeout_seconds ({config.timeout_seconds:g})"
            + (f" or reward.retries ({config.retries})" if config.retries is not None else "")
        )

    def _excerpt(self, answer: httpx.Response) -> str:
        return repr(hidden(answer.text)[:200])


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
