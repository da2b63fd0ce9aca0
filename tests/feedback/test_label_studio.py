import copy
import json

import pytest

from rlhfkit.errors import DataError
from rlhfkit.feedback.exchange import LabelStudioNames, preferences_of, read_label_studio, write_label_studio
from rlhfkit.feedback.votes import Choice
from rlhfkit.records import Message
from tests.feedback.label_cases import CHOICES, pair, vote, write

EXPORT = """
[{"id": 7, "inner_id": 1, "project": 183, "file_upload": "65af2932-ls_input_data.json",
  "data": {"prompt": "Why is the sky blue?", "answer1": "Rayleigh.", "answer2": "<script>alert(1)</script>", "n": 3},
  "total_annotations": 3, "cancelled_annotations": 1, "created_at": "2026-01-05T09:00:00.000000Z",
  "annotations": [
   {"id": 31, "completed_by": 2, "was_cancelled": false, "ground_truth": false, "lead_time": 12.5,
    "created_at": "2026-01-05T10:00:00.000000Z", "updated_at": "2026-01-05T10:00:01.000000Z", "prediction": {},
    "unique_id": "80f751c6-c26a-47ef-9eea-8208d33a172a", "task": 7, "parent_annotation": null,
    "result": [{"id": "Ab3", "type": "pairwise", "from_name": "comparison", "to_name": "comparison",
                "origin": "manual", "value": {"selected": "right"}},
               {"id": "Cd4", "type": "choices", "from_name": "why", "to_name": "prompt",
                "value": {"choices": ["tone"]}}]},
   {"id": 32, "completed_by": 3, "was_cancelled": true, "result": []},
   {"id": 33, "completed_by": 4, "was_cancelled": false, "result": [], "lead_time": null}],
  "drafts": [{"id": 5, "user": "x@y.z", "result": [{"type": "pairwise", "value": {"selected": "left"}}]}],
  "predictions": [{"model_version": "m", "score": 0.5, "result": []}], "meta": {"source": "web"}}]
"""
MIN = """
[{"prompt": "Why?", "answer1": "A", "answer2": "B", "id": 7, "comparison": [{"selected": "left"}], "annotator": 1,
  "annotation_id": 31, "created_at": "2026-01-05T10:00:00.000000Z", "updated_at": "2026-01-05T10:00:00.000000Z",
  "lead_time": 4.5},
 {"prompt": "Why?", "answer1": "A", "answer2": "B", "id": 7, "comparison": [{"selected": "right"}], "annotator": 2,
  "annotation_id": 32, "created_at": "2026-01-05T10:01:00.000000Z", "updated_at": "2026-01-05T10:01:00.000000Z",
  "lead_time": 2.0}]
"""


def task(annotation=None, **changes):
    """The task of EXPORT, changed, or its first annotation changed."""
    [made] = json.loads(EXPORT)
    made["annotations"][0] |= annotation or {}
    return made | changes


def region(selected):
    return {"type": "pairwise", "from_name": "comparison", "to_name": "comparison", "value": {"selected": selected}}


def without_ours(tasks):
    tasks = copy.deepcopy(tasks)
    for each in tasks:
        del each["meta"]["rlhfkit"]
    return tasks


def test_golden_export_is_read(tmp_path):
    found = read_label_studio(write(tmp_path / "export.json", EXPORT))
    [made] = found.pairs
    assert (made.prompt, made.response_a, made.response_b) == (
        "Why is the sky blue?", "Rayleigh.", "<script>alert(1)</script>"
    )  # fmt: skip
    assert made.id.startswith("ls-7-")
    assert [(one.annotator, one.choice) for one in found.votes] == [
        ("2", Choice("preference", -3)),
        ("3", Choice("skip", skip_reason="other")),
    ]
    assert (found.votes[0].wall_seconds, found.votes[0].created_at) == (12.5, 1767607200.0)
    assert found.left_out == {"drafts": 1, "degrees, read as 3": 1, "annotations without a result": 1}


def test_neither_draft_nor_skip_nor_empty_annotation_becomes_a_preference(tmp_path):
    found = read_label_studio(write(tmp_path / "x", [task({"was_cancelled": True})]))
    result = preferences_of(found.pairs, found.votes)
    assert (result.preferences, result.num_skipped) == ([], 1)


def test_export_goes_in_and_out_without_loss(tmp_path):
    found = read_label_studio(write(tmp_path / "in", EXPORT), users={"2": "Ann"})
    write_label_studio(tmp_path / "out", found.pairs, found.votes)
    assert without_ours(json.loads((tmp_path / "out").read_text())) == json.loads(EXPORT)
    again = read_label_studio(tmp_path / "out", users={"2": "Ann"})
    assert again == found


def test_new_vote_and_a_vote_taken_back_change_only_their_annotations(tmp_path):
    found = read_label_studio(write(tmp_path / "in", EXPORT))
    new = vote(found.pairs[0].id, "9", CHOICES[4])
    write_label_studio(tmp_path / "out", found.pairs, [found.votes[1], new])
    [out] = json.loads((tmp_path / "out").read_text())
    assert [each["id"] for each in out["annotations"]] == [32, 33, 1]
    assert out["annotations"][2]["completed_by"] == 9
    assert (out["total_annotations"], out["cancelled_annotations"]) == (2, 1)
    assert {one.id for one in read_label_studio(tmp_path / "out").votes} == {found.votes[1].id, new.id}


def test_json_min_is_read_with_its_rows_together(tmp_path):
    found = read_label_studio(write(tmp_path / "x", MIN))
    assert len(found.pairs) == 1
    assert [(one.annotator, one.choice.strength, one.wall_seconds) for one in found.votes] == [
        ("1", 3, 4.5),
        ("2", -3, 2),
    ]


@pytest.mark.parametrize("wrapped", [False, True])
def test_tasks_to_import_are_pairs_without_votes(tmp_path, wrapped):
    data = {"prompt": "Why?", "answer1": "", "answer2": "B", "topic": "x"}
    found = read_label_studio(write(tmp_path / "x", [{"data": data} if wrapped else data]))
    assert [(each.prompt, each.response_a, each.response_b) for each in found.pairs] == [("Why?", "", "B")]
    assert found.votes == []
    write_label_studio(tmp_path / "y", found.pairs, [])
    [out] = json.loads((tmp_path / "y").read_text())
    assert (out["data"], out["annotations"]) == (data, [])


def test_written_task_is_what_the_template_takes(tmp_path):
    conversation = (Message("system", "Be kind."), Message("user", "Why?"))
    votes = [vote(annotator="Ann", choice=CHOICES[0], created_at=1767607200.5), vote(annotator="2", choice=CHOICES[8])]
    result = write_label_studio(tmp_path / "x", [pair(prompt=conversation)], votes, users={"Ann": 12})
    assert result.left_out == {}
    [made] = json.loads((tmp_path / "x").read_text())
    region_id = made["annotations"][0]["result"][0].pop("id")
    assert len(region_id) == 10
    assert made["meta"].pop("rlhfkit")["votes"][0]["vote"]["choice"]["strength"] == -4
    assert made == {
        "id": 1,
        "drafts": [],
        "predictions": [],
        "total_annotations": 2,
        "cancelled_annotations": 0,
        "data": {"prompt": "System: Be kind.\n\nHuman: Why?", "answer1": "Because.", "answer2": "No idea."},
        "annotations": [
            {
                "id": 1,
                "was_cancelled": False,
                "ground_truth": False,
                "lead_time": 2.5,
                "created_at": "2026-01-05T10:00:00.500000Z",
                "result": [
                    {
                        "type": "pairwise",
                        "from_name": "comparison",
                        "to_name": "comparison",
                        "origin": "manual",
                        "value": {"selected": "right"},
                    }
                ],
                "completed_by": 12,
            },
            {
                "id": 2,
                "was_cancelled": False,
                "ground_truth": False,
                "lead_time": 2.5,
                "created_at": "1970-01-01T00:00:00Z",
                "result": [],
                "completed_by": 2,
            },
        ],
        "meta": {},
    }


def test_labels_survive_a_stay_in_label_studio(tmp_path):
    """It gives tasks and annotations new ids, keeps ours as `import_id`, and adds much of its own."""
    pairs = [pair("1", settings={"temperature": 0.7}), pair("2", round=3)]
    kinds = [CHOICES[5], CHOICES[8], CHOICES[9], CHOICES[12]]
    votes = [
        vote(each.id, f"person {number}", choice, comment="c", flags_a=("wrong",))
        for number, choice in enumerate(kinds)
        for each in pairs
    ]
    result = write_label_studio(tmp_path / "x", pairs, votes)
    assert result.left_out == {"people whom Label Studio does not know": 4}
    tasks = json.loads((tmp_path / "x").read_text())
    for number, each in enumerate(tasks):
        each |= {"id": 900 + number, "project": 3, "inner_id": number}
        for place, annotation in enumerate(each["annotations"]):
            annotation |= {"import_id": annotation["id"], "id": place + 2, "completed_by": 1, "task": each["id"]}
    found = read_label_studio(write(tmp_path / "y", tasks))
    assert (found.votes, found.left_out) == (votes, {})
    assert [(each.id, each.round) for each in found.pairs] == [("1", 1), ("2", 3)]
    assert found.pairs[0].settings["temperature"] == 0.7
    assert found.pairs[0].settings["label_studio"]["project"] == 3


def test_answer_changed_in_label_studio_counts_as_it_is_there(tmp_path):
    votes = [vote(annotator="2", choice=CHOICES[7], comment="sure")]
    write_label_studio(tmp_path / "x", [pair()], votes)
    [made] = json.loads((tmp_path / "x").read_text())
    made["annotations"][0]["result"][0]["value"]["selected"] = "right"
    [changed] = read_label_studio(write(tmp_path / "x", [made])).votes
    assert (changed.annotator, changed.choice.strength, changed.comment) == ("2", -3, "")
    assert changed.id != votes[0].id


def test_newer_of_two_annotations_of_a_person_counts(tmp_path):
    made = task()
    second = made["annotations"][0] | {"id": 40, "unique_id": "x", "updated_at": "2026-01-04T00:00:00Z"}
    made["annotations"].append(second | {"result": [region("left")]})
    found = read_label_studio(write(tmp_path / "x", [made]))
    assert [(one.annotator, one.choice.strength) for one in found.votes] == [("2", -3), ("3", 0)]
    assert found.left_out["earlier annotations of the same person"] == 1
    made["annotations"][-1]["updated_at"] = "2026-02-01T00:00:00Z"
    found = read_label_studio(write(tmp_path / "x", [made]))
    assert found.votes[0].choice.strength == 3
    write_label_studio(tmp_path / "out", found.pairs, found.votes)
    assert without_ours(json.loads((tmp_path / "out").read_text())) == [made]


@pytest.mark.parametrize(
    ("annotation", "why"),
    [
        ({"result": [region("top")]}, '"selected" is the text \'top\'; expected "left" or "right"'),
        ({"result": [region(None)]}, '"selected" is empty'),
        ({"result": [region(["left"])]}, '"selected" is a list'),
        ({"result": [region("left"), region("left")]}, '2 regions of "comparison" in one result'),
        ({"result": [region("left") | {"value": None}]}, '"value" is'),
        ({"result": "left"}, "\"result\" is the text 'left'; expected a list"),
        ({"result": ["left"]}, "a region of the result is the text 'left'"),
        ({"was_cancelled": "no"}, "\"was_cancelled\" is the text 'no'; expected true or false"),
        ({"lead_time": "12"}, "\"lead_time\" is the text '12'"),
        ({"lead_time": -1}, '"lead_time" is the number -1'),
        ({"created_at": "yesterday"}, "\"created_at\" is the text 'yesterday'"),
        ({"created_at": 5}, '"created_at" is the number 5'),
        ({"completed_by": [2]}, '"completed_by" is a list'),
    ],
)
def test_broken_annotation_is_named(tmp_path, annotation, why):
    path = write(tmp_path / "broken.json", [{"data": {"prompt": "", "answer1": "", "answer2": "x"}}, task(annotation)])
    with pytest.raises(DataError) as caught:
        read_label_studio(path)
    assert str(caught.value).startswith("broken.json:2: task 7: annotation 31: ")
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"data": {"prompt": "q", "answer1": "x"}},
            'no "answer2"; it has prompt, answer1; add it as "answer2"',
        ),
        ({"data": {"prompt": "q", "answer1": "x", "answer2": 3}}, '"answer2" of the data is the number 3'),
        ({"data": None}, '"data" is empty; expected an object'),
        ({"annotations": {}}, '"annotations" is an object'),
        ({"annotations": [3]}, "annotations[0] is the number 3"),
        ({"annotations": [{"id": 3}]}, 'annotation 3: there is no "result"'),
        ({"drafts": 3}, '"drafts" is the number 3'),
        ({"meta": 3}, '"meta" is the number 3'),
        ({"meta": {"rlhfkit": {"pair": {}, "votes": []}}}, "pair: id"),
        ({"meta": {"rlhfkit": {"pair": {}, "votes": [1]}}}, '"meta.rlhfkit" is damaged'),
        ({"meta": {"rlhfkit": {"votes": [{"number": 1, "vote": {"id": 3}}]}}}, "vote: "),
    ],
)
def test_broken_task_is_named(tmp_path, changes, why):
    with pytest.raises(DataError) as caught:
        read_label_studio(write(tmp_path / "broken.json", [task(**changes)]))
    assert str(caught.value).startswith("broken.json:1: task 7: ")
    assert why in str(caught.value)


def test_ids_of_any_form_are_no_matter(tmp_path):
    for odd in (["x"], {"x": 1}, None, 3):
        made = task({"result": [region("left") | {"id": odd}], "import_id": odd, "unique_id": odd})
        found = read_label_studio(write(tmp_path / "x", [made]))
        write_label_studio(tmp_path / "y", found.pairs, found.votes)
        assert without_ours(json.loads((tmp_path / "y").read_text())) == [made]
        assert read_label_studio(tmp_path / "y").votes == found.votes


def test_broken_ids_are_told(tmp_path):
    with pytest.raises(DataError, match=r"x:2: task 7: its id is there twice"):
        read_label_studio(write(tmp_path / "x", [task(), task()]))
    with pytest.raises(DataError, match=r'"id" is the number 1\.5; expected a text or a whole number'):
        read_label_studio(write(tmp_path / "x", [task(id=1.5)]))
    made = task()
    del made["data"]
    with pytest.raises(DataError, match='x:1: the task has no "data"'):
        read_label_studio(write(tmp_path / "x", [made]))


def test_other_names_are_understood(tmp_path):
    made = task(data={"q": "?", "l": "x", "r": "y"})
    made["annotations"][0]["result"] = [region("left") | {"from_name": "cmp", "to_name": "l,r"}]
    names = LabelStudioNames("q", "l", "r", "cmp")
    found = read_label_studio(write(tmp_path / "x", [made]), names=names)
    assert (found.pairs[0].response_b, found.votes[0].choice.strength) == ("y", 3)
    write_label_studio(tmp_path / "y", found.pairs, found.votes, names=names)
    assert without_ours(json.loads((tmp_path / "y").read_text())) == [made]
