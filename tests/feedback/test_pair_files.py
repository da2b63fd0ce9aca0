import gzip
import json

import pytest

from rlhfkit.errors import DataError
from rlhfkit.feedback.exchange import import_labels, read_pairs
from rlhfkit.feedback.votes import part_of_prompt
from rlhfkit.records import Message
from tests.feedback.label_cases import HOSTILE, write


def contents(path):
    return [(each.prompt, each.response_a, each.response_b) for each in read_pairs(path)]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "response_a": "x", "response_b": "y"},
        {"prompt": "q", "answer1": "x", "answer2": "y"},
        {"data": {"prompt": "q", "answer1": "x", "answer2": "y"}},
    ],
)
def test_rows_of_every_form_are_pairs(tmp_path, row):
    assert contents(write(tmp_path / "list.json", [row])) == [("q", "x", "y")]
    assert contents(write(tmp_path / "lines.jsonl", json.dumps(row))) == [("q", "x", "y")]
    assert contents(write(tmp_path / "one.json", json.dumps(row, indent=2))) == [("q", "x", "y")]


def test_transcripts_and_messages_are_pairs(tmp_path):
    row = {"chosen": "\n\nHuman: q\n\nAssistant: x", "rejected": "\n\nHuman: q\n\nAssistant: y"}
    [(prompt, one, other)] = contents(write(tmp_path / "x", [row]))
    assert prompt == (Message("user", "q"),)
    assert {one, other} == {"x", "y"}
    whole = {name: [{"role": "user", "content": name}] for name in ("response_a", "response_b")}
    assert contents(write(tmp_path / "x", [whole])) == [
        ("", (Message("user", "response_a"),), (Message("user", "response_b"),))
    ]


def test_chosen_is_on_either_side_the_same_each_time(tmp_path):
    rows = [{"prompt": str(number), "chosen": "x", "rejected": "y"} for number in range(200)]
    found = contents(write(tmp_path / "x", rows))
    assert 70 <= sum(one == "x" for _, one, _ in found) <= 130
    assert contents(tmp_path / "x") == found
    turned = [{"prompt": str(number), "chosen": "y", "rejected": "x"} for number in range(200)]
    assert contents(write(tmp_path / "x", turned)) == found


def test_pair_says_what_the_row_says(tmp_path):
    row = {"prompt": HOSTILE, "response_a": HOSTILE, "response_b": "", "model_a": "sft", "seed": 3, "id": "r1"}
    [found] = read_pairs(write(tmp_path / "rows.json", [row]), round=4)
    assert (found.prompt, found.response_a, found.response_b) == (HOSTILE, HOSTILE, "")
    assert (found.model_a, found.model_b, found.settings) == ("sft", "", {"seed": 3, "id": "r1"})
    assert (found.round, found.reason, found.origin) == (4, "given", "rows.json:1")
    [again] = read_pairs(write(tmp_path / "other.json", [row | {"seed": 4}]))
    assert again.id == found.id
    [different] = read_pairs(write(tmp_path / "other.json", [row | {"response_b": "z"}]))
    assert different.id != found.id


def test_parts_are_those_of_the_prompts(tmp_path):
    rows = [{"prompt": f"q{number}", "response_a": "x", "response_b": "y"} for number in range(50)]
    found = read_pairs(write(tmp_path / "x", rows), test_share=0.5, seed=3)
    assert [each.part for each in found] == [part_of_prompt(f"q{n}", test_share=0.5, seed=3) for n in range(50)]
    assert {each.part for each in found} == {"train", "test"}


def test_pair_that_comes_twice_is_one(tmp_path):
    row = {"prompt": "q", "response_a": "x", "response_b": "y"}
    turned = {"prompt": "q", "response_a": "y", "response_b": "x"}
    assert contents(write(tmp_path / "x", [row, row, turned])) == [("q", "x", "y")]


def test_gzip_and_byte_order_mark_are_read(tmp_path):
    row = b'{"prompt": "q", "response_a": "x", "response_b": "y"}\r\n'
    assert contents(write(tmp_path / "x", gzip.compress(row))) == [("q", "x", "y")]
    assert contents(write(tmp_path / "x", b"\xef\xbb\xbf" + row + b"\n" + row)) == [("q", "x", "y")]


GOOD = '{"prompt": "q", "response_a": "x", "response_b": "y"}'


@pytest.mark.parametrize(
    ("content", "start", "why"),
    [
        (b"", "x is empty", "is it the right file?"),
        (b" \n\t", "x is empty", "is it the right file?"),
        (b"[]", "x holds an empty list", "is it the right file?"),
        (f"[{GOOD}, ", "x is not JSON", "expected a list of objects; is the file whole?"),
        (f"{GOOD}\n{GOOD[:30]}", "x:2: not JSON", "is the file whole?"),
        ("hello", "x:1: not JSON", "expected one object on each line"),
        ('{\n"a": 1,\n', "x is not JSON", "expected one object"),
        (f"{GOOD}\n[1]", "x:2: a list", "expected an object"),
        ("[1, null]", "x:1: the number 1; expected an object", "2 bad records of 2, also x:2"),
        (GOOD.replace('"q"', "NaN"), "x:1: not JSON (NaN is not a number of JSON)", "expected one object"),
        (GOOD.replace('"q"', "-Infinity"), "x:1: not JSON (-Infinity", "expected"),
        (GOOD.replace("}", ', "n": 1e999}'), "x:1: a number is too large", "expected a finite one"),
        (GOOD.replace("}", f', "n": {"9" * 400}}}'), "x:1: a number is too large", "expected a finite one"),
        (GOOD.replace("}", f', "n": {"9" * 5000}}}'), "x:1: not JSON", "digits"),
        (GOOD.replace("}", f', "n": {"[" * 100 + "]" * 100}}}'), "x:1: it is nested deeper than 64", "flatten"),
        ("[" * 100_000, "x is not JSON that can be read: it is nested too deeply", "expected a list"),
        ('{"a":' * 100_000, "x:1: not JSON that can be read: it is nested too deeply", "expected one object"),
        (GOOD.replace("q", "\\ud83d"), "x:1: a text holds half a character", "fix it"),
        (GOOD.replace("}", ', "prompt": "z"}'), 'x:1: not JSON (an object has "prompt" twice)', "expected"),
        (b"\xff\xfe" + GOOD.encode("utf-16-le"), "x:1: byte 0 (0xff) is not UTF-8, so perhaps it is UTF-16", "save"),
        (f"{GOOD}\n".encode() + b'{"prompt": "\xe9"}', "x:2: byte", "perhaps it is another encoding; save the file"),
        (b"\x1f\x8b123", "x is damaged", "copy it again"),
        ('{"text": "x"}', 'x:1: the row has text; expected "response_a" and "response_b", "answer1"', "rename"),
        ("{}", "x:1: the row has nothing; expected", "rename"),
        ('{"data": 3}', 'x:1: "data" is the number 3', "expected an object"),
        ('{"prompt": "q", "answer1": "x"}', 'x:1: "answer2" is missing or null', "add it"),
        ('{"response_a": "x", "response_b": "y"}', 'x:1: there is no "prompt"', "add it"),
        (GOOD.replace('"y"', "true"), 'x:1: column "response_b" is true', "expected text or a list of messages"),
        (GOOD.replace('"y"', '"x"'), "x:1: both responses are equal", "remove the row"),
        (GOOD.replace('"y"', '[{"role": "user", "content": "y"}]'), "x:1: one response is text", "two of a kind"),
        (GOOD.replace("}", ', "model_a": 3}'), 'x:1: "model_a" is the number 3', "expected text"),
    ],
)
def test_broken_file_is_reported_with_the_place_and_what_to_do(tmp_path, content, start, why):
    with pytest.raises(DataError) as caught:
        read_pairs(write(tmp_path / "x", content))
    message = str(caught.value)
    assert message.startswith(start)
    assert why in message
    assert "\n" not in message
    assert len(message) < 400


def test_every_bad_row_is_named(tmp_path):
    lines = [GOOD, "{}", GOOD, *["{}"] * 12]
    with pytest.raises(DataError, match=r"x:2: .* \(13 bad records of 15, also x:4, x:5, .*x:11 and 4 more\)$"):
        read_pairs(write(tmp_path / "x", "\n".join(lines)))


@pytest.mark.parametrize("name", ["missing", "", "nul\0"])
@pytest.mark.parametrize("format", ["rlhfkit", "preferences", "hh", "argilla", "label-studio"])
def test_file_that_cannot_be_read_is_reported(tmp_path, name, format):
    with pytest.raises(DataError, match="fix the path"):
        import_labels(tmp_path / name, format=format)


@pytest.mark.parametrize("format", ["rlhfkit", "preferences", "hh", "argilla", "label-studio"])
@pytest.mark.parametrize(
    "content", ["", "[]", "[1]", "[{}]", '[{"id": 1', "{}", '{"pair": 1}', "null", '[{"id": NaN}]', b"\xff\xfe{"]
)
def test_no_format_takes_rubbish(tmp_path, format, content):
    with pytest.raises(DataError, match=r"^x"):
        import_labels(write(tmp_path / "x", content), format=format)
