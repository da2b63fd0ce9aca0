import math

import pytest
import torch

from rlhfkit.config.feedback import SimulatedConfig
from rlhfkit.errors import ShapeError
from rlhfkit.feedback.exchange import preferences_of
from rlhfkit.feedback.store import Store
from rlhfkit.feedback.votes import Pair, pair_id
from rlhfkit.labelling.simulated import SimulatedAnnotators
from rlhfkit.records import Message


class LengthReward:
    """Longer is better."""

    def score(self, episodes):
        return torch.tensor([float(len(episode.response)) for episode in episodes])


def pair(number, first, second, **columns):
    prompt = f"prompt {number}"
    return Pair(pair_id(prompt, first, second), prompt, first, second, **columns)


def votes(pairs, *, store, disagreement=0.0, votes_per_pair=1, seed=0):
    store.add_pairs(pairs)
    people = SimulatedAnnotators(
        SimulatedConfig(disagreement=disagreement, votes_per_pair=votes_per_pair), LengthReward(), seed=seed
    )
    people.label(store)
    return store.snapshot().votes


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "labels.db") as opened:
        yield opened


def test_people_who_never_err_choose_the_truly_better_response(store):
    pairs = [pair(0, "long one", "a"), pair(1, "b", "longer")]
    found = preferences_of(pairs, votes(pairs, store=store))
    assert [(p.prompt.content, p.chosen, p.rejected) for p in found.preferences] == [
        ("prompt 0", "long one", "a"),
        ("prompt 1", "longer", "b"),
    ]


def test_people_who_always_err_choose_the_worse_one(store):
    pairs = [pair(0, "long one", "a"), pair(1, "b", "longer")]
    found = preferences_of(pairs, votes(pairs, disagreement=1.0, store=store))
    assert [(p.chosen, p.rejected) for p in found.preferences] == [("a", "long one"), ("b", "longer")]


@pytest.mark.thorough
def test_disagreement_is_the_configured_share_of_votes_and_independent_between_people(store):
    size = 1500
    pairs = [pair(number, "long", "a") for number in range(size)]
    given = votes(pairs, disagreement=0.2, votes_per_pair=2, store=store)
    wrong = {(vote.annotator, vote.pair_id): vote.choice.preferred == "b" for vote in given}
    assert len(wrong) == 2 * size
    assert abs(sum(wrong.values()) / (2 * size) - 0.2) < 4 * math.sqrt(0.2 * 0.8 / (2 * size))
    both = sum(wrong["simulated-1", one.id] and wrong["simulated-2", one.id] for one in pairs)
    assert abs(both / size - 0.04) < 4 * math.sqrt(0.04 * 0.96 / size)


def test_equal_rewards_are_decided_by_a_coin(store):
    size = 1000
    given = votes([pair(number, "ab", "cd") for number in range(size)], store=store)
    first = sum(vote.choice.preferred == "a" for vote in given)
    assert abs(first / size - 0.5) < 4 * math.sqrt(0.25 / size)
    assert {abs(vote.choice.strength) for vote in given} == {1}


def test_degrees_are_quarters_of_the_differences_of_the_round(store):
    pairs = [pair(number, "x" * (number + 2), "a") for number in range(8)]  # differences 1 to 8
    assert [vote.choice.strength for vote in votes(pairs, store=store)] == [1, 1, 2, 2, 3, 3, 4, 4]


@pytest.mark.thorough
def test_sides_are_balanced(store):
    size = 1000
    given = votes([pair(number, "long", "a") for number in range(size)], store=store)
    assert abs(sum(vote.shown_left == "a" for vote in given) / size - 0.5) < 4 * math.sqrt(0.25 / size)


def test_voting_again_adds_nothing_and_new_pairs_change_no_vote(store):
    pairs = [pair(number, "long", "a") for number in range(50)]
    before = votes(pairs, disagreement=0.3, store=store)
    assert votes(pairs, disagreement=0.3, store=store) == before
    more = [pair(number, "x" * number, "a", round=2) for number in range(100, 120)]
    assert votes(more, disagreement=0.3, store=store)[: len(before)] == before


def test_same_seed_gives_the_same_votes_in_any_order(tmp_path):
    pairs = [pair(number, "long", "a") for number in range(60)]

    def choices(name, order, seed):
        with Store.open(tmp_path / name) as opened:
            return {vote.pair_id: vote.choice for vote in votes(order, disagreement=0.4, seed=seed, store=opened)}

    first = choices("1.db", pairs, 1)
    assert choices("2.db", pairs[::-1], 1) == first
    assert choices("3.db", pairs, 2) != first


def test_whole_conversations_are_refused(store):
    turns = (Message("user", "Hi"), Message("assistant", "Hello."))
    one = Pair("p", "", turns, (*turns, *turns))
    with pytest.raises(ShapeError, match="pair p compares whole conversations"):
        votes([one], store=store)
