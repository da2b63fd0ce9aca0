"""Experience out of responses and scores that come from elsewhere: a game, people, another server."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from rlhfkit.errors import DataError
from rlhfkit.models.encoder import EncodedPrompt
from rlhfkit.rewards.source import check_scores
from rlhfkit.rollout.experience import Experience
from rlhfkit.rollout.generation import Response
from rlhfkit.rollout.text import TextRollout

__all__ = ["GivenRollout"]

MOST_REMEMBERED = 65_536
"""Responses whose tokens are remembered until they come back; the oldest are forgotten first."""

Given = tuple[list[EncodedPrompt], list[Response], Tensor]


class GivenRollout:
    """A rollout of prompts that also takes responses with their scores.

    A response that `sample` gave and that comes back unchanged is learnt with the very tokens that were sampled. Any
    other text is encoded, and counts as a whole response, which EOS ends.
    """

    def __init__(self, own: TextRollout) -> None:
        """Collect with `own` whatever is not given."""
        self.own = own
        self._given: Given | None = None
        self._sampled: dict[tuple[tuple[int, ...], str], Response] = {}
        self._num_sampled = 0

    def sample(self, prompts: Sequence[EncodedPrompt], *, iteration: int) -> list[str]:
        """The text of a response to each prompt, from draws that no call before it has made in this iteration."""
        rows = range(self._num_sampled, self._num_sampled + len(prompts))
        responses = self.own.sample(prompts, seeds=[self.own.seed_of_response(iteration, row) for row in rows])
        self._num_sampled = rows.stop
        texts = [episode.response for episode in self.own.scored_texts(prompts, responses)]
        for prompt, text, response in zip(prompts, texts, responses, strict=True):
            self._sampled[tuple(prompt.ids), text] = response
        for key in list(self._sampled)[: max(0, len(self._sampled) - MOST_REMEMBERED)]:
            del self._sampled[key]
        return texts

    def give(self, prompts: Sequence[EncodedPrompt], texts: Sequence[str], scores: object) -> None:
        """Have the next iteration learn from responses to prompts, with their scores.

        Raises: RewardError where the scores are not one finite number for each response; DataError where a response
        has more tokens than `rollout.max_response_tokens`.
        """
        given = [self._response(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        most = self.own.rollout.max_response_tokens
        for row, (_, response) in enumerate(given):
            if len(response.ids) > most:
                raise DataError(
                    f"response {row} has {len(response.ids)} tokens with its EOS, and rollout.max_response_tokens is "
                    f"{most}; shorten it, or raise rollout.max_response_tokens"
                )
        encoded, responses = [prompt for prompt, _ in given], [response for _, response in given]
        episodes = self.own.scored_texts(encoded, responses)
        self._given = encoded, responses, check_scores(scores, episodes, source="your code")

    def _response(self, prompt: EncodedPrompt, text: str) -> tuple[EncodedPrompt, Response]:
        if (sampled := self._sampled.get((tuple(prompt.ids), text))) is not None:
            return prompt, sampled
        before, ids = self.own.policy.language_model.encoder.joined(prompt.prompt, text)
        return replace(prompt, ids=tuple(before)), Response(ids, [], "eos")

    def collect(
        self, iteration: int, *, kl_coef: float, on_finished: Callable[[int], None] | None = None
    ) -> Experience:
        """The experience of what was given, or else of an iteration of its own prompts."""
        self._num_sampled = 0
        if self._given is None:
            return self.own.collect(iteration, kl_coef=kl_coef, on_finished=on_finished)
        (prompts, responses, scores), self._given = self._given, None
        return self.own.experience(prompts, responses, scores, kl_coef=kl_coef)

    def state(self) -> dict[str, Tensor]:
        """As of a rollout of prompts."""
        return self.own.state()

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """As of a rollout of prompts."""
        self.own.load_state(tensors)
