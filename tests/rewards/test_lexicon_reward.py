from pathlib import Path

import pytest

from rlhfkit.config.rewards import LexiconRewardConfig
from rlhfkit.errors import DataError
from rlhfkit.rewards import LexiconReward, read_lexicon

VADER = Path(__file__).parents[3] / "shared" / "data/lex_vader/vader_lexicon.txt"


@pytest.fixture
def build(tmp_path: Path):
    (tmp_path / "words.txt").write_text("good\t2\nbad\t-3.0\nGreat\t4\tignored\t[1, 2]\n\n:)\t1.5\n", encoding="utf-8")
    return lambda **settings: LexiconReward(
        LexiconRewardConfig(type="lexicon", path="words.txt", **settings), directory=tmp_path
    )


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("good", 2.0),
        ("a good film", 2.0 / 3),
        ("good , but BAD !", (2.0 - 3.0) / 3),
        ("(good) great...", (2.0 + 4.0) / 2),
        ("fine :) -- ", 1.5 / 2),
        ("-- ...", 0.0),
        ("", 0.0),
        ("gut \u00fcber", 0.0),
    ],
)
def test_score_is_the_sum_of_weights_over_the_number_of_words(build, make_episodes, response, score):
    assert build().score(make_episodes(response)).tolist() == pytest.approx([score])


def test_case_counts_where_asked(build, make_episodes):
    episodes = make_episodes("great", "Great")
    assert build().score(episodes).tolist() == [4.0, 4.0]
    assert build(case_sensitive=True).score(episodes).tolist() == [0.0, 4.0]


def test_scores_do_not_depend_on_the_batch(build, make_episodes):
    together = build().score(make_episodes("good", "bad day", "so so")).tolist()
    assert together == [build().score(make_episodes(text)).item() for text in ("good", "bad day", "so so")]


def test_of_a_repeated_word_the_last_line_counts(tmp_path: Path):
    (tmp_path / "words.txt").write_text("lol\t2.9\nLOL\t1.8\n")
    assert read_lexicon(tmp_path / "words.txt") == {"lol": 1.8}


def test_windows_line_ends_and_byte_order_mark_are_read(tmp_path: Path):
    (tmp_path / "words.txt").write_bytes(b"\xef\xbb\xbfgood\t2\r\nbad\t-1\r\n\r\n")
    assert read_lexicon(tmp_path / "words.txt") == {"good": 2.0, "bad": -1.0}


@pytest.mark.parametrize("line", ["bad", "bad much", "bad\tvery", "bad\tnan", "bad\tinf", "\t1.0", "bad\t"])
def test_a_bad_line_is_named_with_file_and_number(tmp_path: Path, line: str):
    (tmp_path / "words.txt").write_text(f"good\t1\n{line}\n")
    with pytest.raises(DataError, match=r"words\.txt:2: .*`word TAB weight`"):
        read_lexicon(tmp_path / "words.txt")


def test_a_missing_an_empty_and_a_binary_file_are_errors(tmp_path: Path):
    with pytest.raises(DataError, match=r"absent\.txt.*No such file"):
        read_lexicon(tmp_path / "absent.txt")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match=r"empty\.txt has no entry"):
        read_lexicon(tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\t1\n")
    with pytest.raises(DataError, match="is not UTF-8"):
        read_lexicon(tmp_path / "latin.txt")


@pytest.mark.skipif(not VADER.exists(), reason=f"{VADER} is not on this machine")
def test_vaders_own_file_is_read():
    weights = read_lexicon(VADER)
    assert weights["good"] == 1.9
    assert weights["awful"] == -2.0
    assert len(weights) > 7000
