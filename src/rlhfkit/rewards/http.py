"""An HTTP endpoint as a reward."""

import json
import logging
from collections.abc import Callable, Sequence

import httpx
import torch

from rlhfkit.config.rewards import HttpRewardConfig
from rlhfkit.distributed.ranks import on_first
from rlhfkit.errors import RewardError
from rlhfkit.rewards.endpoint import TRIAL_SECONDS, Endpoint, excerpt
from rlhfkit.rewards.source import ScoredText, check_scores

__all__ = ["HttpReward"]

logger = logging.getLogger(__name__)


class HttpReward:
    """Scores of an endpoint that answers POST {"prompts": […], "responses": […]} with {"scores": […]}.

    There is no score to fall back on: when patience is over the run stops, and goes on later where it stopped.
    """

    def __init__(self, config: HttpRewardConfig, *, tell: Callable[[str], None] = logger.warning) -> None:
        """Nothing is sent yet. `tell` hears when it has to wait. Raises: as `Endpoint`."""
        self._config = config
        expected = f'{{"scores": […]}} with {config.batch_episodes} numbers at most'
        self._endpoint = Endpoint(config, expected=expected, tell=tell)

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
        with self._endpoint.client() as client:
            scores = [self._score_batch(client, batch) for batch in batches]
        return torch.cat(scores) if scores else torch.zeros(0)

    def _score_batch(self, client: httpx.Client, episodes: Sequence[ScoredText]) -> torch.Tensor:
        body = {
            "prompts": [episode.prompt_text for episode in episodes],
            "responses": [episode.response for episode in episodes],
        }
        content = self._endpoint.post(client, body)
        if not isinstance(content, dict) or not isinstance(content.get("scores"), list):
            raise RewardError(
                f'{self._endpoint.shown} answered without a list "scores": {excerpt(json.dumps(content))}; '
                f'expected {{"scores": […]}} with {len(episodes)} numbers'
            )
        return check_scores(content["scores"], episodes, source=self._endpoint.shown)
