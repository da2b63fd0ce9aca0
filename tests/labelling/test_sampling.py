"""Which pairs people are asked about: at random at first, then those from which most is learnt."""

import re

import pytest

from rlhfkit.config.feedback import PreferencesConfig
from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.errors import DataError
from rlhfkit.feedback.source import new_pairs
from rlhfkit.feedback.votes import Choice, Pair, Vote, pair_id
from rlhfkit.labelling.sampling import PairSampler
from rlhfkit.records import Prompt
from tests import tiny


@pytest.fixture(scope="session")
def model(directory_of):
    return tiny.load(directory_of("llama"))


def sampler(model, *, name="model", num_prompts=40, temperature=1.0, **settings):
    prompts = [model.encoder.encode(Prompt(f"prompt {number}:"), max_tokens=20) for number in range(num_prompts)]
    rollout = RolloutConfig(max_response_tokens=6, temperature=temperature)
    return PairSampler(model, name, prompts, rollout, PreferencesConfig(**settings), seed=0)


def sampled(sampler, store, *, told=None):
    return sampler.pairs(store, on_finished=lambda number: None, tell=[].append if told is None else told.append)


def prefer_first(store, pairs):
    store.add_pairs(new_pairs(store, pairs))
    store.add_votes(Vote(f"vote {pair.id}", pair.id, "Ada", Choice("preference", 1), "a", 1.0, 1.0) for pair in pairs)


def test_pairs_are_random_and_it_is_said_while_there_are_no_labels(model, store):
    told = []
    pairs = sampled(sampler(model, num_pairs=10, num_candidates=30, num_test_pairs=4), store, told=told)
    assert told == ["all at random: there are no labels yet"]
    train = [pair for pair in pairs if pair.part == "train"]
    assert [(pair.reason, pair.probability) for pair in train] == 10 * [("random", pytest.approx(10 / 30))]
    assert len(pairs) == 14


@pytest.fixture
def taught(store):
    """A store with a first round of labels that can be learnt: one word is good, whatever the length."""
    words = [(f"good {letter}", f"bad  {letter}") for letter in "pqrst"]
    for number in range(80):
        good, bad = words[number % 5]
        pair = Pair(f"pair {number}", f"Say {number}:", good, bad, reason="random", probability=1.0)
        prefer_first(store, [pair])
    return store


SECOND = {"round": 2, "num_pairs": 20, "num_candidates": 80, "num_test_pairs": 5}


def test_pairs_are_chosen_when_labels_are_enough_and_the_store_keeps_why(model, taught):
    told = []
    pairs = sampled(sampler(model, **SECOND), taught, told=told)
    assert told[0].startswith("1 of 80 train pairs left out")
    assert re.match(r"5 at random, 15 for what they teach: ", told[1])
    taught.add_pairs(new_pairs(taught, pairs))
    kept = [(pair.reason, pair.probability) for pair in taught.pairs(round=2) if pair.part == "train"]
    assert sorted(kept, key=str) == 15 * [("active", None)] + 5 * [("random", pytest.approx(5 / 79))]
    assert [(pair.reason, pair.probability) for pair in taught.pairs(round=2) if pair.part == "test"] == 5 * [
        ("random", 1.0)
    ]


def test_asked_again_with_labels_of_its_own_round_the_same_pairs_come(model, taught):
    pairs = sampled(sampler(model, **SECOND), taught)
    taught.add_pairs(pairs[:8])  # killed while they were added
    prefer_first(taught, pairs[:8])
    assert sampled(sampler(model, **SECOND), taught) == pairs
    prefer_first(taught, pairs)
    assert sampled(sampler(model, **SECOND), taught) == pairs
    assert taught.add_pairs(new_pairs(taught, sampled(sampler(model, name="moved", **SECOND), taught))) == 0


def test_a_prompt_stays_in_the_part_that_the_store_knows(model, store):
    first = sampled(sampler(model, num_pairs=30, num_test_pairs=30), store)
    store.add_pairs(first)
    known = {pair.prompt: pair.part for pair in first}
    later = sampled(sampler(model, round=2, num_pairs=38, num_test_pairs=4), store)
    assert len(later) == 42
    assert all(known.get(pair.prompt, pair.part) == pair.part for pair in later)
    other = "test" if known["prompt 1:"] == "train" else "train"
    given = Pair(pair_id("prompt 1:", "x", "y"), "prompt 1:", "x", "y", part=other)
    assert [pair.part for pair in new_pairs(store, [given])] == [known["prompt 1:"]]


def test_pairs_that_cannot_be_compared_are_left_out_and_counted(model, store):
    told = []
    # Almost greedy, so that both responses are the same.
    with pytest.raises(DataError, match=r"none of 4 train pairs can be compared .* raise rollout\.temperature"):
        sampled(sampler(model, num_pairs=4, num_test_pairs=0, temperature=1e-4), store)
    pairs = sampled(sampler(model, num_pairs=40, num_test_pairs=0, num_prompts=1, temperature=0.25), store, told=told)
    assert told == [
        f"{40 - len(pairs)} of 40 train pairs left out: "
        "the same response twice, an empty one, or a pair that came before"
    ]
