"""Plain text as a chat: what a user says and the assistant answers."""

import json

import pytest

from rlhfkit.config.data import DataConfig, LabelledConfig, RowsConfig
from rlhfkit.data.demonstrations import load_demonstrations
from rlhfkit.data.preferences import load_preferences
from rlhfkit.data.prompts import load_prompts
from rlhfkit.errors import ConfigError
from rlhfkit.records import Message

SYSTEM, QUESTION = Message("system", "Be brief."), Message("user", "How many are 2 + 3?")
GSM8K = {"question": "How many are 2 + 3?", "answer": "2 + 3 = 5\n#### 5"}


def source(tmp_path, *rows, **settings):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RowsConfig(path=str(path), **settings)


def prompts(tmp_path, *rows, **settings):
    return load_prompts(source(tmp_path, *rows, **settings)).records


def test_text_is_the_words_of_a_user_and_its_response_the_reference(tmp_path):
    (prompt,) = prompts(tmp_path, GSM8K, as_chat=True)
    assert prompt.content == (QUESTION,)
    assert prompt.reference == "2 + 3 = 5\n#### 5"


def test_a_system_message_makes_a_chat_too_and_an_own_one_stays(tmp_path):
    own = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    without = [
        {"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Yes?"), ("user", "Tea"))
    ]
    found = prompts(tmp_path, GSM8K, {"prompt": own}, {"prompt": without}, system="Be brief.")
    assert [prompt.content[0] for prompt in found] == [SYSTEM, Message("system", "Be kind."), SYSTEM]
    assert found[0].content == (SYSTEM, QUESTION)
    assert [turn.content for turn in found[2].content] == ["Be brief.", "Hi", "Yes?", "Tea"]


def test_formats_stand_inside_the_words_of_the_user(tmp_path):
    (prompt,) = prompts(tmp_path, GSM8K, as_chat=True, prompt_format="Q: {prompt}\nA:")
    assert prompt.content == (Message("user", "Q: How many are 2 + 3?\nA:"),)


def test_demonstrations_and_preferences_become_chats(tmp_path):
    (shown,) = load_demonstrations(source(tmp_path, GSM8K, as_chat=True)).records
    assert (shown.prompt.content, shown.response) == ((QUESTION,), "2 + 3 = 5\n#### 5")
    row = {"prompt": "How many are 2 + 3?", "chosen": "5", "rejected": "6"}
    (pair,) = load_preferences(source(tmp_path, row, system="Be brief.")).records
    assert (pair.prompt.content, pair.chosen, pair.rejected) == ((SYSTEM, QUESTION), "5", "6")


def test_said_once_for_all_tables_and_a_table_s_own_goes_first():
    data = DataConfig(path="x.jsonl", as_chat=True, system="Be brief.", prompts={}, test_prompts={"system": "Be kind."})
    assert (data.prompts.as_chat, data.prompts.system, data.test_prompts.system) == (True, "Be brief.", "Be kind.")


def test_whole_texts_are_no_chat():
    with pytest.raises(ConfigError, match="beginning_words parts whole texts, which are no chat"):
        RowsConfig(path="x.txt", beginning_words=(2, 4), as_chat=True)
    with pytest.raises(ConfigError, match=r"classes\.good\.as_chat does nothing here"):
        LabelledConfig(classes={"good": {"path": "a.txt", "as_chat": True}, "bad": {"path": "b.txt"}})
