import json

import pytest

from rlhfkit.errors import DataError
from rlhfkit.feedback.exchange import read_labels, write_labels
from rlhfkit.records import Message
from tests.feedback.label_cases import CHOICES, pair, vote, write

GOLDEN = """\
{"pair": {"id": "p", "prompt": [{"role": "user", "content": "Why?"}], "response_a": "Because.", \
"response_b": "No idea.", "model_a": "", "model_b": "", "settings": {"seed": 3}, "round": 2, "reason": "given", \
"probability": null, "part": "train", "is_calibration": false, "origin": ""}, "votes": [{"number": 0, "id": "v", \
"pair_id": "p", "annotator": "ann", "choice": {"kind": "preference", "strength": -4, "skip_reason": null}, \
"shown_left": "b", "active_seconds": 1.5, "wall_seconds": 2.5, "flags_a": ["unsafe"], "flags_b": [], "comment": "", \
"guidelines_version": 0, "language": "en", "created_at": 0.0, "is_surplus": false}]}
"""
PAIR = pair(prompt=(Message("user", "Why?"),), settings={"seed": 3}, round=2)
VOTE = vote(id="v", choice=CHOICES[0], shown_left="b", flags_a=("unsafe",))


def test_golden_file_is_written_and_read(tmp_path):
    write_labels(tmp_path / "x.jsonl", [PAIR], [VOTE])
    assert (tmp_path / "x.jsonl").read_text() == GOLDEN
    found = read_labels(write(tmp_path / "y.jsonl", GOLDEN))
    assert (found.pairs, found.votes) == ([PAIR], [VOTE])


def changed(**changes):
    content = json.loads(GOLDEN)
    for path, value in changes.items():
        place = content
        *way, last = path.split("__")
        for step in way:
            place = place[int(step) if step.isdigit() else step]
        place[last] = value
    return content


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"pair": None}, '"pair" is empty; expected an object'),
        ({"pair__id": 3}, "pair: id is the number 3; Input should be a valid string"),
        ({"pair__round": "2"}, "pair: round is the text '2'"),
        ({"pair__part": "dev"}, "pair: part is the text 'dev'"),
        ({"pair__settings": []}, "pair: settings is empty"),
        ({"pair__prompt": [{"role": "x", "content": ""}]}, "prompt[1] has the role 'x'"),
        ({"votes": {}}, '"votes" is an object'),
        ({"votes__0__choice__strength": 5}, "strength 5 of a preference; expected ±1 to ±4"),
        ({"votes__0__choice__strength": 0}, "strength 0 of a preference"),
        ({"votes__0__choice__kind": "tie"}, "strength -4 of a tie"),
        ({"votes__0__choice__kind": "skip"}, "of a skip"),
        ({"votes__0__choice__kind": "draft"}, "choice.kind is the text 'draft'"),
        ({"votes__0__choice": None}, "vote: choice is empty"),
        ({"votes__0__flags_a": ["bad"]}, "flags_a.0 is the text 'bad'"),
        ({"votes__0__active_seconds": True}, "active_seconds is true"),
        ({"votes__0__pair_id": "q"}, 'vote "v" is on the pair "q", not on "p"'),
        ({"votes__0__shown_left": None}, "shown_left is empty"),
    ],
)
def test_broken_record_is_named(tmp_path, changes, why):
    path = write(tmp_path / "x.jsonl", json.dumps(changed(**changes)))
    with pytest.raises(DataError) as caught:
        read_labels(path)
    assert str(caught.value).startswith("x.jsonl:1: ")
    assert why in str(caught.value)


def test_pair_that_is_there_twice_is_reported(tmp_path):
    with pytest.raises(DataError, match='x: two pairs have the id "p"'):
        read_labels(write(tmp_path / "x", GOLDEN * 2))
