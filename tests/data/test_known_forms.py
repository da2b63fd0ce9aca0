"""Rows as people have them: the forms of well-known data sets, messages written as text, parts, numbers."""

import json
import re
import tomllib

import pandas
import pytest

from rlhfkit.config.data import RowsConfig
from rlhfkit.data import load_demonstrations, load_preferences, load_prompts, load_texts
from rlhfkit.errors import DataError
from rlhfkit.records import Message

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello."}
WORSE = {"role": "assistant", "content": "What?"}
ASKED = (Message("user", "Hi"),)
SYSTEM = Message("system", "Be kind.")


def load(loader, tmp_path, *rows, name="x.jsonl", **settings):
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return loader(RowsConfig(path=name, **settings), directory=tmp_path)


def demonstration(tmp_path, row, **settings):
    (record,) = load(load_demonstrations, tmp_path, row, **settings).records
    return record.prompt.content, record.response


def preference(tmp_path, row, **settings):
    (record,) = load(load_preferences, tmp_path, row, **settings).records
    return record.prompt.content, record.chosen, record.rejected


def arena(*votes):
    """A row of lmsys, whose turns are lists written as JSON."""
    row = {"id": 1, "model_a": "x", "model_b": "y"}
    row |= {"prompt": '["Hi"]', "response_a": '["Hello."]', "response_b": '["What?"]'}
    return row | dict(zip(("winner_model_a", "winner_model_b", "winner_tie"), votes, strict=True))


TLDR = {"info": {"post": "My cat."}, "summaries": [{"text": " A cat."}, {"text": " A dog."}]}


# ── forms of data sets ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Add.", "input": "1 and 2", "output": "3"}, ("Add.\n\n1 and 2", "3")),
        ({"instruction": "Say hi.", "input": "", "output": "Hi."}, ("Say hi.", "Hi.")),
        (
            {"instruction": "Who?", "context": "Ada wrote.", "response": "Ada", "category": "qa"},
            ("Who?\n\nAda wrote.", "Ada"),
        ),
        ({"system_prompt": "Be kind.", "question": "Hi", "response": "Hello."}, ((SYSTEM, *ASKED), "Hello.")),
        ({"system_prompt": "", "question": "Hi", "response": "Hello."}, (ASKED, "Hello.")),
        ({"question": "1+1?", "answer": "2"}, ("1+1?", "2")),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]},
            (ASKED, "Hello."),
        ),
        (
            {
                "conversations": [
                    {"from": "system", "value": "Be kind."},
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "Hello."},
                ]
            },
            ((SYSTEM, *ASKED), "Hello."),
        ),
        (
            {"instruction": "More?", "output": "Yes.", "history": [["Hi", "Hello."]], "system": "Be kind."},
            ((SYSTEM, *ASKED, Message("assistant", "Hello."), Message("user", "More?")), "Yes."),
        ),
        (
            {
                "contents": [
                    {"role": "user", "parts": [{"text": "Hi"}]},
                    {"role": "model", "parts": [{"text": "Hello."}]},
                ]
            },
            (ASKED, "Hello."),
        ),
        ({"conversation": [USER, ANSWER], "system": "Be kind."}, ((SYSTEM, *ASKED), "Hello.")),
        (
            {"messages": [{"role": "system", "content": "Be kind."}, USER, ANSWER], "system": "Other."},
            ((SYSTEM, *ASKED), "Hello."),
        ),
        ({"messages": {"role": ["user", "assistant"], "content": ["Hi", "Hello."]}}, (ASKED, "Hello.")),
        (
            {"messages": [{"role": "developer", "content": "Be kind."}, USER, {"role": "model", "content": "Hello."}]},
            ((SYSTEM, *ASKED), "Hello."),
        ),
    ],
)
def test_demonstrations_of_known_data_sets_are_read_whole(tmp_path, row, expected):
    assert demonstration(tmp_path, row) == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"system": "Be kind.", "question": "Hi", "chosen": "Hello.", "rejected": "What?"},
            ((SYSTEM, *ASKED), "Hello.", "What?"),
        ),
        ({"instruction": "Add.", "input": "1 and 2", "chosen": "3", "rejected": "4"}, ("Add.\n\n1 and 2", "3", "4")),
        ({"history": "Hi", "human_ref_A": "a", "human_ref_B": "b", "labels": 1, "score_A": 9}, ("Hi", "a", "b")),
        ({"history": "Hi", "human_ref_A": "a", "human_ref_B": "b", "labels": 0}, ("Hi", "b", "a")),
        ({"prompt": "Hi", "response_a": "a", "response_b": "b", "preference": "B"}, ("Hi", "b", "a")),
        ({"prompt": "Hi", "response_0": "a", "response_1": "b", "better_response_id": 1}, ("Hi", "b", "a")),
        (
            {"conversation_a": [USER, ANSWER], "conversation_b": [USER, WORSE], "winner": "model_b"},
            (ASKED, "What?", "Hello."),
        ),
        (
            {"question": {"full_text": "Hi"}, "answer_0": "a", "answer_1": "b", "score_0": -0.5, "score_1": 0.5},
            ("Hi", "b", "a"),
        ),
        (
            {
                "prompt": "Hi",
                "answers": [{"answer": "b", "rank": 2}, {"answer": "a", "rank": 1}, {"answer": "c", "rank": 3}],
            },
            ("Hi", "a", "c"),
        ),
        (  # UltraFeedback: text as prompt, whole dialogues as answers
            {
                "prompt": "Hi",
                "chosen": [USER, ANSWER],
                "rejected": [USER, WORSE],
                "messages": [USER, ANSWER],
                "score_chosen": 8.0,
            },
            (ASKED, "Hello.", "What?"),
        ),
        (
            {
                "conversations": [{"from": "human", "value": "Hi"}],
                "chosen": {"from": "gpt", "value": "Hello."},
                "rejected": {"from": "gpt", "value": "What?"},
            },
            (ASKED, "Hello.", "What?"),
        ),
        (arena(0, 1, 0), (ASKED, "What?", "Hello.")),
        (arena("1", "0", "0"), (ASKED, "Hello.", "What?")),
        (arena(True, False, False) | {"prompt": ["Hi"], "response_a": ["Hello."]}, (ASKED, "Hello.", "What?")),
        (
            {
                "info": {"id": "t3", "post": "My cat.", "title": "Cat", "subreddit": "pets", "article": None},
                "summaries": [{"text": " A cat.", "policy": "sup4"}, {"text": " A dog.", "policy": "ref"}],
                "choice": 1,
                "batch": "batch3",
            },
            ("SUBREDDIT: r/pets\n\nTITLE: Cat\n\nPOST: My cat.\n\nTL;DR:", " A dog.", " A cat."),
        ),
        (
            {
                "info": {"article": "News.", "title": "Cat", "post": None, "subreddit": None},
                "summaries": [{"text": " A cat."}, {"text": " A dog."}],
                "choice": "0",
            },
            ("TITLE: Cat\n\nNews.\n\nTL;DR:", " A cat.", " A dog."),
        ),
    ],
)
def test_preferences_of_known_data_sets_are_read_whole(tmp_path, row, expected):
    assert preference(tmp_path, row) == expected


@pytest.mark.parametrize(
    ("loader", "row", "words"),
    [
        (
            load_preferences,
            {"conversation_a": [USER, ANSWER], "conversation_b": [USER, WORSE], "winner": "tie"},
            "winner is 'tie', which prefers neither",
        ),
        (
            load_preferences,
            {"prompt": "Hi", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 1}]},
            "all 2 answers are ranked alike",
        ),
        (load_preferences, arena(0, 0, 1), "winner_tie is 1, which prefers neither response_a nor response_b"),
        (load_preferences, arena(1, 1, 0), "winner_model_a, winner_model_b, winner_tie are 1, 1, 0; expected a single"),
        (load_preferences, arena(1, 0, 0) | {"response_b": "[]"}, "have 1, 1 and 0 turns"),
        (load_preferences, arena(1, 0, 0) | {"prompt": "['Hi']"}, "prompt is the text .* cannot be read as JSON"),
        (load_preferences, TLDR | {"choice": 2}, "choice is 2 of 2 summaries; expected 0 or 1"),
        (load_preferences, TLDR | {"info": {"id": "t3"}, "choice": 1}, "no post and no article, but id"),
        (
            load_demonstrations,
            {"message_id": "1", "parent_id": "0", "role": "prompter", "text": "Hi"},
            "one message of a tree .*join each path",
        ),
        (
            load_preferences,
            {"prompt": "Hi", "completion": "a", "label": True},
            r"marked as good or bad.*where = \{label = true\}",
        ),
    ],
)
def test_a_known_form_that_has_no_pair_says_what_it_is(tmp_path, loader, row, words):
    with pytest.raises(DataError, match=words):
        load(loader, tmp_path, row)


KTO = [{"prompt": "Hi", "completion": word, "label": label} for word, label in (("Hello.", True), ("No.", False))]


def test_an_answer_that_is_marked_as_bad_is_no_demonstration(tmp_path):
    with pytest.raises(DataError, match=r"x\.jsonl:2: label is False: .* where = \{label = true\}"):
        load(load_demonstrations, tmp_path, *KTO)
    kept = load(load_demonstrations, tmp_path, *KTO, where={"label": True})
    assert [record.response for record in kept.records] == ["Hello."]


def test_a_bad_answer_is_no_reference_of_its_prompt(tmp_path):
    assert [prompt.reference for prompt in load(load_prompts, tmp_path, *KTO).records] == ["Hello.", None]


def test_rows_are_chosen_by_the_value_of_a_column_whatever_its_type(tmp_path):
    (tmp_path / "x.csv").write_text("prompt,label,split\na,True,train\nb,False,train\nc,TRUE,test\n")
    rows = load_prompts(RowsConfig(path="x.csv", where={"label": True, "split": "train"}), directory=tmp_path).records
    assert [row.content for row in rows] == ["a"]
    with pytest.raises(
        DataError, match=r"where leaves none of the 3 rows of x\.csv: split holds 'train' \(2\), 'test' \(1\)"
    ):
        load_prompts(RowsConfig(path="x.csv", where={"split": "valid"}), directory=tmp_path)


# ── messages written as text ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("written", [json.dumps, repr, lambda value: json.dumps(json.dumps(value))])
def test_messages_that_are_written_as_text_are_messages(tmp_path, written):
    row = {"prompt": written([USER]), "chosen": written([USER, ANSWER]), "rejected": written(WORSE)}
    assert preference(tmp_path, row) == (ASKED, "Hello.", "What?")
    assert demonstration(tmp_path, {"messages": written([USER, ANSWER])}) == (ASKED, "Hello.")
    assert demonstration(tmp_path, {"prompt": "Hi", "completion": written([ANSWER])}) == (ASKED, "Hello.")
    assert preference(tmp_path, {"chosen": written([USER, ANSWER]), "rejected": written([USER, WORSE])}) == (
        ASKED,
        "Hello.",
        "What?",
    )


def test_a_table_that_pandas_wrote_is_read_as_it_was(tmp_path):
    frame = pandas.DataFrame({"prompt": [[USER]], "chosen": [[ANSWER]], "rejected": [[WORSE]]})
    frame.to_csv(tmp_path / "x.csv")
    frame.to_json(tmp_path / "x.json")
    frame.to_json(tmp_path / "split.json", orient="split")
    frame.to_parquet(tmp_path / "x.parquet")
    for name in ("x.csv", "x.json", "split.json", "x.parquet"):
        (record,) = load_preferences(RowsConfig(path=name), directory=tmp_path).records
        assert (record.prompt.content, record.chosen, record.rejected) == (ASKED, "Hello.", "What?"), name


def test_messages_that_numpy_wrote_as_text_are_refused_with_a_way_out(tmp_path):
    pandas.read_parquet(_parquet(tmp_path)).to_csv(
        tmp_path / "x.csv"
    )  # lists come back as arrays, printed without commas
    with pytest.raises(DataError, match=r"looks like messages and cannot be read as JSON; .*to_json"):
        load_preferences(RowsConfig(path="x.csv"), directory=tmp_path)


def _parquet(tmp_path):
    path = tmp_path / "x.parquet"
    pandas.DataFrame({"chosen": [[USER, ANSWER]], "rejected": [[USER, WORSE]]}).to_parquet(path)
    return path


@pytest.mark.parametrize("text", ['{"answer": 3}', '["a", "b"]', "[1, 2]", '"quoted"', "{'role'", '{"content": "x"}'])
def test_text_that_only_looks_a_little_like_messages_is_text(tmp_path, text):
    assert demonstration(tmp_path, {"prompt": "Hi", "completion": text}) == ("Hi", text)


# ── parts, tools, numbers ────────────────────────────────────────────────────────────────────────────────────────────


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (
            [{"role": "user", "content": parts("Hi")}, {"role": "assistant", "content": parts("Hel", "lo.")}],
            (ASKED, "Hello."),
        ),
        ([{"role": "user", "content": ["H", "i"]}, ANSWER], (ASKED, "Hello.")),
        ([{"role": "user", "content": None, "text": "Hi"}, {**ANSWER, "tool_calls": None}], (ASKED, "Hello.")),
        ([{"role": "User", "content": "Hi"}, {"role": "ASSISTANT", "content": 3}], (ASKED, "3")),
    ],
)
def test_content_without_loss_is_read(tmp_path, messages, expected):
    assert demonstration(tmp_path, {"messages": messages}) == expected


CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "weather"}}]}


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (CALL, r"messages\[2\] calls a tool: tool calls are not read; leave such rows out"),
        ({**CALL, "content": "Let me see."}, r"messages\[2\] calls a tool"),
        ({"role": "tool", "content": "sunny"}, r"messages\[2\] has the role 'tool'; .*tool calls are not read"),
        ({"role": "assistant", "content": None}, r"messages\[2\]\.content is empty; expected text"),
        (
            {"role": "assistant", "content": [{"type": "image_url", "image_url": {}}]},
            r"holds a part of type 'image_url'",
        ),
        ({"role": "assistant", "content": [{"type": "tool_use", "name": "w"}]}, "part of type 'tool_use': tool calls"),
        (
            {"role": "narrator", "content": "x"},
            "has the role 'narrator'; expected system, user or assistant; rename it",
        ),
    ],
)
def test_content_that_would_be_lost_is_named(tmp_path, message, words):
    with pytest.raises(DataError, match=words):
        load(load_demonstrations, tmp_path, {"messages": [USER, message]})


@pytest.mark.parametrize(("value", "text"), [(1, "1"), (-2.5, "-2.5"), ("7", "7")])
def test_numbers_are_their_text(tmp_path, value, text):
    assert demonstration(tmp_path, {"prompt": "Hi", "completion": value}) == ("Hi", text)


@pytest.mark.parametrize(
    ("value", "words"),
    [(True, "is true; expected"), ("nan", "stands for a missing value"), (float("nan"), "the number nan")],
)
def test_what_is_no_answer_is_refused(tmp_path, value, words):
    with pytest.raises(DataError, match=words):
        load(load_demonstrations, tmp_path, {"prompt": "Hi", "completion": value})


# ── remedies ─────────────────────────────────────────────────────────────────────────────────────────────────────────

MESSAGES = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]


@pytest.mark.parametrize(
    ("loader", "row", "settings", "columns"),
    [
        (load_prompts, {"query": "Hi", "id": "q1"}, {}, {"prompt": "query"}),
        (load_prompts, {"wish": "Hi"}, {}, {"prompt": "wish"}),
        (load_demonstrations, {"title": "Hi", "summary": "Hello."}, {}, {"prompt": "title", "completion": "summary"}),
        (load_demonstrations, {"prompt": "Hi", "answer": "Hello."}, {}, {"completion": "answer"}),
        (load_demonstrations, {"thread": MESSAGES}, {}, {"messages": "thread"}),
        (load_demonstrations, {"thread": MESSAGES}, {"columns": {"prompt": "thread"}}, {"messages": "thread"}),
        (
            load_demonstrations,
            {"ask": "Hi", "answer": "a"},
            {"columns": {"prompt": "ask"}},
            {"prompt": "ask", "completion": "answer"},
        ),
        (
            load_preferences,
            {"prompt": "Hi", "better": "a", "worse": "b"},
            {},
            {"chosen": "better", "rejected": "worse"},
        ),
        (
            load_preferences,
            {"title": "Hi", "good": "a", "bad": "b"},
            {},
            {"prompt": "title", "chosen": "good", "rejected": "bad"},
        ),
        (load_texts, {"article": "Words."}, {}, {"text": "article"}),
        (
            load_preferences,
            {"Prompt": "Hi", " chosen": "a", "Rejected": "b"},
            {},
            {"prompt": "Prompt", "chosen": " chosen", "rejected": "Rejected"},
        ),
        (
            load_preferences,
            {"input": {"messages": [USER]}, "preferred_output": [ANSWER], "non_preferred_output": [WORSE]},
            {},
            {"prompt": "input.messages", "chosen": "preferred_output", "rejected": "non_preferred_output"},
        ),
        (
            load_demonstrations,
            {"text": "Good film.", "label": "positive"},
            {},
            {"prompt": "text", "completion": "label"},
        ),
        (load_prompts, {"question": {"text": "Hi"}}, {}, {"prompt": "question.text"}),
    ],
)
def test_a_remedy_that_is_shown_works(tmp_path, loader, row, settings, columns):
    with pytest.raises(DataError, match=r"columns = \{.*\}") as caught:
        load(loader, tmp_path, row, **settings)
    shown = re.search(r"columns = (\{.*?\})", str(caught.value))
    assert tomllib.loads(f"columns = {shown[1]}")["columns"] == columns
    assert len(load(loader, tmp_path, row, columns=columns).records) == 1


def test_an_answer_of_null_is_empty_and_not_missing(tmp_path):
    with pytest.raises(DataError, match="the response is empty; expected text"):
        load(load_demonstrations, tmp_path, {"prompt": "Hi", "completion": None})


def test_lists_on_lines_are_named_by_their_line(tmp_path):
    (tmp_path / "x.jsonl").write_text('["Hi", "Hello."]\n["Hu", "Ha."]\n')
    with pytest.raises(DataError, match=r"x\.jsonl:1: a list, .*; expected an object"):
        load_demonstrations(RowsConfig(path="x.jsonl"), directory=tmp_path)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "Hi", "label": True}, r"there is text in|columns = \{completion = \"NAME\"\}"),
        ({"a": "x", "b": "y"}, r'columns = \{prompt = "NAME"\}; there is text in a, b'),
        ({"n": 3}, 'none of its columns holds text; add a column "prompt"'),
    ],
)
def test_where_nothing_works_no_column_is_proposed(tmp_path, row, words):
    with pytest.raises(DataError, match=words):
        load(load_demonstrations, tmp_path, row)


# ── notes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_text_that_takes_no_part_is_named(tmp_path):
    row = {"prompt": "Hi\n", "completion": "Hello.", "background": "The user is four years old.", "id": "x-1"}
    (note,) = load(load_demonstrations, tmp_path, row, row).notes
    assert note.startswith("the text of background takes no part in what the model reads")
    known = {"instruction": "Add the two numbers.", "input": "the numbers 1 and 2\n", "output": "They make 3."}
    assert load(load_demonstrations, tmp_path, known).notes == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (r"one\ntwo", r"backslash and n where a line break is meant"),
        ("a &amp; b", "HTML entities"),
        ("a\n\\nabla", None),
    ],
)
def test_signs_of_a_wrong_conversion_are_told(tmp_path, text, words):
    notes = load(load_demonstrations, tmp_path, {"prompt": "Hi\n", "completion": text}).notes
    assert [bool(re.search(words, note)) for note in notes] == [True] if words else notes == ()
