"""Rewards that compare with the response that the prompt's row gives."""

import sys

import pytest
import sacrebleu

from rlhfkit.errors import MissingDependencyError, RewardError
from rlhfkit.records import Prompt
from rlhfkit.rewards import ChrfReward, MatchReward, ScoredText, references_of


def episodes(*responses_and_references: tuple[str, str | None]) -> list[ScoredText]:
    return [
        ScoredText(Prompt("Say it:", origin=f"rows.jsonl:{number}", reference=reference), "Say it:", response)
        for number, (response, reference) in enumerate(responses_and_references, start=1)
    ]


def test_a_match_is_the_whole_response_but_for_the_blanks_around_it():
    found = MatchReward().score(
        episodes(
            (" positive", " positive"),
            ("positive\n", " positive"),
            (" positive positive", " positive"),
            (" Positive", " positive"),
            (" negative", " positive"),
            ("", " positive"),
        )
    )
    assert found.tolist() == [1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("response", "reference", "score"),
    [
        (" le pain", "le pain ", 1.0),
        ("", "le pain", 0.0),
        ("xyz", "abc", 0.0),
        # Of 3, 2 and 1 n-grams 2, 1 and 0 are right, in both directions: the mean of 2/3, 1/2 and 0.
        ("abc", "abd", 7 / 18),
        # Precision 1 (a; none longer), recall 1/2: F with beta 2 = 5 * 1 * 1/2 / (4 * 1 + 1/2).
        ("a", "ab", 5 / 9),
    ],
)
def test_chrf_by_hand(response, reference, score):
    assert ChrfReward().score(episodes((response, reference))).item() == pytest.approx(score)


def test_chrf_is_sacrebleus_on_a_scale_to_1():
    pairs = [("Je suis fatigué !", "Je suis si fatigué !"), ("Il le faut.", "Il me le faut.")]
    expected = [sacrebleu.sentence_chrf(response, [reference]).score / 100 for response, reference in pairs]
    assert ChrfReward().score(episodes(*pairs)).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("reward", "name"), [(MatchReward, "match"), (ChrfReward, "chrf")])
def test_a_row_without_a_reference_is_an_error_and_no_zero(reward, name):
    with pytest.raises(RewardError, match=rf'reward.type = "{name}" .* rows.jsonl:2 gives none \(1 of 2 rows\); add a'):
        reward().score(episodes(("a", "a"), ("a", None)))


def test_references_keep_the_order_of_the_prompts():
    prompts = [episode.prompt for episode in episodes(("", "b"), ("", "a"))]
    assert references_of(prompts, wanted_by="a test") == [("b",), ("a",)]


def test_any_of_several_references_will_do_and_chrf_takes_the_nearest():
    prompt = Prompt("Go.", reference=" Va !", further_references=(" Marche.", " Va !"))
    episodes = [ScoredText(prompt, "Go.", response) for response in ("Marche.", "Va !", "Viens.")]
    assert MatchReward().score(episodes).tolist() == [1, 1, 0]
    nearest = [
        max(sacrebleu.sentence_chrf(one.response, [text]).score for text in prompt.references) for one in episodes
    ]
    assert ChrfReward().score(episodes).tolist() == pytest.approx([score / 100 for score in nearest])


def test_without_sacrebleu_the_install_line_is_shown(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'rlhfkit\[translation\]'"):
        ChrfReward()
