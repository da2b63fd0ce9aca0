"""Texts whose class is known, the formats around prompts and responses, and tables without a header."""

from pathlib import Path

import pytest

from rlhfkit.config.data import LabelledConfig, RowsConfig
from rlhfkit.data import load_demonstrations, load_preferences, load_prompts, load_texts
from rlhfkit.errors import DataError
from rlhfkit.records import Message, Prompt

SHARED = Path(__file__).parents[3] / "shared" / "data"


def labelled(directory, texts, **settings):
    """Classes whose texts stand in one file each."""
    for name, lines in texts.items():
        (directory / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    classes = {name: {"path": f"{name}.txt"} for name in texts}
    return LabelledConfig.model_validate({"type": "labelled", "classes": classes, **settings})


def test_the_text_is_the_prompt_and_the_class_the_response(tmp_path):
    source = labelled(tmp_path, {"good": ["I like it."], "bad": ["I hate it."]}, prompt_format="{prompt}\nSentiment:")
    first, second = load_demonstrations(source, directory=tmp_path).records
    assert (first.prompt.content, first.response) == ("I like it.\nSentiment:", " good")
    assert (second.prompt.content, second.response) == ("I hate it.\nSentiment:", " bad")


def test_prompts_know_their_class_and_where_they_stand(tmp_path):
    source = labelled(tmp_path, {"good": ["one"], "bad": ["two"]}, response_format=": {response}!")
    assert load_prompts(source, directory=tmp_path).records == [
        Prompt("one", {}, "good.txt:1", ": good!"),
        Prompt("two", {}, "bad.txt:1", ": bad!"),
    ]


def test_classes_take_turns_in_proportion(tmp_path):
    source = labelled(tmp_path, {"often": list("abcdef"), "rare": list("xyz")})
    prompts = load_prompts(source, directory=tmp_path).records
    assert "".join(prompt.content for prompt in prompts) == "axbcydezf"


def test_a_class_may_be_a_column_of_a_table(tmp_path):
    (tmp_path / "reviews.csv").write_text('text,label\n"Good, really.",positive\nToo long.,negative\n')
    source = RowsConfig(
        path="reviews.csv",
        columns={"prompt": "text", "completion": "label"},
        prompt_format="Review: {prompt}\nSentiment:",
        response_format=" {response}",
    )
    (first, second), prompts = (
        load(source, directory=tmp_path).records for load in (load_demonstrations, load_prompts)
    )
    assert (first.prompt.content, first.response) == ("Review: Good, really.\nSentiment:", " positive")
    assert second.response == " negative"
    assert [prompt.reference for prompt in prompts] == [" positive", " negative"]


def test_a_text_may_hold_braces(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"prompt": "{prompt} {} {x}", "completion": "{response}"}\n')
    source = RowsConfig(path="x.jsonl", prompt_format="<{prompt}>", response_format=" {response}")
    (demonstration,) = load_demonstrations(source, directory=tmp_path).records
    assert (demonstration.prompt.content, demonstration.response) == ("<{prompt} {} {x}>", " {response}")


def test_both_responses_of_a_preference_are_formatted(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"prompt": "Tea?", "chosen": "Yes.", "rejected": "No."}\n')
    source = RowsConfig(path="x.jsonl", prompt_format="{prompt}\nA:", response_format=" {response}")
    (pair,) = load_preferences(source, directory=tmp_path).records
    assert (pair.prompt.content, pair.chosen, pair.rejected) == ("Tea?\nA:", " Yes.", " No.")


@pytest.mark.parametrize(
    ("row", "reference"),
    [
        ('{"prompt": "Hi", "completion": "Hello."}', "Hello."),
        ('{"prompt": "Hi", "response": " Hello."}', " Hello."),
        ('{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}', "Hello."),
        ('{"messages": [{"role": "user", "content": "Hi"}]}', None),
        ('{"prompt": "Hi"}', None),
        ('{"prompt": "Hi", "completion": " "}', None),
    ],
)
def test_the_reference_is_the_response_of_the_row(tmp_path, row, reference):
    (tmp_path / "x.jsonl").write_text(row + "\n")
    (prompt,) = load_prompts(RowsConfig(path="x.jsonl"), directory=tmp_path).records
    assert prompt.reference == reference


def test_a_conversation_is_not_formatted(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"prompt": [{"role": "user", "content": "Hi"}], "completion": "Hello."}\n')
    assert load_prompts(RowsConfig(path="x.jsonl"), directory=tmp_path).records[0].content == (Message("user", "Hi"),)
    for settings in ({"prompt_format": "{prompt}:"}, {"response_format": " {response}"}):
        with pytest.raises(DataError, match=r"x.jsonl:1: prompt_format and response_format are for text, .*leave them"):
            load_prompts(RowsConfig(path="x.jsonl", **settings), directory=tmp_path)


def test_an_empty_text_is_a_bad_row_of_its_class(tmp_path):
    source = labelled(tmp_path, {"good": ["one"], "bad": ["two"]}, prompt_format="Is {prompt} good?")
    (tmp_path / "bad.jsonl").write_text('{"text": " "}\n{"text": "two"}\n')
    classes = {"good": source.classes["good"], "bad": RowsConfig(path="bad.jsonl")}
    source = source.model_copy(update={"classes": classes})
    with pytest.raises(DataError, match=r"classes.bad: bad.jsonl:1: the prompt is empty; expected text"):
        load_prompts(source, directory=tmp_path)
    loaded = load_prompts(source, directory=tmp_path, on_bad_row="skip")
    assert [prompt.content for prompt in loaded.records] == ["Is one good?", "Is two good?"]
    assert loaded.skipped == ("bad.jsonl:1: the prompt is empty; expected text",)
    assert [file.path for file in loaded.sources] == ["good.txt", "bad.jsonl"]


@pytest.mark.parametrize(
    ("load", "words"),
    [(load_preferences, 'use type = "contrast"'), (load_texts, "for texts, name their files with path")],
)
def test_labelled_texts_are_neither_preferences_nor_texts(tmp_path, load, words):
    with pytest.raises(DataError, match=words):
        load(labelled(tmp_path, {"good": ["one"], "bad": ["two"]}), directory=tmp_path)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ({"good": {"path": "a.txt"}}, "at least 2 items"),
        ({"good": {"path": "a.txt", "prompt_format": "<{prompt}>"}, "bad": {"path": "b.txt"}}, "does nothing here"),
        ({"good": {"path": "a.txt", "beginning_words": [1, 2]}, "bad": {"path": "b.txt"}}, "does nothing here"),
    ],
)
def test_classes_that_will_not_do_are_refused(classes, words):
    with pytest.raises(ValueError, match=words):
        LabelledConfig.model_validate({"type": "labelled", "classes": classes})


# ── tables without a header ──────────────────────────────────────────────────────────────────────────────────────────


NAMES = ("prompt", "completion", "source")


@pytest.mark.parametrize(("name", "form"), [("x.tsv", "auto"), ("x.txt", "tsv")])
def test_columns_of_a_table_without_header_are_named_by_the_recipe(tmp_path, name, form):
    (tmp_path / name).write_bytes('Go.\tVa !\ta\r\nSay "aah."\tDis « ahhh » !\tb\r\n'.encode())
    source = RowsConfig(path=name, format=form, column_names=NAMES)
    first, second = load_demonstrations(source, directory=tmp_path).records
    assert (first.prompt, first.response) == (Prompt("Go.", {"source": "a"}, f"{name}:1", "Va !"), "Va !")
    assert (second.prompt.content, second.response) == ('Say "aah."', "Dis « ahhh » !")


def test_a_row_of_another_width_than_the_names_is_named(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\nc,d,e\n")
    source = RowsConfig(path="x.csv", column_names=("prompt", "completion"))
    with pytest.raises(DataError, match=r"x.csv:2: 3 fields; column_names has 2; put text that holds separators in"):
        load_prompts(source, directory=tmp_path)


def test_names_that_come_twice_are_refused(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n")
    with pytest.raises(DataError, match="column_names prompt,prompt names a column twice; rename one"):
        load_prompts(RowsConfig(path="x.csv", column_names=("prompt", "prompt")), directory=tmp_path)


def test_names_say_nothing_of_files_that_have_them(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"prompt": "Hi"}\n')
    with pytest.raises(DataError, match=r'x.jsonl is read as "jsonl", where column_names = .* leave it out, or set'):
        load_prompts(RowsConfig(path="x.jsonl", column_names=NAMES), directory=tmp_path)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data are not here")
def test_the_tatoeba_pairs_are_read_as_they_are():
    source = RowsConfig(path="eng-fra.txt", format="tsv", column_names=NAMES)
    loaded = load_demonstrations(source, directory=SHARED / "mt_tatoeba_en_fr")
    assert (len(loaded.records), loaded.skipped) == (5000, ())
    assert (loaded.records[0].prompt.content, loaded.records[0].response) == ("Go.", "Va !")
    assert loaded.records[1296].prompt.content == 'Say "aah."'
