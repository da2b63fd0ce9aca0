"""Partial rollouts: a long response is cut, and goes on in the next iteration with that one's weights.

Responses are sampled in rounds, in each of which none gets more than `rollout.partial_tokens` tokens. An iteration has
one round, which is sampled while the iteration before is learnt from; where too few groups are finished after it there
are further ones. It learns from a fixed number of groups: of those that are finished the ones that began first. What is
cut, what goes on and what begins follows from how many tokens responses have, and from nothing else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlhfkit.rollout.ahead import responses_as_tensors, responses_from_tensors
from rlhfkit.rollout.engine import Pending
from rlhfkit.rollout.generation import Response

__all__ = ["Part", "PartialRollout", "num_new_groups"]

SPARE_SHARE = 1 / 4
"""Finished groups that may be left over for the next iteration, as a share of those that one learns from."""
NO_ITERATION = -1
NOTHING = Response([], [], "length")


@dataclass(frozen=True)
class Part:
    """A response as far as it is sampled."""

    number: int
    """Its place among all responses of the run, from which its prompt and its draws follow."""
    response: Response = NOTHING
    versions: tuple[int, ...] = ()
    """The iteration that began with the weights that sampled it, for each token."""

    def with_more(self, more: Response, version: int) -> "Part":
        """It with further tokens, all by the same weights."""
        ids, logprobs = [*self.response.ids, *more.ids], [*self.response.logprobs, *more.logprobs]
        versions = (*self.versions, *[version] * len(more.ids))
        return replace(self, response=Response(ids, logprobs, more.finish_reason), versions=versions)


def num_new_groups(num_groups: int, num_spare: int, *, num_rounds: int) -> int:
    """How many groups begin for an iteration that learns from `num_groups`, where `num_spare` are finished already.

    As many as are learnt from, so that those that are cut and those that are spare are a constant number together:
    then one round is enough until more are cut than ever before. What is spare waits, and its weights grow old: what is
    more than a quarter of the groups is not put back, unless the iteration before needed several rounds, in the last of
    which few are ever cut.
    """
    too_many = max(0, num_spare - int(SPARE_SHARE * num_groups)) if num_rounds == 1 else 0
    return max(0, num_groups - too_many)


class PartialRollout:
    """Has the responses of each iteration sampled one iteration before they are learnt from, in parts."""

    def __init__(
        self,
        begin: Callable[[Sequence[Part], int], Pending],
        *,
        num_groups: int,
        group_size: int,
        max_tokens: int,
        partial_tokens: int,
    ) -> None:
        """`begin(parts, iteration)` has responses go on with the weights of now, for an iteration.

        An iteration learns from `num_groups` of `group_size` responses, which have up to `max_tokens` tokens.
        """
        self._begin, self._num_groups, self._group_size, self._max_tokens = begin, num_groups, group_size, max_tokens
        self.staleness_bound = -(-max_tokens // partial_tokens)
        """Iterations by which the weights of any token may be behind: one, and one more for each time that the longest
        response is cut. A group is finished in its last round at the latest, and no group that began later is learnt
        from before it; since a round begins with no more groups than an iteration learns from, none is left behind."""
        self._parts: list[Part] = []
        """All members of groups that are not learnt from yet, in the order in which they began."""
        self._num_begun = 0
        """Groups, of the whole run."""
        self._round_for = NO_ITERATION
        """The one that the last round was begun for."""
        self._pending: tuple[int, Pending] | None = None
        """(version of the weights, what comes of the last round)."""

    def responses(
        self, iteration: int, *, has_next: bool, on_finished: Callable[[int], None] | None = None
    ) -> tuple[list[Part], dict[str, float]]:
        """What an iteration learns from, and metrics of it; the next one's round is begun."""
        num_rounds = 1
        if self._round_for != iteration:
            self._begin_round(iteration, iteration, num_new=self._num_groups)
        self._take(on_finished)
        while (num_missing := self._num_groups - len(self._finished())) > 0:
            num_rounds += 1
            self._begin_round(iteration, iteration, num_new=num_missing)
            self._take(on_finished)
        learnt = [part for group in self._finished()[: self._num_groups] for part in group]
        numbers = {part.number for part in learnt}
        self._parts = [part for part in self._parts if part.number not in numbers]
        metrics = {**self._metrics(iteration, learnt), "rollout/rounds": float(num_rounds)}
        assert metrics["rollout/staleness_max"] <= self.staleness_bound, metrics
        if has_next:
            num_new = num_new_groups(self._num_groups, len(self._finished()), num_rounds=num_rounds)
            self._begin_round(iteration + 1, iteration, num_new=num_new)
        return learnt, metrics

    def drop(self) -> None:
        """Forget all that has begun, as it is of weights that are no more; other prompts come in its place."""
        self._parts, self._pending, self._round_for = [], None, NO_ITERATION

    def state(self) -> dict[str, Tensor]:
        """All that has begun, once its round is over: it is of weights that no checkpoint has."""
        self._take()
        return {
            "partial.counts": torch.tensor([self._num_begun, self._round_for]),
            "partial.numbers": torch.tensor([part.number for part in self._parts], dtype=torch.long),
            "partial.versions": torch.tensor(
                [version for part in self._parts for version in part.versions], dtype=torch.long
            ),
            **responses_as_tensors([part.response for part in self._parts]),
        }

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Continue from what `state` gave."""
        self._pending = None
        self._num_begun, self._round_for = tensors["partial.counts"].tolist()
        responses = responses_from_tensors(tensors)
        versions = torch.split(tensors["partial.versions"], [len(response.ids) for response in responses])
        self._parts = [
            Part(number, response, tuple(of.tolist()))
            for number, response, of in zip(tensors["partial.numbers"].tolist(), responses, versions, strict=True)
        ]

    def _begin_round(self, for_iteration: int, version: int, *, num_new: int) -> None:
        """Have all that is cut go on, and new groups begin."""
        first, size = self._num_begun * self._group_size, self._group_size
        self._parts += [Part(number) for number in range(first, first + num_new * size)]
        self._num_begun += num_new
        self._round_for = for_iteration
        parts = self._unfinished()
        if parts:  # or all that is wanted is finished and was left over
            self._pending = version, self._begin(parts, for_iteration)

    def _take(self, on_finished: Callable[[int], None] | None = None) -> None:
        """Put the tokens of the last round to those before them."""
        if self._pending is None:
            return
        (version, pending), self._pending = self._pending, None
        numbers = [part.number for part in self._unfinished()]
        more = dict(zip(numbers, pending(on_finished=on_finished), strict=True))
        self._parts = [
            part.with_more(more[part.number], version) if part.number in more else part for part in self._parts
        ]

    def _is_finished(self, part: Part) -> bool:
        return part.response.finished or len(part.response.ids) >= self._max_tokens

    def _unfinished(self) -> list[Part]:
        return [part for part in self._parts if not self._is_finished(part)]

    def _finished(self) -> list[list[Part]]:
        """The groups of which each member is finished, in the order in which they began."""
        size = self._group_size
        groups = [self._parts[start : start + size] for start in range(0, len(self._parts), size)]
        return [group for group in groups if all(map(self._is_finished, group))]

    def _metrics(self, iteration: int, learnt: Sequence[Part]) -> dict[str, float]:
        behind = [iteration - version for part in learnt for version in part.versions]
        num_cut = len(self._unfinished())
        return {
            "rollout/staleness": sum(behind) / len(behind),
            "rollout/staleness_max": float(max(behind)),
            "rollout/staleness_bound": float(self.staleness_bound),
            "rollout/mixed_share": sum(part.versions[0] < part.versions[-1] for part in learnt) / len(learnt),
            "rollout/cut_episodes": float(num_cut),
            "rollout/waiting_episodes": float(len(self._parts) - num_cut),
        }
