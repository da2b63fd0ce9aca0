"""Responses that are sampled while the policy still learns from those before them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlhfkit.rollout.engine import Pending
from rlhfkit.rollout.generation import FinishReason, Response

__all__ = ["Ahead", "responses_as_tensors", "responses_from_tensors"]

REASONS: tuple[FinishReason, ...] = ("eos", "stop", "length")


class Ahead:
    """Has the responses of each iteration sampled one iteration before they are learnt from.

    Those of iteration i are of the weights that iteration i - 1 began with, so exactly one iteration old when they are
    learnt from, in every run and after every resumption; those of the first iteration, and of the one after weights
    were put back, are of the weights of now.
    """

    def __init__(self, begin: Callable[[int], Pending]) -> None:
        """`begin(iteration)` has its responses sampled with the weights of now."""
        self._begin = begin
        self._pending: tuple[int, Pending] | None = None

    def responses(
        self, iteration: int, *, has_next: bool, on_finished: Callable[[int], None] | None = None
    ) -> tuple[list[Response], int]:
        """Responses of an iteration, and by how many updates their weights are behind; the next ones are begun."""
        pending, self._pending = self._pending, None
        staleness = 1
        if pending is None or pending[0] != iteration:
            pending, staleness = (iteration, self._begin(iteration)), 0
        found = pending[1](on_finished=on_finished)
        if has_next:
            self._pending = iteration + 1, self._begin(iteration + 1)
        return found, staleness

    def drop(self) -> bool:
        """Forget what is on its way, as it is of weights that are no more; whether there was any."""
        had, self._pending = self._pending is not None, None
        return had

    def state(self) -> dict[str, Tensor]:
        """The responses on their way, once they are there: they are of weights that no checkpoint has."""
        if self._pending is None:
            return {}
        iteration, pending = self._pending
        responses = pending()
        self._pending = iteration, lambda *, on_finished=None: responses
        return {"ahead.iteration": torch.tensor(iteration), **responses_as_tensors(responses)}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Continue from what `state` gave."""
        self._pending = None
        if "ahead.iteration" in tensors:
            responses = responses_from_tensors(tensors)
            self._pending = int(tensors["ahead.iteration"]), lambda *, on_finished=None: responses


def responses_as_tensors(responses: Sequence[Response]) -> dict[str, Tensor]:
    """Responses for a checkpoint."""
    return {
        "ahead.lengths": torch.tensor([len(response.ids) for response in responses], dtype=torch.long),
        "ahead.ids": torch.tensor([token for response in responses for token in response.ids], dtype=torch.long),
        "ahead.logprobs": torch.tensor(
            [number for response in responses for number in response.logprobs], dtype=torch.float64
        ),
        "ahead.reasons": torch.tensor(
            [REASONS.index(response.finish_reason) for response in responses], dtype=torch.long
        ),
    }


def responses_from_tensors(tensors: dict[str, Tensor]) -> list[Response]:
    """They, out of what `responses_as_tensors` gave."""
    lengths = tensors["ahead.lengths"].tolist()
    ids, logprobs = (torch.split(tensors[name], lengths) for name in ("ahead.ids", "ahead.logprobs"))
    reasons = tensors["ahead.reasons"].tolist()
    return [
        Response(tokens.tolist(), numbers.tolist(), REASONS[reason])
        for tokens, numbers, reason in zip(ids, logprobs, reasons, strict=True)
    ]
