"""Experience out of responses and scores that come from elsewhere: a game, people, another server."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import SequenceMatcher

from torch import Tensor

from rlhfkit.errors import DataError
from rlhfkit.models.encoder import EncodedPrompt
from rlhfkit.rewards.source import check_scores
from rlhfkit.rollout.constraints import Moves
from rlhfkit.rollout.experience import Experience
from rlhfkit.rollout.generation import Response
from rlhfkit.rollout.text import TextRollout
from rlhfkit.wording import shortened

__all__ = ["GivenRollout"]

MOST_REMEMBERED = 65_536
"""Responses whose tokens are remembered until they come back; the oldest are forgotten first."""

Sampled = tuple[tuple[int, ...], str]
"""Ids of a prompt, and the text of a response to it."""

Given = tuple[list[EncodedPrompt], list[Response], Tensor]


class GivenRollout:
    """A rollout of prompts that also takes responses with their scores.

    A response that `sample` gave is learnt with the very tokens that were sampled, when it comes back unchanged or
    without the white space around it. Any other text is encoded, and counts as a whole response, which EOS ends.
    """

    def __init__(self, own: TextRollout) -> None:
        """Collect with `own` whatever is not given."""
        self.own = own
        self._given: Given | None = None
        self._sampled: dict[Sampled, Response] = {}
        self._by_stripped: dict[Sampled, list[str]] = {}
        """The same without white space around the text → the texts that were sampled."""
        self._num_sampled = 0

    def sample(self, prompts: Sequence[EncodedPrompt], *, iteration: int) -> list[str]:
        """The text of a response to each prompt, from draws that no call before it has made in this iteration."""
        rows = range(self._num_sampled, self._num_sampled + len(prompts))
        responses = self.own.sample(prompts, seeds=[self.own.seed_of_response(iteration, row) for row in rows])
        self._num_sampled = rows.stop
        texts = [episode.response for episode in self.own.scored_texts(prompts, responses)]
        for prompt, text, response in zip(prompts, texts, responses, strict=True):
            self._remember((tuple(prompt.ids), text), response)
        return texts

    def _remember(self, sampled: Sampled, response: Response) -> None:
        if sampled not in self._sampled:
            self._by_stripped.setdefault(_stripped(sampled), []).append(sampled[1])
        self._sampled[sampled] = response
        if len(self._sampled) > MOST_REMEMBERED:
            oldest = next(iter(self._sampled))
            del self._sampled[oldest]
            self._by_stripped[_stripped(oldest)].remove(oldest[1])
            if not self._by_stripped[_stripped(oldest)]:
                del self._by_stripped[_stripped(oldest)]

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
                    f"responses[{row}], {shortened(repr(texts[row]))}, has {len(response.ids)} tokens with its EOS, "
                    f"and rollout.max_response_tokens is {most}; {self._why_encoded(prompts[row], texts[row])}"
                )
        encoded, responses = [prompt for prompt, _ in given], [response for _, response in given]
        episodes = self.own.scored_texts(encoded, responses)
        self._given = encoded, responses, check_scores(scores, episodes, source="your code")

    def _response(self, prompt: EncodedPrompt, text: str) -> tuple[EncodedPrompt, Response]:
        if (sampled := self._sampled_as(prompt, text)) is not None:
            return prompt, sampled
        before, ids = self.own.policy.language_model.encoder.joined(prompt.prompt, text)
        return replace(prompt, ids=tuple(before)), Response(ids, [], "eos")

    def _sampled_as(self, prompt: EncodedPrompt, text: str) -> Response | None:
        """The response that was sampled with this text; or the one, if it is one, that is this text in white space."""
        given = tuple(prompt.ids), text
        if given in self._sampled:
            return self._sampled[given]
        texts = self._by_stripped.get(_stripped(given), [])
        return self._sampled[given[0], texts[0]] if len(texts) == 1 else None

    def _why_encoded(self, prompt: EncodedPrompt, text: str) -> str:
        """Why a response does not have the tokens that were sampled, and what to do."""
        sampled = [other for ids, other in self._sampled if ids == tuple(prompt.ids)]
        if not sampled:
            return (
                "no response was sampled to this very prompt, so it was encoded as a text of its own: shorten it, "
                "raise rollout.max_response_tokens, or give prompt and response as sample() had them"
            )
        nearest = max(sampled, key=lambda other: SequenceMatcher(None, other, text).ratio())
        place = next(
            (at for at, (one, other) in enumerate(zip(nearest, text, strict=False)) if one != other),
            min(len(nearest), len(text)),
        )
        return (
            f"it is not what sample() gave to this prompt (nearest: {shortened(repr(nearest))}, the same up to "
            f"letter {place}), so it was encoded anew: give back the response as it was sampled, and change a copy of "
            "it for your scores"
        )

    def collect(
        self,
        iteration: int,
        *,
        kl_coef: float,
        multipliers: Moves | None = None,
        on_finished: Callable[[int], None] | None = None,
    ) -> Experience:
        """The experience of what was given, or else of an iteration of its own prompts."""
        self._num_sampled = 0
        if self._given is None:
            return self.own.collect(iteration, kl_coef=kl_coef, multipliers=multipliers, on_finished=on_finished)
        (prompts, responses, scores), self._given = self._given, None
        return self.own.experience(prompts, responses, scores, kl_coef=kl_coef, multipliers=multipliers)

    def state(self) -> dict[str, Tensor]:
        """As of a rollout of prompts."""
        return self.own.state()

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """As of a rollout of prompts."""
        self.own.load_state(tensors)

    def weights_were_put_back(self) -> None:
        """As of a rollout of prompts."""
        self.own.weights_were_put_back()


def _stripped(sampled: Sampled) -> Sampled:
    return sampled[0], sampled[1].strip()
