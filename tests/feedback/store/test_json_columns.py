"""Values of any kind through the columns that hold JSON."""

import json

import pytest

from rlhfkit.feedback.tables import Json

VALUES = [
    "",
    "plain",
    "né 模",
    '"',
    '"a"',
    "a\\b",
    "\\",
    "[]",
    "{}",
    "\x00",
    "\ud800",
    [],
    {},
    ["x"],
    {"a": [1]},
    1.5,
    None,
]


@pytest.mark.parametrize("value", VALUES, ids=json.dumps)
def test_every_value_comes_back(value):
    column = Json()
    assert column.process_result_value(column.process_bind_param(value, None), None) == value


def test_empty_lists_are_not_shared():
    column = Json()
    column.process_result_value("[]", None).append(1)
    assert column.process_result_value("[]", None) == []


@pytest.mark.parametrize("text", ['"a', '"', '"a" "b"', "[", ""])
def test_what_is_no_json_is_no_value(text):
    with pytest.raises(ValueError):
        Json().process_result_value(text, None)
