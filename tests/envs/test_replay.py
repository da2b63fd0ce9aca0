import pytest

from rlhfkit.envs.check import check_text_env
from rlhfkit.envs.replay import ReplayEnv
from rlhfkit.errors import DataError
from rlhfkit.records import Message, Prompt


def dialogue(*users: str, system: str | None = None) -> Prompt:
    turns = [Message("system", system)] if system else []
    for user in users[:-1]:
        turns += [Message("user", user), Message("assistant", f"recorded answer to {user}")]
    return Prompt((*turns, Message("user", users[-1])), {"label": users[0]}, "rows.jsonl:1")


def test_the_user_says_what_the_recorded_user_said_whatever_the_answer():
    env = ReplayEnv([dialogue("one", "two", "three")], max_turns=5)
    assert env.reset(0).content == (Message("user", "one"),)
    first, second, third = (env.step(response) for response in ("anything", "", "three?"))
    assert [(step.observation, step.terminated) for step in (first, second)] == [("two", False), ("three", False)]
    assert third.terminated
    assert {step.reward for step in (first, second, third)} == {0.0}


def test_a_long_dialogue_ends_after_so_many_turns_of_the_user():
    env = ReplayEnv([dialogue("one", "two", "three")], max_turns=2)
    env.reset(0)
    assert env.step("a").observation == "two"
    assert env.step("b").terminated


def test_the_systems_words_and_the_rows_columns_stay():
    prompt = ReplayEnv([dialogue("one", "two", system="Be kind.")], max_turns=3).reset(0)
    assert prompt.content == (Message("system", "Be kind."), Message("user", "one"))
    assert (prompt.columns, prompt.origin) == ({"label": "one"}, "rows.jsonl:1")


def test_seeds_go_through_the_dialogues_and_around():
    env = ReplayEnv([dialogue("one"), dialogue("two"), dialogue("three")], max_turns=3)
    assert [env.reset(seed).content[0].content for seed in range(2, 6)] == ["three", "one", "two", "three"]


def test_it_passes_its_own_check():
    check_text_env(lambda: ReplayEnv([dialogue("one", "two"), dialogue("three")], max_turns=3))


def test_plain_text_is_no_dialogue():
    with pytest.raises(
        DataError, match=r'env\.type = "replay" needs conversations, and rows\.jsonl:3 has none; give rows'
    ):
        ReplayEnv([dialogue("one"), Prompt("Once upon", origin="rows.jsonl:3")], max_turns=3)
