"""Simulated people, who know the true reward and err at a stated rate; they vote through the store like anybody."""

import uuid
from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np

from rlhfkit.config.feedback import SimulatedConfig
from rlhfkit.errors import ShapeError
from rlhfkit.feedback.store import Store
from rlhfkit.feedback.votes import Choice, Pair, Vote
from rlhfkit.machine.seeding import derive_seed
from rlhfkit.records import Prompt
from rlhfkit.rewards.source import RewardSource, ScoredText

__all__ = ["SimulatedAnnotators"]

VOTES_AT_ONCE = 200


class SimulatedAnnotators:
    """People who prefer the response with the higher true reward, except by mistake.

    Each vote is a mistake with probability `config.disagreement`, whatever the other votes and however large the
    difference; on a pair with equal rewards each vote is a coin flip. The degree grows with the difference: a quarter
    of the pairs each. What a person says of a pair follows from the seed and the two names alone, so that a run that
    was killed while they voted ends with the same votes.
    """

    def __init__(self, config: SimulatedConfig, reward: RewardSource, *, seed: int) -> None:
        """Vote as `config` says, by what `reward` says is better."""
        self.config, self.reward, self.seed = config, reward, seed

    def label(self, store: Store, *, on_vote: Callable[[int], None] | None = None) -> None:
        """Vote on every pair of the store that they have not voted on.

        Raises: RewardError where the reward cannot score a pair.
        """
        snapshot = store.snapshot()
        choices = _Choices(self, snapshot.pairs)
        voted = {(vote.annotator, vote.pair_id) for vote in snapshot.votes}
        open_pairs = ((pair, name) for pair in snapshot.pairs for name in self.names if (name, pair.id) not in voted)
        while portion := list(islice(open_pairs, VOTES_AT_ONCE)):
            store.add_votes([choices.vote(pair, name) for pair, name in portion])
            if on_vote is not None:
                on_vote(len(portion))

    def num_open(self, store: Store) -> int:
        """How many votes `label` would give."""
        snapshot = store.snapshot()
        voted = {(vote.annotator, vote.pair_id) for vote in snapshot.votes}
        return sum((name, pair.id) not in voted for pair in snapshot.pairs for name in self.names)

    @property
    def names(self) -> list[str]:
        """What they are called in the store."""
        return [f"simulated-{number}" for number in range(1, self.config.votes_per_pair + 1)]

    def true_gains(self, pairs: Sequence[Pair]) -> np.ndarray:
        """True reward of `response_a` less that of `response_b` (B,), float64."""
        sides = [[_as_scored_text(pair, response) for pair in pairs] for response in ("response_a", "response_b")]
        first, second = (self.reward.score(side).double().numpy() if side else np.zeros(0) for side in sides)
        return first - second


class _Choices:
    """What simulated people say of the pairs of a store."""

    def __init__(self, people: SimulatedAnnotators, pairs: Sequence[Pair]) -> None:
        self.people = people
        gains = people.true_gains(pairs)
        self.gains = {pair.id: float(gain) for pair, gain in zip(pairs, gains, strict=True)}
        # Degrees by quarters of the same round: what a later round brings must not change what was said in this one.
        self.bounds = {
            number: np.quantile(
                np.abs([self.gains[pair.id] for pair in pairs if pair.round == number]), [0.25, 0.5, 0.75]
            )
            for number in {pair.round for pair in pairs}
        }

    def vote(self, pair: Pair, name: str) -> Vote:
        generator = np.random.default_rng(derive_seed(self.people.seed, "vote", pair.id, name))
        draw, side_draw = generator.random(2)
        return Vote(
            id=str(uuid.uuid5(uuid.NAMESPACE_OID, f"{pair.id} {name} {self.people.seed}")),
            pair_id=pair.id,
            annotator=name,
            choice=Choice("preference", self._strength(pair, draw)),
            shown_left="a" if side_draw < 0.5 else "b",
            active_seconds=0.0,
            wall_seconds=0.0,
        )

    def _strength(self, pair: Pair, draw: float) -> int:
        gain = self.gains[pair.id]
        if gain == 0:
            return 1 if draw < 0.5 else -1
        strength = 1 + int(np.searchsorted(self.bounds[pair.round], abs(gain)))
        is_mistake = draw < self.people.config.disagreement
        return strength if (gain > 0) != is_mistake else -strength


def _as_scored_text(pair: Pair, which: str) -> ScoredText:
    response = getattr(pair, which)
    if not isinstance(response, str):
        raise ShapeError(
            f"pair {pair.id} compares whole conversations, which simulated people cannot; give single answers"
        )
    return ScoredText(Prompt(pair.prompt, origin=pair.origin), "", response)
