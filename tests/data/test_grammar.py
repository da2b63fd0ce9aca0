import numpy as np
import pytest

from rlhfkit.config.data import GrammarConfig
from rlhfkit.data import find_overlap, load_demonstrations, load_preferences, load_prompts, load_texts
from rlhfkit.data.grammar import OPINIONS, demonstrations, prompts, texts, true_score
from rlhfkit.errors import DataError

PROMPT = "Review of the Blue Door, a pizza place:"


@pytest.mark.parametrize(
    ("response", "score"),
    [
        (" The pizza was superb.", 1),
        (" The pizza was superb. The bread was stale.", 0),
        ("The pizza was superb. The bread was fresh. The price was fair.", 3),
        ("The price was fair. The pizza was superb.", 2),  # any order
        ("The pizza was superb. The pizza was superb. The pizza was superb.", -1),
        ("The pizza was superb. The pizza was tasty.", 0),
        ("The curry was superb.", -1),  # not at a pizza place
        ("The bread was superb.", -1),  # no clause of the grammar
        ("The pizza was superb. The waiter", 0),
        ("The pizza was superb..", 0),
        ("superb superb superb", -1),
        ("The pizza was superb.\n", 1),
        ("", 0),
        (
            " The pizza was superb. The bread was warm. The wine was fine. The dessert was light. The waiter was kind."
            " The room was bright. The music was soft. The price was low.",
            8,
        ),
    ],
)
def test_true_score_adds_good_and_subtracts_bad_and_malformed_clauses(response, score):
    assert true_score(PROMPT, response) == score


def test_true_score_wants_a_review_to_have_been_asked_for():
    with pytest.raises(DataError, match="'Write a poem:' does not ask for a review; expected a prompt such as"):
        true_score("Write a poem:", "The pizza was superb.")


def test_same_seed_writes_the_same_and_another_seed_something_else():
    assert demonstrations(50, 7) == demonstrations(50, 7)
    assert texts(50, 7) == [row.prompt.content + row.response for row in demonstrations(50, 7)]
    assert texts(50, 7) != texts(50, 8)


def test_scores_leave_room_for_more_than_two_deviations():
    rows = demonstrations(2000, 0)
    scores = np.array([true_score(row.prompt.content, row.response) for row in rows])
    # six to eight independent opinions of +1 or -1: mean 0, variance 7; bounds are three standard errors
    assert abs(scores.mean()) < 3 * np.sqrt(7 / 2000)
    assert scores.std() == pytest.approx(np.sqrt(7), rel=0.06)
    assert scores.mean() + 2.5 * scores.std() < 8


def test_no_clause_of_a_written_review_is_malformed():
    for row in demonstrations(200, 3):
        num_clauses = row.response.count(".")
        assert 6 <= num_clauses <= 8
        words = [clause.split()[-1] for clause in row.response.split(".")[:-1]]
        good = {word for fine, _ in OPINIONS.values() for word in fine}
        assert true_score(row.prompt.content, row.response) == sum(1 if word in good else -1 for word in words)


def test_no_word_is_good_of_one_thing_and_bad_of_another():
    good = {word for fine, _ in OPINIONS.values() for word in fine}
    bad = {word for _, poor in OPINIONS.values() for word in poor}
    assert not good & bad


def test_other_seeds_write_about_other_restaurants():
    worlds = [prompts(300, seed) for seed in range(8)]
    assert all(len({prompt.content for prompt in world}) == 256 for world in worlds)
    assert all(find_overlap(worlds[0], world) == 0 for world in worlds[1:])
    assert find_overlap(worlds[0], prompts(300, 8)) == 300


def test_prompt_comes_again_only_after_all_others():
    contents = [prompt.content for prompt in prompts(300, 2)]
    assert len(set(contents[:256])) == 256
    assert contents[256:] == contents[:44]


def test_loaders_add_the_offset_to_the_seed_and_hash_what_was_written():
    source = GrammarConfig(type="grammar", num_rows=5, seed_offset=3)
    loaded = load_demonstrations(source, seed=1)
    assert loaded.records == demonstrations(5, 4)
    assert loaded.sources[0].path == "grammar"
    assert loaded.sources[0].num_rows == 5
    assert loaded.sources[0].sha256 == load_demonstrations(source, seed=1).sources[0].sha256
    assert loaded.sources[0].sha256 != load_demonstrations(source, seed=2).sources[0].sha256
    assert load_texts(source, seed=1).records == texts(5, 4)
    assert load_prompts(source, seed=1).records == [row.prompt for row in loaded.records]


def test_chosen_review_is_truly_better():
    for pair in load_preferences(GrammarConfig(type="grammar", num_rows=40)).records:
        assert true_score(pair.prompt.content, pair.chosen) > true_score(pair.prompt.content, pair.rejected)
