"""Files as others publish, export and convert them: which rows they hold, and what is said of those that are bad."""

import json
import re
import tomllib

import pytest

from rlhfkit.config.data import DataConfig, RowsConfig
from rlhfkit.data import load_demonstrations, load_preferences, load_prompts
from rlhfkit.errors import DataError
from rlhfkit.records import Message

PAIR = {"prompt": "Q: Why?\n", "chosen": "So.", "rejected": "No."}
PAIRS = [PAIR, {**PAIR, "prompt": "Q: How?\n"}]
ASKED = (Message("user", "Hi"),)


def written(tmp_path, name, content):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return {"source": RowsConfig(path=name), "directory": tmp_path}


def pairs(tmp_path, content, name="x.json", **settings):
    loaded = load_preferences(**written(tmp_path, name, content) | {"source": RowsConfig(path=name, **settings)})
    return [(record.prompt.content, record.chosen, record.rejected) for record in loaded.records]


def notes(tmp_path, *rows, loader=load_preferences, **settings):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    return loader(**written(tmp_path, "x.jsonl", text) | {"source": RowsConfig(path="x.jsonl", **settings)}).notes


def message(tmp_path, *rows, loader=load_preferences, name="x.jsonl"):
    with pytest.raises(DataError) as caught:
        loader(**written(tmp_path, name, "".join(json.dumps(row) + "\n" for row in rows)))
    return str(caught.value)


# ── which of several answers is better ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("row", "chosen"),
    [
        ({"prompt": "Hi", "response_1": "a", "response_2": "b", "preference_strength": -2}, "a"),
        ({"prompt": "Hi", "response_1": "a", "response_2": "b", "preference_strength": "3"}, "b"),
        ({"context": "Hi", "response1": "a", "response2": "b", "overall_preference": 1}, "b"),
        ({"instruction": "Hi", "input": "", "output_1": "a", "output_2": "b", "preference": 1}, "a"),
        ({"prompt": "Hi", "response_a": "a", "response_b": "b", "winner": "model_b"}, "b"),
        ({"prompt": "Hi", "responses": ["b", "a", "c"], "scores": [0.5, 0.9, 0.7]}, "a"),
        (
            {
                "source": "sharegpt",
                "instruction": "Hi",
                "completions": [{"response": "b", "overall_score": 2.0}, {"response": "a", "overall_score": 8.5}],
            },
            "a",
        ),
    ],
)
def test_the_better_answer_is_taken_by_what_the_row_says(tmp_path, row, chosen):
    rejected = {"a": "b", "b": "a"}[chosen]
    assert pairs(tmp_path, [row]) == [("Hi", chosen, rejected)]


@pytest.mark.parametrize("value", [0, None, "", "same"])
def test_a_strength_that_prefers_neither_is_no_preference(tmp_path, value):
    row = {"prompt": "Hi", "response_1": "a", "response_2": "b", "preference_strength": value}
    assert "prefers neither response_1 nor response_2" in message(tmp_path, row)


def test_two_answers_of_which_nothing_known_says_the_better_are_not_guessed(tmp_path):
    row = {"id": "x", "model_a": "g", "model_b": "l", "prompt": "Hi", "response_a": "a", "response_b": "b", "tie": 0}
    said = message(tmp_path, row)
    assert "response_a, response_b look like two answers" in said
    assert "columns =" not in said


def test_single_answers_are_told_apart_from_missing_names(tmp_path):
    assert "its answers are single ones" in message(tmp_path, {"prompt": "Hi", "response": "a", "helpfulness": 4})


@pytest.mark.parametrize("parent", [None, "m1"])
def test_messages_of_a_tree_are_no_texts(tmp_path, parent):
    row = {"message_id": "m2", "parent_id": parent, "message_tree_id": "m1", "text": "Hi", "role": "prompter"}
    assert "the row is one message of a tree" in message(tmp_path, row, loader=load_prompts)


def test_a_whole_tree_is_not_read_as_its_first_message(tmp_path):
    row = {"prompt": {"text": "Hi", "role": "prompter", "replies": [{"text": "a", "role": "assistant"}]}}
    assert "the row is a tree of messages" in message(tmp_path, row, loader=load_prompts)


def test_exchanges_of_input_and_output_are_a_conversation(tmp_path):
    turns = [{"input": "Hi", "output": "Hello."}, {"input": "Why?", "output": "So."}]
    (record,) = load_demonstrations(**written(tmp_path, "x.json", [{"conversation": turns}])).records
    assert record.prompt.content == (*ASKED, Message("assistant", "Hello."), Message("user", "Why?"))
    assert record.response == "So."


def test_rows_with_and_without_a_system_prompt_have_one_shape(tmp_path):
    rows = [{"system": system, "question": "Hi", "chosen": "a", "rejected": "b"} for system in ("Be kind.", "", None)]
    contents = [content for content, _, _ in pairs(tmp_path, rows)]
    assert contents == [(Message("system", "Be kind."), *ASKED), ASKED, ASKED]


def test_a_system_prompt_that_formats_leave_out_is_reported(tmp_path):
    row = {"system": "Be very kind.", "question": "Hi", "response": "a"}
    (note,) = notes(tmp_path, row, loader=load_demonstrations, prompt_format="{prompt}\n")
    assert note.startswith("the text of system takes no part")


def test_images_beside_the_text_are_not_passed_over(tmp_path):
    row = {"prompt": [{"role": "user", "content": "<image>What?"}], "images": ["a.png"], "chosen": "a", "rejected": "b"}
    assert 'column "images" holds what is no text' in message(tmp_path, row)
    assert len(pairs(tmp_path, [{**row, "images": []}])) == 1


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "content",
    [
        {"0": PAIRS[0], "1": PAIRS[1]},  # pandas, orient="index"
        {name: [row[name] for row in PAIRS] for name in PAIR},  # Dataset.to_dict()
        {"test": [PAIR], "train": PAIRS},
    ],
)
def test_json_of_one_object_holds_its_rows(tmp_path, content):
    assert [content for content, _, _ in pairs(tmp_path, content)] == ["Q: Why?\n", "Q: How?\n"]


def test_json_of_several_splits_is_read_by_the_split_that_is_named(tmp_path):
    assert len(pairs(tmp_path, {"test": [PAIR], "train": PAIRS, "data": [PAIR] * 3}, split="test")) == 1


def test_one_row_of_messages_is_not_taken_for_columns(tmp_path):
    row = {
        "prompt": [{"role": "user", "content": "Hi"}],
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    }
    assert pairs(tmp_path, row) == [(ASKED, "a", "b")]


def test_the_line_that_tells_excel_the_separator_is_no_header(tmp_path):
    text = 'sep=;\r\nprompt;chosen;rejected\r\n"Why, then? ";So.;No.\r\n'
    assert pairs(tmp_path, text, name="x.csv") == [("Why, then? ", "So.", "No.")]
    with pytest.raises(DataError, match=r"x\.csv:3: 2 fields; the header has 3"):
        pairs(tmp_path, "sep=;\nprompt;chosen;rejected\nWhy?;So.\n", name="x.csv")


def test_a_table_of_excel_that_is_called_txt_can_be_read_as_it_is_reported(tmp_path):
    text = "prompt\tchosen\trejected\nWhy? \tSo.\tNo.\n".encode("utf-16")
    with pytest.raises(DataError, match=r'its lines hold tabs: if it is a table, set data\.format = "tsv"'):
        pairs(tmp_path, text, name="x.txt")
    assert pairs(tmp_path, text, name="x.txt", format="tsv") == [("Why? ", "So.", "No.")]


def test_quotation_marks_of_windows_survive_the_encoding_that_is_proposed(tmp_path):
    text = json.dumps({**PAIR, "chosen": "“So” – yes"}, ensure_ascii=False).encode("windows-1252")
    with pytest.raises(DataError) as caught:
        pairs(tmp_path, text, name="x.jsonl")
    proposed = re.search(r'encoding = "(.*?)"', str(caught.value))[1]
    assert pairs(tmp_path, text, name="x.jsonl", encoding=proposed)[0][1] == "“So” – yes"


def test_files_of_a_directory_are_named_as_they_can_be_given(tmp_path):
    (tmp_path / "d" / "data").mkdir(parents=True)
    for name in ("d/data/a.jsonl", "d/b.jsonl"):
        (tmp_path / name).write_text(json.dumps(PAIR))
    with pytest.raises(DataError) as caught:
        load_preferences(RowsConfig(path="d"), directory=tmp_path)
    shown = re.search(r"data\.path = (\[.*?\])", str(caught.value))[1]
    paths = tuple(tomllib.loads(f"path = {shown}")["path"])
    assert paths == ("d/b.jsonl", "d/data/a.jsonl")
    assert len(load_preferences(RowsConfig(path=paths), directory=tmp_path).records) == 2


def test_texts_that_are_prompts_can_be_read_as_it_is_reported(tmp_path):
    files = written(tmp_path, "x.txt", "Why is it so?\nHow?\n")
    with pytest.raises(DataError) as caught:
        load_prompts(**files)
    shown = re.search(r"columns = (\{.*?\})", str(caught.value))[1]
    source = RowsConfig(path="x.txt", columns=tomllib.loads(f"c = {shown}")["c"])
    records = load_prompts(source, directory=tmp_path).records
    assert [record.content for record in records] == ["Why is it so?", "How?"]


def test_an_object_in_quotes_is_reported_from_text(tmp_path):
    with pytest.raises(DataError, match=r"x\.jsonl:1: an object in quotes, .*write it without them"):
        pairs(tmp_path, json.dumps(json.dumps(PAIR)), name="x.jsonl")


# ── names of columns ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({" prompt": "Hi", "chosen ": "a", "rejected": "b"}, {"prompt": " prompt", "chosen": "chosen "}),
        ({"system": "", "input": "Hi", "chosen": "a", "rejected": "b"}, {"prompt": "input"}),
        (
            {"trajectory": [{"from": "user", "value": "Hi"}], "chosen": "a", "rejected": "b", "task": "x", "id": "y"},
            {"prompt": "trajectory"},
        ),
        (
            {"question": "Hi", "response_j": "a", "response_k": "b"},
            {"chosen": "response_j", "rejected": "response_k"},
        ),
    ],
)
def test_names_that_are_proposed_for_a_pair_work(tmp_path, row, columns):
    shown = re.search(r"columns = (\{.*?\})", message(tmp_path, row))[1]
    assert tomllib.loads(f"c = {shown}")["c"] == columns
    assert [pair[1:] for pair in pairs(tmp_path, [row], columns=columns)] == [("a", "b")]


def test_of_several_names_the_likeliest_is_proposed(tmp_path):
    said = message(tmp_path, {"source": "web", "title": "Tea", "instruction": "Hi"}, loader=load_prompts)
    assert 'columns = {prompt = "instruction"}' in said


# ── notes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("prompt", "response", "is_told"),
    [
        ("What is tea?", "A drink.", True),
        ("Count to", "3", True),
        ("What is tea?", " A drink.", False),
        ("What is tea?\n", "A drink.", False),
        ("<answer>", "A drink.", False),
        ("茶是什么", "饮料", False),
        ([{"role": "user", "content": "What is tea?"}], "A drink.", False),
    ],
)
def test_a_response_that_is_glued_to_its_prompt_is_reported(tmp_path, prompt, response, is_told):
    row = {"prompt": prompt, "completion": response}
    found = [note for note in notes(tmp_path, row, loader=load_demonstrations) if "nothing stands between" in note]
    assert bool(found) is is_told
    if is_told:
        assert notes(tmp_path, row, loader=load_demonstrations, prompt_format="{prompt}\n") == ()


def test_responses_that_repeat_their_prompt_are_told(tmp_path):
    row = {"prompt": "What is tea?\n", "chosen": "What is tea?\nA drink.", "rejected": "What is tea?\nNo."}
    (note,) = notes(tmp_path, row, row)
    assert note.startswith("2 of 2 responses looked at begin with their whole prompt")


def test_answers_that_were_compared_are_not_called_unused(tmp_path):
    row = {
        "question": {"full_text": "Why is it so?\n"},
        "answer_0": "It is so because.",
        "answer_1": "I do not know it.",
        "score_0": 1,
        "score_1": -1,
    }
    assert notes(tmp_path, row) == ()


@pytest.mark.parametrize("text", ["It\x92s so", "Itâ€™s so", "cafÃ©", "caf\ufffd"])
def test_text_that_was_read_in_another_encoding_is_reported(tmp_path, text):
    (note,) = notes(tmp_path, {**PAIR, "chosen": text})
    assert "wrong encoding" in note


# ── settings for every table ─────────────────────────────────────────────────────────────────────────────────────────


def test_what_data_says_of_files_holds_for_every_table_that_does_not_say_otherwise():
    data = DataConfig(
        path="x.csv",
        split="train_prefs",
        encoding="windows-1252",
        format="csv",
        prompt_format="{prompt}\n",
        response_format=" {response}",
        prompts={"rows": ":2"},
        preferences={"split": "test_prefs", "format": "tsv"},
    )
    assert (data.prompts.split, data.prompts.format, data.prompts.encoding) == ("train_prefs", "csv", "windows-1252")
    assert (data.prompts.prompt_format, data.prompts.response_format) == ("{prompt}\n", " {response}")
    assert (data.preferences.split, data.preferences.format) == ("test_prefs", "tsv")


def test_a_line_break_that_the_shell_has_spoilt_is_refused():
    with pytest.raises(ValueError, match="holds a backslash and an n, no line break"):
        DataConfig(path="x.csv", prompt_format="{prompt}\\n")
    DataConfig(path="x.csv", prompt_format="{prompt} \\nabla")


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    with pytest.raises(DataError, match="a pointer of Git LFS, not the file itself; fetch it with git lfs pull"):
        pairs(tmp_path, "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", name="x.parquet")
