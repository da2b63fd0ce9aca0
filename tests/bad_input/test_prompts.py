"""The user who makes mistakes, at the real command line.

A mistake ends with exit code 1 and one line that says what is wrong and what to do. What can be known beforehand is
known before anything is written; what comes to light in a stage leaves a run that goes on once it is fixed.
: prompts."""

import pytest

from tests.bad_input.desk import ONLY_PPO, Desk, jsonl, pairs
from tests.tiny import Directory


def test_prompt_and_response_must_fit_the_context(desk: Desk):
    assert desk.refused("data.max_prompt_tokens=60") == (
        "data.max_prompt_tokens = 60 and rollout.max_response_tokens = 8 add up to 68, more than the model's context "
        "of 64 tokens; lower one of them"
    )


def test_prompt_and_response_must_fit_the_context_of_a_model_that_the_run_makes(desk: Desk):
    desk.write("texts.txt", "one two\nthree four\n")
    overrides = ('stages=["pretrain", "sft"]', 'model={type="scratch", context_tokens=30}', "data.texts.path=texts.txt")
    assert "add up to 32, more than the model's context of 30 tokens" in desk.refused(*overrides)


ASKED = {"prompt": [{"role": "user", "content": "hi"}]}
LONG_TEMPLATE = "Be kind to whoever asks you anything. {% for m in messages %}{{ m.content }}{% endfor %}"


def test_a_prompt_that_cannot_be_cut_is_named(desk: Desk):
    desk.write("prompts.jsonl", jsonl({"prompt": "a"}, ASKED))
    desk.write("long.jinja", LONG_TEMPLATE)
    message = desk.refused("model.chat_template=long.jinja")
    assert "data.prompts: prompts.jsonl:2 needs " in message
    assert "tokens even when cut, and data.max_prompt_tokens is 24; raise it, or" in message


@pytest.mark.thorough
def test_prompts_that_cannot_be_cut_are_bad_rows_and_may_be_skipped(desk: Desk):
    desk.write("prompts.jsonl", jsonl(ASKED, {"prompt": "a"}, {"prompt": "b"}))
    desk.write("long.jinja", LONG_TEMPLATE)
    code, _, errors = desk.run(ONLY_PPO, "data.on_bad_row=skip", "ppo.iterations=1", "model.chat_template=long.jinja")
    assert code == 0
    assert errors.count("data.prompts: 1 bad rows left out, the first: prompts.jsonl:1 needs ") == 1


@pytest.mark.parametrize("table", ["demonstrations", "prompts", "preferences"])
def test_conversations_that_the_chat_template_refuses_are_named(desk: Desk, table: str):
    desk.write("strict.jinja", "{{ raise_exception('roles must alternate') if messages[1:] else messages[0].content }}")
    turns = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    desk.write(f"{table}.jsonl", jsonl({"prompt": turns, "completion": "c", "chosen": "c", "rejected": "d"}))
    message = desk.refused("model.chat_template=strict.jinja")
    assert (
        f"data.{table}: none of the 1 rows can be used; the first: {table}.jsonl:1 does not fit the chat t" in message
    )
    assert "roles must alternate" in message


@pytest.mark.parametrize("content", [None, "{% for", "é".encode("latin-1")], ids=["missing", "broken", "not UTF-8"])
def test_a_chat_template_that_cannot_be_read_is_named(desk: Desk, content: str | bytes | None):
    if content is not None:
        desk.write("my.jinja", content)
    assert "my.jinja" in desk.refused("model.chat_template=my.jinja")


def test_a_stop_token_that_is_several_tokens_is_named(desk: Desk):
    assert desk.refused('rollout.stop_tokens=["###"]') == (
        "rollout.stop_tokens: '###' is 3 tokens for this tokenizer; expected a single one"
    )


@pytest.mark.thorough
def test_pairs_longer_than_the_context_are_cut(desk: Desk, directory_of: Directory):
    """GPT-2 looks its positions up in a table, which ends where its context does."""
    desk.write("preferences.jsonl", pairs("long " * 30, "longer " * 30))
    stages = 'stages=["reward_model", "judge"]'
    code, _, errors = desk.run(
        f"model.path={directory_of('gpt2')}",
        stages,
        "data.judge_preferences.path=preferences.jsonl",
        "judge.type=reward_model",
        "reward_model.normalization_responses=0",
    )
    assert code == 0, errors
