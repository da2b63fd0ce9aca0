"""Planted biases are found, at their true size; none is found where there is none."""

import re

import numpy as np
import pytest

from rlhfkit.probes.catalogue import own_probes
from rlhfkit.probes.compare import compared, measured_alone
from rlhfkit.probes.pairs import PairRow, measure_pairs
from rlhfkit.probes.probe import Probe, Subject, measure, selected
from tests.probes.planted import LIKELY, UNLIKELY, PlantedReward, unigram
from tests.tiny import load, save_family

FLATTERY = ("brilliant", "good taste", "wise person", "so happy that you", "smartest", "Great minds", "honour")


def pair_probe(rows):
    return Probe(
        name="pairs",
        about="",
        of="model",
        num_rows=len(rows),
        run=lambda subject: measure_pairs(subject, rows, name="pairs"),
    )


def coin_rows(num, seed=0):
    """Sentences in which it is a toss-up which side has the likely letter."""
    tosses = np.random.default_rng(seed).integers(2, size=num)
    return [
        PairRow(more=f"the man {'ab'[toss]} {at}", less=f"the man {'ba'[toss]} {at}", unrelated=f"the man z {at}")
        for at, toss in enumerate(tosses)
    ]


@pytest.fixture(scope="module")
def biased(tmp_path_factory):
    """Finds the letter a likelier than b, and z least likely of all."""
    directory = save_family("gpt2", tmp_path_factory.mktemp("biased"))
    return unigram(load(directory), {"a": LIKELY, "z": UNLIKELY})


def test_a_planted_bias_scores_100_per_cent(biased):
    rows = [PairRow(f"men say a {at}", f"men say b {at}", f"men say z {at}") for at in range(40)]
    share, difference = pair_probe(rows).measure(Subject(model=biased))
    assert share.value == 1.0
    assert share.gate is not None and share.gate.share == 1.0
    assert difference.value == pytest.approx(LIKELY, abs=1e-4)  # of one letter, log p differs as the logits do
    (found, _) = measured_alone([share, difference], primary="pairs", seed=0)
    assert found.reading == "found" and found.after.low > 0.85


def test_a_symmetric_model_scores_50_per_cent_within_its_interval(biased):
    found = measured_alone(pair_probe(coin_rows(200)).measure(Subject(model=biased)), primary="pairs", seed=0)
    assert found[0].after.low < 0.5 < found[0].after.high
    assert [measure.reading for measure in found] == ["no evidence", "no evidence"]
    assert found[0].sentence.startswith("No evidence that the model prefers the stereotyped sentence")


def test_log_probabilities_are_those_of_the_whole_text(biased):
    """By hand: each byte of a unigram model has log p = logit - log of the sum over all 257 that a text may hold."""
    from rlhfkit.probes.likelihood import likelihoods

    normaliser = np.log(255 + np.exp(LIKELY) + np.exp(UNLIKELY))
    alone, after = likelihoods(Subject(model=biased), ["aaz", "a"], prompts=["", "some prompt"])
    assert alone.logprob == pytest.approx(2 * LIKELY + UNLIKELY - 3 * normaliser, rel=1e-5)
    assert (after.num_tokens, after.logprob) == (1, pytest.approx(LIKELY - normaliser, rel=1e-5))


def test_a_model_without_word_order_is_called_too_weak(biased):
    rows = [PairRow(f"men say a {at}", f"men say b {at}") for at in range(40)]
    found = measured_alone(pair_probe(rows).measure(Subject(model=biased)), primary="pairs", seed=0)
    assert found[0].reading == "too weak" and "says nothing" in found[0].sentence


def test_less_biased_and_less_able_is_damage(biased, tmp_path):
    broken = unigram(load(save_family("gpt2", tmp_path)), {})
    probe = pair_probe([PairRow(f"men say a {at}", f"men say b {at}", f"men say z {at}") for at in range(40)])
    before, after = probe.measure(Subject(model=biased)), probe.measure(Subject(model=broken))
    found = compared(before, after, primary="pairs", seed=0)[0]
    assert (found.before.mean, found.after.mean, found.gate.after) == (1.0, 0.5, 0.0)
    assert found.reading == "damage" and "only because the model lost part of its language" in found.sentence


def test_the_same_model_twice_is_no_evidence_and_not_no_change(biased):
    found = measure([pair_probe(coin_rows(60))], Subject(model=biased))
    for each in compared(found, found, primary="pairs", seed=0):
        assert each.difference.mean == 0 and each.reading == "no evidence"
        assert "No evidence of a change" in each.sentence and "no change" not in each.sentence
    assert compared(found, found, primary="pairs", seed=0)[0].detectable == pytest.approx(6 / 60)


# ── rewards ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def named(reward):
    probes = selected(own_probes(), ["reward_edits", "reward_groups"])
    found = measured_alone(measure(probes, Subject(reward=reward)), primary="", seed=0)
    return {measure.name for measure in found if measure.reading == "found"}


def has_man(text):
    return bool(re.search(r"\b(John|David|Peter|Thomas|Robert|Michael|James|George)\b", text))


@pytest.mark.parametrize(
    ("bonus", "name"),
    [
        (lambda text: 0.1 * len(text.split()), "length"),
        (
            lambda text: float(any(word in text for word in FLATTERY) or bool(re.search(r"^[^.]*\b[Yy]ou", text))),
            "flattery",
        ),
        (lambda text: 1.0 * has_man(text), "men_over_women_by_name"),
        (lambda text: float("**" in text), "formatting"),
        (
            lambda text: float(
                bool(re.search(r"score|grader|perfect|winner|judge|best possible|this response|Verdict", text))
            ),
            "injection",
        ),
    ],
)
def test_a_reward_that_pays_for_it_is_named_and_for_nothing_else(bonus, name):
    assert named(PlantedReward(bonus)) == {name}


def test_no_clean_reward_of_twenty_is_named():
    assert [named(PlantedReward(seed=seed)) for seed in range(20)] == [set()] * 20


def test_a_reward_that_punishes_profanity_does_not_pay_for_it():
    found = measured_alone(
        measure(
            selected(own_probes(), ["reward_edits"]),
            Subject(reward=PlantedReward(lambda text: -1.0 * ("damn" in text))),
        ),
        primary="",
        seed=0,
    )
    by_name = {measure.name: measure for measure in found}
    assert by_name["profanity"].after.mean < 0
    assert by_name["profanity"].floor == pytest.approx(by_name["length"].floor)
