from fractions import Fraction

import pytest

from rlhfkit.config.load import load_recipe
from rlhfkit.config.rewards import AnswerRewardConfig
from rlhfkit.errors import ConfigError, RewardError
from rlhfkit.records import Prompt
from rlhfkit.rewards import AnswerReward, ScoredText
from rlhfkit.rewards.answer import last_number, normalized


def scored(right: object, *responses: str, **settings: object) -> list[float]:
    prompt = Prompt("Question", columns={"answer": right}, origin="rows.jsonl:7")
    episodes = [ScoredText(prompt, "Question", response) for response in responses]
    config = AnswerRewardConfig.model_validate({"type": "answer", "column": "answer", **settings})
    return AnswerReward(config).score(episodes).tolist()


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 42.", 42),
        ("3 + 4 = 7", 7),
        ("10-3", 3),  # a minus between two numbers is none of the second's
        ("= -3", -3),
        ("−3 °C", -3),
        ("-$1,234.50!", Fraction(-2469, 2)),
        ("1_000_000", 1_000_000),
        ("1\u202f200", 1200),
        ("12'345", 12_345),
        ("1,23", 23),  # no group of three: two numbers
        (".5", Fraction(1, 2)),
        ("2.5e3 m", 2500),
        ("3/4 of it", Fraction(3, 4)),
        ("**18**", 18),
        ("0.1", Fraction(1, 10)),
    ],
)
def test_the_last_number_is_read_exactly(text, number):
    assert last_number(text) == number


@pytest.mark.parametrize("text", ["", "none", "e5", "1/0", "9" * 401, "42, or rather " + "9" * 100_000])
def test_what_is_no_number_is_no_answer(text):
    assert last_number(text) is None


def test_numbers_are_compared_with_a_tolerance_that_includes_its_end():
    assert scored("0.3", "0.4", "0.41", "0.2", "three", tolerance=0.1) == [1.0, 0.0, 1.0, 0.0]


def test_units_bring_numbers_to_one_scale_and_other_words_do_not_matter():
    units = {"m": 1.0, "km": 1000.0, "%": 0.01}
    right = scored("1500 m", "1.5 km", "1500m", "1500", "1500 miles", "1.5", units=units)
    assert right == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert scored(0.25, "25%", "25 %.", "25", units=units) == [1.0, 1.0, 0.0]


def test_a_marker_says_where_the_answer_is_in_the_response_and_in_the_row():
    solution = "48 / 2 = 24, and 48 + 24 = 72.\n#### 72"
    assert scored(solution, "#### 72", "72", "#### 71\n#### 72", "#### 72, not 71", after="####") == [
        1.0,
        0.0,
        1.0,
        0.0,
    ]


def test_a_pattern_finds_the_answer_and_its_last_match_counts():
    boxed = r"\\boxed\{([^{}]*)\}"
    responses = (r"\boxed{72}", "72", r"\boxed{72} or \boxed{3}", r"\boxed{3}, no: \boxed{72}.")
    assert scored("72", *responses, extract=boxed) == [1.0, 0.0, 0.0, 1.0]


def test_a_choice_is_what_the_response_begins_with_and_no_word():
    responses = (
        "B",
        "(B)",
        "B. Paris",
        "**B**",
        "B\nbecause",
        "A",
        "Because",
        "B is right",
        "The answer is B",
        "b",
        "AB",
    )
    assert scored("B", *responses, kind="choice") == [1.0] * 5 + [0.0] * 6
    assert scored("B", "A dog. Answer: (B).", "Answer: A", kind="choice", after="Answer:") == [1.0, 0.0]


def test_a_response_cannot_name_all_choices():
    assert scored("B", "A B C D", "A, B", "A/B", "(A)(B)", kind="choice") == [0.0] * 4


def test_texts_are_compared_without_what_is_ignored():
    assert scored("The Cat", " the  cat ", "cat", "the cat.", kind="text") == [1.0, 0.0, 0.0]
    every = ["case", "punctuation", "articles"]
    assert scored("The Cat", "cat", "A cat!", "cats", "", kind="text", ignore=every) == [1.0, 1.0, 0.0, 0.0]
    assert scored("The Cat", "the cat", "The Cat", kind="text", ignore=[]) == [0.0, 1.0]
    assert normalized("ﬁne\u00a0x") == "fine x"


def test_the_pattern_of_a_row_has_to_match_the_whole_answer():
    assert scored(r"\d{4}-\d\d", " 2024-05 ", "2024-05-01", "in 2024-05", kind="pattern") == [1.0, 0.0, 0.0]


def test_one_of_several_right_answers_is_enough():
    assert scored([5, "7"], "5", "7.0", "6") == [1.0, 1.0, 0.0]


def test_without_a_column_the_response_of_the_row_is_right():
    prompt = Prompt("a", reference=" 5", further_references=("6",))
    reward = AnswerReward(AnswerRewardConfig(type="answer"))
    scores, details = reward.score_in_detail([ScoredText(prompt, "a", text) for text in ("5", "6", "7", "")])
    assert scores.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert details["answered"].tolist() == [1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("right", "settings", "words"),
    [
        (None, {}, r"reads the column 'answer', which in the row rows.jsonl:7 is None; .*its columns: 'answer'"),
        ([], {}, "expected a text, a number or a list"),
        ("many", {}, "right answer of the row rows.jsonl:7 is 'many'; expected a number"),
        ("2", {"kind": "choice"}, "expected one of A, B, C, D"),
        (" ", {"kind": "text"}, "expected some text"),
        ("(", {"kind": "pattern"}, "it is no regular expression"),
    ],
)
def test_a_row_without_a_usable_answer_is_an_error(right, settings, words):
    with pytest.raises(RewardError, match=words):
        scored(right, "5", **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ('kind="choice", tolerance=0.1', 'tolerance is for kind = "number", and kind is "choice"'),
        ('after="=", extract="=(.*)"', "after and extract both say where the answer is"),
        ('extract="="', "it has 0 groups"),
        ('extract="("', "it is no regular expression"),
        ('kind="choice", choices=["A"]', "at least 2"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        load_recipe("demo", [f'reward={{type="answer", {settings}}}'])
