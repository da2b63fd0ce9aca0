import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlhfkit.errors import DataError, ModelError
from rlhfkit.records import Preference, Prompt
from rlhfkit.rewards import BagOfWords, preference_baselines, share_of_pairs_won

GOOD = ["a lovely warm film", "lovely acting and a warm story", "warm and funny", "a funny lovely tale"]
BAD = ["a dull cold film", "dull acting and a cold story", "cold and tedious", "a tedious dull tale"]
RT_POLARITY = Path(__file__).parents[3] / "shared" / "data/sent_rt_polarity"


def pairs(chosen: list[str], rejected: list[str]) -> list[Preference]:
    return [Preference(Prompt(""), good, bad) for good, bad in zip(chosen, rejected, strict=True)]


@pytest.fixture(scope="module")
def judge() -> BagOfWords:
    return BagOfWords.fit(GOOD + BAD, [1] * 4 + [0] * 4, seed=0)


def test_better_texts_have_positive_log_odds(judge: BagOfWords, make_episodes):
    scores = judge.score(make_episodes("lovely and funny", "dull and tedious"))
    assert scores[0] > 0 > scores[1]


def test_scores_are_log_odds_of_an_independent_logistic_regression():
    # One word per kind, n texts each: by symmetry the weights are w and -w, the bias is 0, and the derivative of
    # w^2 + 2 n ln(1 + e^-w) vanishes where w = n / (1 + e^w), found here by bisection.
    count = 5
    judge = BagOfWords.fit(["good"] * count + ["bad"] * count, [1] * count + [0] * count, seed=0)
    low, high = 0.0, 10.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if middle < count / (1 + math.exp(middle)) else (low, middle)
    # The solver stops at a gradient of 1e-4, hence the tolerance.
    assert judge.log_odds(["good", "bad", "unknown"]) == pytest.approx([low, -low, 0.0], abs=1e-3)


def test_score_of_a_row_does_not_depend_on_its_batch(judge: BagOfWords, make_episodes):
    texts = ["lovely", "dull", "", "never seen before"]
    together = judge.score(make_episodes(*texts)).tolist()
    assert together == [judge.score(make_episodes(text)).item() for text in texts]


def test_no_texts_have_no_scores(judge: BagOfWords):
    assert judge.score([]).shape == (0,)


def test_accuracy_is_the_share_of_pairs_whose_chosen_text_scores_higher(judge: BagOfWords):
    assert judge.accuracy_on(pairs(["lovely", "warm"], ["dull", "cold"])) == 1.0
    assert judge.accuracy_on(pairs(["lovely", "dull"], ["dull", "lovely"])) == 0.5
    assert judge.accuracy_on(pairs(["unknown"], ["unknown"])) == 0.5


def test_preferences_are_texts_of_two_kinds():
    judge = BagOfWords.fit_preferences(pairs(GOOD, BAD), seed=0)
    assert judge.accuracy_on(pairs(GOOD, BAD)) == 1.0
    assert judge.accuracy_on(pairs(BAD, GOOD)) == 0.0


def test_same_seed_gives_the_same_bits():
    one, other = (BagOfWords.fit(GOOD + BAD, [1] * 4 + [0] * 4, seed=3).log_odds(GOOD) for _ in range(2))
    assert one.tobytes() == other.tobytes()


def test_saved_and_loaded_judge_gives_identical_scores(judge: BagOfWords, tmp_path: Path):
    judge.save(tmp_path / "judge")
    texts = [*GOOD, *BAD, "", "ein anderer film", "\u202e emoji 🎬 film"]
    assert BagOfWords.load(tmp_path / "judge").log_odds(texts).tobytes() == judge.log_odds(texts).tobytes()
    assert sorted(path.name for path in (tmp_path / "judge").iterdir()) == [
        "bag_of_words.json",
        "bag_of_words.safetensors",
    ]


def test_a_judge_of_one_kind_or_without_words_is_an_error():
    with pytest.raises(DataError, match=r"found \[1\]"):
        BagOfWords.fit(GOOD, [1] * 4, seed=0)
    with pytest.raises(DataError, match=r"found \[\]"):
        BagOfWords.fit_preferences([], seed=0)
    with pytest.raises(DataError, match="no word in 2 texts"):
        BagOfWords.fit(["...", "! ?"], [1, 0], seed=0)


def test_accuracy_on_no_pairs_is_an_error(judge: BagOfWords):
    with pytest.raises(DataError, match="no pair"):
        judge.accuracy_on([])


def test_a_directory_without_a_judge_is_an_error(tmp_path: Path):
    with pytest.raises(ModelError, match="holds no bag of words"):
        BagOfWords.load(tmp_path)


def test_damaged_judges_are_errors(judge: BagOfWords, tmp_path: Path):
    judge.save(tmp_path)
    description, parameters = tmp_path / "bag_of_words.json", tmp_path / "bag_of_words.safetensors"
    whole, tensors = json.loads(description.read_text()), load_file(parameters)
    for damage in ({**whole, "format": "another"}, {"format": whole["format"]}, [], {**whole, "vocabulary": ["film"]}):
        description.write_text(json.dumps(damage))
        with pytest.raises(ModelError, match="is damaged"):
            BagOfWords.load(tmp_path)
    description.write_text(json.dumps(whole))
    save_file({**tensors, "weights": np.zeros(2)}, parameters)
    with pytest.raises(ModelError, match="2 weights for"):
        BagOfWords.load(tmp_path)
    parameters.write_bytes(b"not safetensors")
    with pytest.raises(ModelError, match="is damaged"):
        BagOfWords.load(tmp_path)


def test_ties_count_half():
    assert share_of_pairs_won([1.0, 2.0, 3.0, 0.0], [0.0, 2.0, 4.0, 0.0]) == 0.5


def test_baselines_are_length_and_words():
    test = pairs(["lovely", "a warm tale", "funny"], ["dull film", "cold", "tired"])
    baselines = preference_baselines(pairs(GOOD, BAD), test, seed=0)
    assert baselines["shorter"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert baselines["longer"] == pytest.approx((0 + 1 + 0.5) / 3)
    assert baselines["tfidf_logistic"] == 1.0


def test_the_words_of_answers_without_a_word_can_only_be_guessed():
    baselines = preference_baselines(pairs(["A", "B"], ["B", "A"]), pairs(["A"], ["B"]), seed=0)
    assert baselines == {"tfidf_logistic": 0.5, "shorter": 0.5, "longer": 0.5}


@pytest.mark.skipif(not RT_POLARITY.exists(), reason=f"{RT_POLARITY} is not on this machine")
def test_film_reviews_are_told_apart():
    files = sorted(path for path in RT_POLARITY.iterdir() if path.name.endswith((".pos", ".neg")))
    negative, positive = (path.read_text(encoding="latin-1").splitlines()[:2000] for path in files)
    judge = BagOfWords.fit_preferences(pairs(positive[:1500], negative[:1500]), seed=0)
    # Logistic regression on this corpus is known to reach 0.75 to 0.78 per sentence, more on pairs.
    assert judge.accuracy_on(pairs(positive[1500:], negative[1500:])) > 0.75
