"""Simulated people of the noise model: each is right about the truth with a probability of their own."""

from dataclasses import dataclass, field

import numpy as np

from rlhfkit.feedback.votes import Choice, Pair, Vote


@dataclass
class Labels:
    pairs: list = field(default_factory=list)
    votes: list = field(default_factory=list)


def a_pair(name, **changes):
    return Pair(**{"id": name, "prompt": f"prompt of {name}", "response_a": "one", "response_b": "two"} | changes)


def a_vote(pair_id, annotator, strength=0, *, kind=None, **changes):
    """A vote; strength 0 is a tie unless `kind` says otherwise."""
    kind = kind or ("preference" if strength else "tie")
    choice = Choice(kind, strength, "unclear" if kind == "skip" else None)
    known = {"shown_left": "a", "active_seconds": 30.0, "wall_seconds": 40.0}
    return Vote(
        **{"id": f"{pair_id}/{annotator}", "pair_id": pair_id, "annotator": annotator, "choice": choice}
        | known
        | changes
    )


def simulate(accuracies, *, num_pairs, votes_per_pair, seed, third_where_two_disagree=False):
    """Labels of people who are right with these probabilities, whatever the pair; sides and degrees are random.

    With `third_where_two_disagree`, one more person votes where the first two differ.
    """
    generator = np.random.default_rng(seed)
    labels = Labels()
    for number in range(num_pairs):
        pair = a_pair(f"p{number}", response_a="a" * int(generator.integers(9, 99)), response_b="b" * 50)
        labels.pairs.append(pair)
        truth = 1 if generator.random() < 0.5 else -1
        order = generator.permutation(len(accuracies))
        signs = []
        for person in order[: votes_per_pair + third_where_two_disagree]:
            if len(signs) == votes_per_pair and abs(sum(signs)) == votes_per_pair:
                break
            signs.append(truth if generator.random() < accuracies[person] else -truth)
            labels.votes.append(
                a_vote(
                    pair.id,
                    f"person {person}",
                    signs[-1] * int(generator.integers(1, 5)),
                    shown_left="a" if generator.random() < 0.5 else "b",
                    active_seconds=float(generator.lognormal(3.4, 0.5)),
                )
            )
    return labels
