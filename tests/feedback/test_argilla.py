import copy
import json
import uuid

import pytest

from rlhfkit.errors import DataError
from rlhfkit.feedback.exchange import LABELS, ArgillaNames, preferences_of, read_argilla, write_argilla
from rlhfkit.feedback.votes import Choice
from rlhfkit.records import Message
from tests.feedback.label_cases import CHOICES, pair, vote, write

FLAT = """
[{"id": "p17", "_server_id": "0b6e5c1e-3b52-4c5b-9b3b-0a3f8a1d2c3d", "prompt": "Why is the sky blue?",
  "response_a": "Rayleigh scattering.", "response_b": "<script>alert(1)</script>", "round": 2, "topic": ["physics"],
  "embedding": [0.25, -1.5],
  "preference.responses": ["a_better", "tie", "b_much_better"],
  "preference.responses.users": ["5f1c", "9a20", "77aa"],
  "preference.responses.status": ["submitted", "draft", "discarded"],
  "quality.responses": [4], "quality.responses.users": ["5f1c"], "quality.responses.status": ["submitted"],
  "preference.suggestion": "a_better", "preference.suggestion.score": 0.71, "preference.suggestion.agent": "rm-r1"},
 {"id": "p18", "_server_id": null, "prompt": "And red?", "response_a": "", "response_b": "Dust.", "round": null,
  "topic": null, "embedding": null,
  "preference.responses": null, "preference.responses.users": null, "preference.responses.status": null,
  "quality.responses": null, "quality.responses.users": null, "quality.responses.status": null,
  "preference.suggestion": null, "preference.suggestion.score": null, "preference.suggestion.agent": null}]
"""
NESTED = """
[{"id": "p17", "fields": {"prompt": "Why?", "response_a": "Because.", "response_b": "No idea."},
  "metadata": {"round": 2}, "suggestions": {"preference": {"value": "tie", "score": null, "agent": null}},
  "responses": {"preference": [{"value": "b_better", "user_id": "5f1c"}, {"value": "a_better", "user_id": "9a20"}]},
  "vectors": {"v": [0.5]}, "_server_id": "0b6e"}]
"""


def flat(**changes):
    """The first record of FLAT, changed."""
    return {**json.loads(FLAT)[0], **{name.replace("__", "."): value for name, value in changes.items()}}


def without_ours(records):
    """The records without what rlhfkit adds to its metadata, and without the empty columns that this leaves."""
    records = copy.deepcopy(records)
    for record in records:
        metadata = record.get("metadata", record)
        del metadata["rlhfkit"]
        if metadata.get("part") in ("train", "test"):
            del metadata["part"]
    return records


def test_golden_export_is_read(tmp_path):
    found = read_argilla(write(tmp_path / "export.json", FLAT))
    assert [(each.id, each.prompt, each.response_a, each.response_b, each.round) for each in found.pairs] == [
        ("p17", "Why is the sky blue?", "Rayleigh scattering.", "<script>alert(1)</script>", 2),
        ("p18", "And red?", "", "Dust.", 1),
    ]
    assert [(one.pair_id, one.annotator, one.choice) for one in found.votes] == [
        ("p17", "5f1c", Choice("preference", 3)),
        ("p17", "77aa", Choice("skip", skip_reason="other")),
    ]
    assert found.left_out == {"drafts": 1}
    assert found.pairs[0].origin == "export.json:1"


def test_neither_draft_nor_discarded_nor_suggestion_becomes_a_preference(tmp_path):
    record = flat(preference__responses__status=["draft", "draft", "discarded"])
    found = read_argilla(write(tmp_path / "x", [record]))
    result = preferences_of(found.pairs, found.votes)
    assert (result.preferences, result.num_skipped) == ([], 1)


def test_export_goes_in_and_out_without_loss(tmp_path):
    found = read_argilla(write(tmp_path / "in", FLAT))
    write_argilla(tmp_path / "out", found.pairs, found.votes)
    out = json.loads((tmp_path / "out").read_text())
    first, second = without_ours(out)
    assert first == json.loads(FLAT)[0]
    assert {name: value for name, value in second.items() if value is not None} == {
        "id": "p18", "prompt": "And red?", "response_a": "", "response_b": "Dust."
    }  # fmt: skip
    again = read_argilla(tmp_path / "out")
    assert (again.votes, again.left_out) == (found.votes, found.left_out)
    write_argilla(tmp_path / "again", again.pairs, again.votes)
    assert without_ours(json.loads((tmp_path / "again").read_text())) == [first, second]


def test_flat_and_nested_hold_the_same(tmp_path):
    found = read_argilla(write(tmp_path / "in", FLAT))
    write_argilla(tmp_path / "nested", found.pairs, found.votes, form="nested")
    record = json.loads((tmp_path / "nested").read_text())[0]
    assert record["vectors"] == {"embedding": [0.25, -1.5]}
    assert record["suggestions"] == {"preference": {"value": "a_better", "score": 0.71, "agent": "rm-r1"}}
    assert record["responses"]["quality"] == [{"value": 4, "user_id": "5f1c", "status": "submitted"}]
    assert record["metadata"]["topic"] == ["physics"]
    again = read_argilla(tmp_path / "nested")
    assert again.votes == found.votes
    write_argilla(tmp_path / "flat", again.pairs, again.votes)
    assert without_ours(json.loads((tmp_path / "flat").read_text()))[0] == json.loads(FLAT)[0]


def test_nested_export_without_status_is_refused_unless_told(tmp_path):
    path = write(tmp_path / "export.json", NESTED)
    with pytest.raises(DataError) as caught:
        read_argilla(path)
    assert str(caught.value) == (
        'export.json:1: record "p17": the response of user "5f1c" has no status, so that a draft would look like a '
        "vote; export with to_list(flatten=True), which has it, or say what to do: --without-status leave-out, or "
        "--without-status submitted"
    )
    left_out = read_argilla(path, without_status="leave-out")
    assert (left_out.votes, left_out.left_out) == ([], {"responses without a status": 2})
    taken = read_argilla(path, without_status="submitted")
    assert [one.choice.strength for one in taken.votes] == [-3, 3]


@pytest.mark.parametrize("without_status", ["leave-out", "submitted"])
def test_nested_export_goes_in_and_out_without_loss(tmp_path, without_status):
    found = read_argilla(write(tmp_path / "in", NESTED), without_status=without_status)
    write_argilla(tmp_path / "out", found.pairs, found.votes, form="nested")
    assert without_ours(json.loads((tmp_path / "out").read_text())) == json.loads(NESTED)


def test_names_of_users_and_labels_are_understood_and_written_as_they_were(tmp_path):
    record = flat(preference__responses=["links", "tie", "tie"])
    path = write(tmp_path / "in", [record])
    found = read_argilla(path, users={"5f1c": "Ann"}, labels={"links": "a_slightly_better"})
    assert [(one.annotator, one.choice.strength) for one in found.votes] == [("Ann", 2), ("77aa", 0)]
    write_argilla(tmp_path / "out", found.pairs, found.votes)
    assert without_ours(json.loads((tmp_path / "out").read_text())) == [record]


def test_ranking_with_ranks_is_understood_ties_too(tmp_path):
    def ranking(a, b):
        return [{"rank": b, "value": "response_b"}, {"rank": a, "value": "response_a"}]

    record = flat(preference__responses=[ranking(1, 2), ranking(1, 1), ranking(2, 1)])
    record["preference.responses.status"] = ["submitted"] * 3
    found = read_argilla(write(tmp_path / "x", [record]))
    assert [one.choice for one in found.votes] == [LABELS["a_better"], LABELS["tie"], LABELS["b_better"]]


def test_new_vote_and_a_vote_taken_back_change_only_their_responses(tmp_path):
    found = read_argilla(write(tmp_path / "in", FLAT))
    votes = [one for one in found.votes if one.annotator != "5f1c"]
    votes.append(vote("p17", "9a20", CHOICES[4]))  # whose draft it replaces
    write_argilla(tmp_path / "out", found.pairs, votes)
    record = json.loads((tmp_path / "out").read_text())[0]
    assert record["preference.responses"] == ["b_much_better", "a_negligibly_better"]
    assert record["preference.responses.users"] == ["77aa", str(uuid.uuid5(PEOPLE, "9a20"))]
    assert record["preference.responses.status"] == ["discarded", "submitted"]


PEOPLE = uuid.UUID("5b9d2f0a-6f0c-5c39-9b1e-6d9f6a1c7e10")


def test_written_record_is_what_argilla_takes(tmp_path):
    conversation = (Message("user", "Why?"),)
    votes = [vote(annotator="Ann", choice=CHOICES[3]), vote(annotator="Bo", choice=CHOICES[10])]
    user = "5f1c0000-0000-4000-8000-000000000001"
    write_argilla(tmp_path / "x", [pair(prompt=conversation)], votes, form="nested", users={"Bo": user})
    [record] = json.loads((tmp_path / "x").read_text())
    details = record["metadata"].pop("rlhfkit")
    assert json.loads(details)["pair"]["id"] == "p"
    assert record == {
        "id": "p",
        "fields": {
            "prompt": [{"role": "user", "content": "Why?"}],
            "response_a": "Because.",
            "response_b": "No idea.",
        },
        "metadata": {"round": 1, "part": "train"},
        "suggestions": {},
        "responses": {
            "preference": [
                {"value": "b_negligibly_better", "user_id": str(uuid.uuid5(PEOPLE, "Ann")), "status": "submitted"},
                {"value": "skip", "user_id": user, "status": "discarded"},
            ]
        },
        "vectors": {},
        "_server_id": None,
    }


def test_two_people_with_one_user_id_are_refused(tmp_path):
    votes = [vote(annotator="Ann"), vote(annotator="Bo")]
    with pytest.raises(DataError, match='two people have the user id "u"'):
        write_argilla(tmp_path / "x", [pair()], votes, users={"Ann": "u", "Bo": "u"})


def test_answer_changed_in_argilla_is_a_new_vote_of_the_same_person(tmp_path):
    votes = [vote(annotator="Ann", choice=CHOICES[7], comment="sure"), vote(annotator="Bo")]
    write_argilla(tmp_path / "x", [pair()], votes)
    [record] = json.loads((tmp_path / "x").read_text())
    record["preference.responses"][0] = "b_better"
    found = read_argilla(write(tmp_path / "x", [record]))
    assert found.votes[1] == votes[1]
    changed = found.votes[0]
    assert (changed.annotator, changed.choice.strength, changed.comment) == ("Ann", -3, "")
    assert changed.id != votes[0].id


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"preference__responses": ["good", "tie", "tie"]},
            "choice of user \"5f1c\" is the text 'good'; expected one of",
        ),
        ({"preference__responses": [None, "tie", "tie"]}, 'the choice of user "5f1c" is empty'),
        ({"preference__responses": [1, "tie", "tie"]}, "is the number 1; expected one of"),
        ({"preference__responses": [["1", "2"], "tie", "tie"]}, "without ranks"),
        ({"preference__responses": [[{"rank": 1, "value": "x"}], "tie", "tie"]}, "expected one of response_a and"),
        ({"preference__responses": ["tie", "tie"]}, "has 2 responses, 3 users and 3 statuses"),
        ({"preference__responses": "tie"}, "is the text 'tie'; expected a list"),
        ({"preference__responses__users": ["5f1c", "9a20", "5f1c"]}, "a user has two responses"),
        ({"preference__responses__users": ["5f1c", "9a20", None]}, '"user_id" is empty'),
        ({"preference__responses__users": None}, "3 responses, 0 users"),
        ({"preference__responses__status": ["done", "draft", "draft"]}, "is the text 'done'; expected submitted"),
        ({"preference__responses__status": None}, "has no status"),
        ({"prompt": True}, 'column "prompt" is true'),
        ({"response_a": None}, 'column "response_a" is empty'),
        ({"prompt": [{"role": "wizard", "content": "x"}]}, "has the role 'wizard'"),
        ({"rlhfkit": "{"}, 'metadata "rlhfkit" is damaged'),
        ({"rlhfkit": 7}, '"rlhfkit" is the number 7'),
        ({"rlhfkit": '{"pair": {}, "votes": []}'}, "pair: id"),
        ({"rlhfkit": '{"pair": 3, "votes": []}'}, "the pair is the number 3"),
    ],
)
def test_broken_record_is_named(tmp_path, changes, why):
    good = json.loads(FLAT)[1]
    path = write(tmp_path / "broken.json", [good, flat(**changes)])
    with pytest.raises(DataError) as caught:
        read_argilla(path)
    assert str(caught.value).startswith('broken.json:2: record "p17": ')
    assert why in str(caught.value)


def test_broken_ids_and_fields_are_told(tmp_path):
    with pytest.raises(DataError, match='x:2: record "p17": its id is there twice'):
        read_argilla(write(tmp_path / "x", [flat(), flat()]))
    with pytest.raises(DataError, match='x:1: "id" is empty; expected a text or a whole number'):
        read_argilla(write(tmp_path / "x", [flat(id=None)]))
    record = flat()
    del record["response_b"]
    with pytest.raises(DataError, match='no field "response_b"; the record has round, topic, prompt, response_a; say'):
        read_argilla(write(tmp_path / "x", [record]))


def test_other_names_are_understood(tmp_path):
    record = {"id": "1", "instruction": "q", "r1": "x", "r2": "y", "which.responses": ["tie"]}
    record |= {"which.responses.users": ["u"], "which.responses.status": ["submitted"]}
    names = ArgillaNames("instruction", "r1", "r2", "which")
    found = read_argilla(write(tmp_path / "x", [record]), names=names)
    assert (found.pairs[0].prompt, found.pairs[0].response_b, found.votes[0].choice.kind) == ("q", "y", "tie")
    write_argilla(tmp_path / "y", found.pairs, found.votes, names=names)
    [out] = json.loads((tmp_path / "y").read_text())
    assert {name: out[name] for name in record} == record
