"""The user who makes mistakes, at the real command line.

A mistake ends with exit code 1 and one line that says what is wrong and what to do. What can be known beforehand is
known before anything is written; what comes to light in a stage leaves a run that goes on once it is fixed.
: data."""

import pytest

from tests.bad_input.desk import Desk, jsonl, pairs

ROLE = {"prompt": [{"role": "robot", "content": "hi"}]}


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("demonstrations.jsonl", "", "data.demonstrations: demonstrations.jsonl is empty; expected at least one row"),
        ("test_prompts.jsonl", "\n \n", "data.test_prompts: test_prompts.jsonl is empty"),
        (
            "prompts.jsonl",
            jsonl({"prompt": "a"}, {"question": "b"}),
            'data.prompts: prompts.jsonl:2: no column "prompt"; the row has question; if it has another name, say so '
            'as in columns = {prompt = "question"} (1 bad row of 2; correct it, or leave it out with data.on_bad_row = '
            '"skip")',
        ),
        ("demonstrations.jsonl", jsonl({"prompt": "a"}), "demonstrations.jsonl:1: no response; the row has prompt"),
        ("preferences.jsonl", jsonl({"prompt": "a", "chosen": "b"}), 'preferences.jsonl:1: no column "rejected"'),
        (
            "test_prompts.jsonl",
            jsonl({"prompt": "a"}, {"prompt": True}),
            'test_prompts.jsonl:2: column "prompt" is true; expected text or a list of messages',
        ),
        (
            "demonstrations.jsonl",
            jsonl({"prompt": "a", "completion": {"text": "b"}}),
            "column \"completion\" is an object, {'text': 'b'}; expected text",
        ),
        (
            "test_prompts.jsonl",
            '{"prompt": "a"}\n\n{"prompt": "b\n{"prompt": "c"}\n',
            'test_prompts.jsonl:3: not JSON (character 12: Unterminated string starting at) in \'{"prompt": "b\'; ',
        ),
        ("prompts.jsonl", '[{"prompt": "a"},\n{"prompt": }]', "prompts.jsonl is not JSON: Expecting value: line 2 col"),
        (
            "judge_preferences.jsonl",
            '{"prompt": "a"}\n{"prompt": "café"}\n'.encode("latin-1"),
            "judge_preferences.jsonl:2: byte 31 (0xe9) is not utf-8; save the file as UTF-8, or say in its "
            "table, or by data.encoding for all, how it is written, perhaps encoding =",
        ),
        (
            "prompts.jsonl",
            jsonl({"prompt": "é"}).encode("utf-16-le"),
            'prompts.jsonl is full of zero bytes; expected UTF-8; if it is text, encoding = "utf-16-le" may read it',
        ),
        (
            "preferences.jsonl",
            pairs("one") + jsonl({"prompt": "a", "chosen": "b", "rejected": "b"}),
            "preferences.jsonl:2: chosen and rejected are equal; expected two responses of which one is better",
        ),
        (
            "prompts.jsonl",
            jsonl(ROLE),
            "prompt[1] has the role 'robot'; expected system, user or assistant; rename it",
        ),
        (
            "prompts.jsonl",
            jsonl({"prompt": ""}),
            "none of the 1 rows can be used; the first: prompts.jsonl:1: the prom",
        ),
    ],
    ids=[
        "empty file",
        "blank lines",
        "missing column",
        "missing response",
        "missing half of a pair",
        "true for text",
        "object for text",
        "broken JSON line",
        "broken JSON list",
        "Latin-1",
        "UTF-16",
        "chosen equal to rejected",
        "unknown role",
        "empty prompt",
    ],
)
def test_a_bad_data_file_is_named_with_its_line(desk: Desk, file: str, content: str | bytes, words: str):
    desk.write(file, content)
    assert words in desk.refused()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "data.test_prompts.path=test_promts.jsonl",
            "data.test_prompts: test_promts.jsonl is not in {here}; did you mean test_prompts.jsonl or",
        ),
        ("data.test_prompts.path=prompts", "prompts is not in {here}; did you mean prompts.jsonl"),
        ("data.prompts.path=else/where.jsonl", "else/where.jsonl is not there: no directory else; correct the path"),
        ("data.prompts.path=some/dataset", "some/dataset is not a file here and cannot be loaded from the hub"),
        ("data.prompts.path=recipe.toml", "recipe.toml is of unknown format; expected one of the endings .jsonl,"),
        ("data.prompts.path=model", "model is no directory of `datasets`"),
        ("data.test_prompts.rows=50:", 'rows = "50:" leaves none of the 2 rows of test_prompts.jsonl; widen the slice'),
        (
            "data.test_prompts.columns.prompt=ask",
            'test_prompts.jsonl:1: no column "ask"; the row has prompt; correct columns.prompt in the recipe',
        ),
        ("data.prompts.encoding=latin0", 'prompts.jsonl: encoding = "latin0" is unknown'),
    ],
)
def test_data_that_cannot_be_had_are_named_with_what_there_is(desk: Desk, override: str, words: str):
    assert words.format(here=desk.path) in desk.refused(override)


def test_whole_texts_need_the_number_of_words_that_are_the_prompt(desk: Desk):
    desk.write("texts.txt", "one two three four five\n")
    message = desk.refused("data.demonstrations.path=texts.txt")
    assert (
        "texts.txt:1: a whole text, of which nothing says where the prompt ends; to make its first 4 to 8 words the "
        "prompt, set beginning_words = [4, 8]" in message
    )


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        (
            '{type="labelled", classes={good={path="prompts.jsonl"}, bad={path="demonstrations.jsonl"}}}',
            'data.prompts: classes.good: none of the 2 rows can be used; the first: prompts.jsonl:1: no column "text"; '
            'the row has prompt; if it has another name, say so as in columns = {text = "prompt"}',
        ),
        (
            '{type="labelled", classes={good={path="prompts.jsonl", columns={text="prompt"}}, bad={path="no.txt"}}}',
            "data.prompts: classes.bad: no.txt is not in ",
        ),
        (
            '{type="labelled", classes={good={path="a.txt", rowz=":"}, bad={path="b.txt"}}}',
            "data.prompts.classes.good.rowz (from the command line): no such setting; did you mean data.prompts.c",
        ),
        (
            '{type="labelled", classes={good={path="a.txt"}}}',
            'data.prompts.classes = {"good": {"path": "a.txt"}} (from the command line): expected at least 2 of them',
        ),
        (
            '{path="prompts.jsonl", prompt_format="Say it"}',
            'data.prompts.prompt_format = "Say it" (from the command line): expected a text that matches \\{prompt\\}',
        ),
    ],
)
def test_prompts_that_cannot_be_made_are_named(desk: Desk, prompts: str, words: str):
    assert words in desk.refused(f"data.prompts={prompts}")


def test_skipping_bad_rows_needs_a_good_one(desk: Desk):
    desk.write("test_prompts.jsonl", jsonl({"prompt": ""}, {"prompt": None}))
    message = desk.refused("data.on_bad_row=skip")
    assert (
        "data.test_prompts: none of the 2 rows can be used; the first: test_prompts.jsonl:1: the prompt is" in message
    )


def test_every_fault_is_named_at_once(desk: Desk):
    desk.write("prompts.jsonl", "")
    code, output, errors = desk.run(
        "data.demonstrations.path=demos.jsonl", "model.path=./modle", "reward.function=rewarding:leters"
    )
    assert (code, output) == (1, "")
    heading, *faults = errors.splitlines()
    assert heading == "error: 4 faults, so nothing was started:"
    assert [fault.split(":")[0] for fault in faults] == [
        '  model.path = "./modle"',
        "  data.demonstrations",
        "  data.prompts",
        "  reward.function 'rewarding",
    ]
    assert not desk.run_dir.exists()
