"""`rlhfkit labels import` of what other tools write: every remedy that it prints is carried out on the same command."""

import base64
import csv
import io
import json
import re
import shlex
from pathlib import Path

import pytest

from rlhfkit.feedback.exchange import configuration, import_labels, preferences_of
from rlhfkit.feedback.store import Store
from tests.feedback.label_cases import write

TIME = "2026-01-05T10:00:00.123456Z"
DATA = {"prompt": "Name a colour", "answer1": "Blue.", "answer2": "Dog."}


@pytest.fixture
def call(command_line, monkeypatch, tmp_path):
    """Run the command line in this process → exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    return command_line


def pairwise(name="comparison", selected="left", to_name=None):
    return {"type": "pairwise", "from_name": name, "to_name": to_name or name, "value": {"selected": selected}}


def choices(label, name="choice"):
    return {"type": "choices", "from_name": name, "to_name": "prompt", "value": {"choices": [label]}}


def rating(name, number, to_name="prompt"):
    return {"type": "rating", "from_name": name, "to_name": to_name, "value": {"rating": number}}


def studio(*results, data=DATA):
    """Tasks of Label Studio, each with one annotation by user 1."""
    return [
        {
            "id": number,
            "data": data if data is TALKS else {**data, next(iter(data)): f"{next(iter(data.values()))} {number}"},
            "annotations": [
                {"id": number, "completed_by": 1, "was_cancelled": False, "created_at": TIME, "lead_time": 4.2}
                | {"result": result}
            ],
        }
        for number, result in enumerate(results)
    ]


def argilla(responses, **fields):
    """A flat record with submitted responses to some questions."""
    record = {"id": "r", "prompt": "Name a colour", "response_a": "Blue.", "response_b": "Dog.", **fields}
    record = {name: value for name, value in record.items() if value is not None}
    for question, value in responses.items():
        record[f"{question}.responses"] = [value]
        record[f"{question}.responses.users"] = ["u1"]
        record[f"{question}.responses.status"] = ["submitted"]
    return [record]


NESTED = [
    {
        "id": "r",
        "fields": {"prompt": "q", "response_a": "x", "response_b": "y"},
        "responses": {"preference": [{"value": "a_better", "user_id": "u1"}]},
    }
]
TALKS = {
    name: [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]
    for name, answer in (("answer1", "Blue."), ("answer2", "Dog."))
}
OTHER_TEXTS = {"question": "Why?", "text1": "Blue.", "text2": "Dog."}
REMEDIES = {
    "columns of Label Studio": ("label-studio", studio([pairwise()], data=OTHER_TEXTS), 1),
    "conversations without a prompt": ("label-studio", studio([pairwise()], data=TALKS), 1),
    "conversations of Argilla without a prompt": (
        "argilla",
        argilla({"preference": "a_better"}, prompt=None, response_a=TALKS["answer1"], response_b=TALKS["answer2"]),
        1,
    ),
    "a pairwise with blanks in its name": ("label-studio", studio([pairwise("my pw"), pairwise("other pw")]), 1),
    "a question with blanks in its name": ("argilla", argilla({"notes": "fine", "my choice": "a_better"}), 1),
    "transcripts as preferences": (
        "preferences",
        [{"chosen": "\n\nHuman: q\n\nAssistant: x", "rejected": "\n\nHuman: q\n\nAssistant: y"}],
        1,
    ),
    "choices": ("label-studio", studio([choices("Answer 1")], [choices("Answer 2")]), 2),
    "two comparisons": ("label-studio", studio([pairwise("pw1"), pairwise("pw2", "right")]), 1),
    "ratings with odd names": ("label-studio", studio([rating("quality", 4), rating("other", 2)]), 1),
    "fields and labels of Argilla": (
        "argilla",
        argilla(
            {"preference": "response1"},
            prompt=None,
            instruction="q",
            response_a=None,
            response_b=None,
            response1="x",
            response2="y",
        ),
        1,
    ),
    "Argilla without a status": ("argilla-nested", NESTED, 1),
    "several questions": ("argilla", argilla({"which": "a_better", "length": 3, "notes": "fine"}), 1),
    "Argilla's numbers": ("argilla", argilla({"score": 2}), 1),
    "ranking without ranks": ("argilla", argilla({"preference": ["response_b", "response_a"]}), 1),
    "columns of preferences": ("preferences", [{"question": "q", "good": "x", "bad": "y"}], 1),
    "preferences without a prompt": ("preferences", [{"q": "q", "chosen": "x", "rejected": "y"}], 1),
}
GUESSES = {
    "--name prompt=COLUMN": ["question", "q"],
    "--name prompt=FIELD": ["instruction"],
    "--name chosen=COLUMN": ["good"],
    "--name rejected=COLUMN": ["bad"],
    "--name answer1=COLUMN": ["text1"],
    "--name answer2=COLUMN": ["text2"],
    "--name response_a=FIELD": ["response1"],
    "--name response_b=FIELD": ["response2"],
    "--name rating1=NAME": ["quality"],
    "--name rating2=NAME": ["other"],
}


OPTION = r"--(?:name|label|without-status|format) (?:'[^']*'|[^\s'=]+)(?:=(?:'[^']*'|[^\s,;]*))?"


def filled(remedy, known):
    """The option with the names of the file in place of COLUMN, FIELD and NAME."""
    for name in GUESSES.get(remedy, ()):
        if name in known:
            return re.sub("COLUMN$|FIELD$|NAME$", name, remedy)
    return remedy


@pytest.mark.parametrize("case", REMEDIES)
def test_who_follows_the_remedies_gets_the_votes(call, tmp_path, case):
    format, content, num_votes = REMEDIES[case]
    known = json.dumps(content)
    write(tmp_path / "in.json", content)
    options = []
    for _ in range(5):
        code, output, error = call("labels", "import", "new.db", "in.json", "--format", format, *options)
        if code == 0:
            break
        assert error.startswith("error: in.json"), error
        remedies = re.findall(OPTION, error.replace("=…", "=a_better"))
        assert remedies, error
        if "--without-status submitted" in remedies:
            remedies = ["--without-status submitted"]
        if "--name question=which" in remedies:
            remedies = ["--name question=which"]
        options += [word for one in remedies for word in shlex.split(filled(one, known))]
    assert code == 0, error
    assert f"{num_votes} new vote" in output
    assert options, "there was nothing to remedy"
    assert "=…" not in options
    with Store.open("new.db") as store:
        assert len(store.votes()) == num_votes
        assert not any(vote.is_surplus for vote in store.votes())


@pytest.mark.parametrize(
    ("format", "content"),
    [
        ("label-studio", studio([pairwise("pw", to_name="text1,text2")], data={"text1": "Blue.", "text2": "Dog."})),
        ("label-studio", studio([pairwise()], data={"answer1": "Blue.", "answer2": "Dog."})),
        ("argilla", argilla({"preference": "a_better"}, prompt=None)),
        ("preferences", [{"chosen": "x", "rejected": "y"}]),
    ],
)
def test_texts_without_a_prompt_are_no_labels_and_no_option_says_otherwise(call, tmp_path, format, content):
    write(tmp_path / "in.json", content)
    code, _, error = call("labels", "import", "new.db", "in.json", "--format", format)
    assert code == 1
    assert 'add it as "prompt"' in error
    assert "--name prompt" not in error
    code, _, error = call("labels", "import", "new.db", "in.json", "--format", format, "--name", "prompt=")
    assert code == 1
    assert 'add it as "prompt"' in error


@pytest.mark.parametrize(
    ("format", "content", "words", "absent"),
    [
        ("argilla", argilla({"preference": None}), "label it again, or remove the response", "--label"),
        ("argilla", argilla({"preference": True}), "label it again, or remove the response", "--label"),
        ("argilla", argilla({"notes": "x", "why": "y"}), "--name question=notes", "rating_a"),
        ("label-studio", studio([{"type": "taxonomy", "from_name": "t", "value": {}}]), "label with one", "--name"),
        ("label-studio", [{"annotation_id": 1, "id": 1, **DATA}], "export it as JSON", "--name"),
        ("label-studio", studio([pairwise()], data={"prompt": "q", "answer1": "x"}), 'add it as "answer2"', "--name"),
    ],
)
def test_an_option_is_named_only_where_it_can_help(call, tmp_path, format, content, words, absent):
    write(tmp_path / "in.json", content)
    code, _, error = call("labels", "import", "new.db", "in.json", "--format", format)
    assert code == 1
    assert words in error
    assert absent not in error


def test_an_empty_name_is_for_a_missing_prompt_only(call, tmp_path):
    write(tmp_path / "in.json", studio([pairwise()]))
    code, _, error = call("labels", "import", "new.db", "in.json", "--format", "label-studio", "--name", "answer1=")
    assert (code, "--name answer1= is empty" in error) == (1, True)


# ── answers that are understood ──────────────────────────────────────────────────────────────────────────────────────


def strengths(path, content, format="label-studio", **options):
    found = import_labels(write(path / "in.json", content), format=format, **options)
    return [(vote.annotator, vote.choice.kind, vote.choice.strength) for vote in found.votes]


def test_the_only_pairwise_of_a_file_is_taken_whatever_its_name(tmp_path):
    tasks = studio([pairwise("pw")], [pairwise("pw", "right"), choices("tone", "why")])
    assert strengths(tmp_path, tasks) == [("1", "preference", 3), ("1", "preference", -3)]


def test_a_pairwise_names_the_columns_that_it_compares(tmp_path):
    tasks = studio(
        [pairwise("pw", to_name="left_text,right_text")], data={"prompt": "q", "left_text": "x", "right_text": "y"}
    )
    found = import_labels(write(tmp_path / "in.json", tasks), format="label-studio")
    assert (found.pairs[0].response_a, found.pairs[0].response_b) == ("x", "y")


def test_two_ratings_give_a_preference_and_equal_ones_a_tie(tmp_path):
    tasks = studio(
        [rating("r1", 5), rating("r2", 2)], [rating("r1", 1), rating("r2", 2)], [rating("r1", 3), rating("r2", 3)]
    )
    assert strengths(tmp_path, tasks) == [("1", "preference", 3), ("1", "preference", -3), ("1", "tie", 0)]
    by_what_they_rate = studio([rating("x", 1, "answer2"), rating("y", 4, "answer1")])
    assert strengths(tmp_path, by_what_they_rate) == [("1", "preference", 3)]
    for one, other, expected in ((5, 2, 3), (1, 4, -3), (3, 3, 0)):
        records = argilla({"rating_a": one, "rating_b": other})
        assert strengths(tmp_path, records, "argilla")[0][2] == expected


def test_half_a_rating_is_no_vote_and_is_reported(tmp_path):
    tasks = studio([rating("r1", 5), rating("r2", 2)], [rating("r1", 5)])
    found = import_labels(write(tmp_path / "in.json", tasks), format="label-studio")
    assert len(found.votes) == 1
    assert found.left_out["annotations with one rating of two"] == 1
    [record] = argilla({"rating_a": 5, "rating_b": 2})
    record |= {"rating_b.responses": [2, 2], "rating_b.responses.users": ["u1", "u2"]}
    record["rating_b.responses.status"] = ["submitted", "submitted"]
    found = import_labels(write(tmp_path / "in.json", [record]), format="argilla")
    assert (len(found.votes), found.left_out["people with one rating of two"]) == (1, 1)


def test_a_draft_or_a_discarded_rating_is_no_preference(tmp_path):
    for status, kinds in (("draft", []), ("discarded", ["skip"])):
        [record] = argilla({"rating_a": 5, "rating_b": 2})
        record["rating_b.responses.status"] = [status]
        assert [kind for _, kind, _ in strengths(tmp_path, [record], "argilla")] == kinds


@pytest.mark.parametrize(
    ("format", "content", "words"),
    [
        ("label-studio", studio([{"type": "taxonomy", "from_name": "topic", "value": {}}]), "topic (taxonomy, 1)"),
        ("label-studio", studio([choices("Answer 1")]), "'Answer 1' (1)"),
        ("label-studio", studio([{"type": "textarea", "from_name": "n", "value": {"text": ["x"]}}]), "n (textarea, 1)"),
        (
            "label-studio",
            [{"annotation_id": 1, "id": 1, **DATA, "choice": "Answer 1"}],
            "prompt, answer1, answer2, choice",
        ),
        ("argilla", argilla({"quality": 4, "notes": "good"}), "quality (1), notes (1)"),
        ("argilla", argilla({"notes": "good"}), "'good'"),
    ],
)
def test_a_file_of_which_no_answer_is_understood_is_an_error_that_names_them(call, tmp_path, format, content, words):
    write(tmp_path / "in.json", content)
    code, output, error = call("labels", "import", "new.db", "in.json", "--format", format)
    assert (code, output) == (1, "")
    assert words in error
    assert not (tmp_path / "new.db").exists()


def test_annotations_that_answer_something_else_are_told_beside_votes(tmp_path):
    tasks = studio([pairwise()], [choices("tone", "why")], [])
    found = import_labels(write(tmp_path / "in.json", tasks), format="label-studio")
    assert len(found.votes) == 1
    assert found.left_out == {
        "degrees, read as 3": 1,
        "annotations that answer something else only": 1,
        "annotations without a result": 1,
    }


def test_names_in_any_script_are_kept(tmp_path):
    tasks = studio([choices("左边更好", "选择")])
    labels = {"左边更好": "a_slightly_better"}
    assert strengths(tmp_path, tasks, labels=labels, users={"1": "李"}) == [("李", "preference", 2)]


# ── rankings, scores, encoded texts ──────────────────────────────────────────────────────────────────────────────────


def test_a_ranking_of_two_answers_is_a_preference(tmp_path):
    for first, second, strength in ((1, 2, 3), (2, 1, -3), (1, 1, 0)):
        for a, b in (("response_a", "response_b"), ("reply-1", "reply-2")):
            ranks = [{"rank": second, "value": b}, {"rank": first, "value": a}]
            assert strengths(tmp_path, argilla({"rank": ranks}), "argilla")[0][2] == strength


RANKER = {"type": "ranker", "from_name": "order", "to_name": "answers"}


@pytest.mark.parametrize(
    ("format", "content", "what"),
    [
        ("label-studio", studio([{**RANKER, "value": {"ranker": ["y", "x", "z"]}}]), '"order" is a <Ranker>'),
        ("label-studio", studio([{**RANKER, "value": {"ranker": {"good": ["y"], "_": ["x"]}}}]), "<Ranker>"),
        (
            "argilla",
            argilla({"rank": [{"rank": place, "value": name} for place, name in enumerate("xyz", 1)]}),
            "of 3 answers",
        ),
        ("argilla", argilla({"rank": ["x", "y", "z"]}), "of 3 answers"),
    ],
)
def test_a_ranking_of_several_answers_is_named_with_what_to_do(call, tmp_path, format, content, what):
    write(tmp_path / "in.json", content)
    code, _, error = call("labels", "import", "new.db", "in.json", "--format", format)
    assert code == 1
    assert what in error
    assert "--format preferences" in error
    assert error.count("\n") == 1
    # What it says to do:
    write(tmp_path / "in.json", [{"prompt": "q", "chosen": "x", "rejected": "y"}])
    assert call("labels", "import", "new.db", "in.json", "--format", "preferences")[0] == 0


def test_options_of_a_ranking_that_are_no_answers_are_named(call, tmp_path):
    ranks = [{"rank": 1, "value": "cat"}, {"rank": 2, "value": "dog"}]
    write(tmp_path / "in.json", argilla({"rank": ranks}))
    code, _, error = call("labels", "import", "new.db", "in.json", "--format", "argilla")
    assert (code, "is of cat, dog; expected one of response_a and response_b; rename" in error) == (1, True)


def test_candidates_with_scores_are_the_best_against_the_worst(tmp_path):
    rows = [
        {"prompt": "q", "responses": ["x", "y", "z"], "scores": [2, 5, 1]},
        {"prompt": "s", "candidates": [{"text": "x", "score": 0.1}, {"text": "y", "score": 0.7}]},
        {"prompt": "r", "answers": [{"answer": "x", "rank": 2}, {"answer": "y", "rank": 1}]},
    ]
    found = import_labels(write(tmp_path / "in.json", rows), format="preferences")
    preferences = preferences_of(found.pairs, found.votes).preferences
    assert [(one.chosen, one.rejected) for one in preferences] == [("y", "z"), ("y", "x"), ("y", "x")]


@pytest.mark.parametrize("format", ["label-studio", "argilla", "preferences"])
def test_texts_in_base64_are_named(call, tmp_path, format):
    prompt, one, other = (base64.b64encode(text.encode()).decode() for text in ("Name a colour", "Blue.", "Käse"))
    content = {
        "label-studio": studio([pairwise()]),
        "argilla": argilla({"preference": "a_better"}, prompt=prompt, response_a=one, response_b=other),
        "preferences": [{"prompt": prompt, "chosen": one, "rejected": other}],
    }[format]
    if format == "label-studio":
        content[0]["data"] = {"prompt": prompt, "answer1": one, "answer2": other}
    write(tmp_path / "in.json", content)
    code, _, error = call("labels", "import", "new.db", "in.json", "--format", format)
    assert code == 1
    assert "in.json: its texts are encoded as base64" in error
    assert "which says 'Name a colour'; decode" in error


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def table(rows, separator=","):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


ROW = {"annotation_id": 1, "annotator": 1, **DATA, "created_at": TIME, "id": 1, "lead_time": 4.2, "updated_at": TIME}


@pytest.mark.parametrize("cell", ["left", '{"selected": "left"}', '[{"selected": "left"}]'])
@pytest.mark.parametrize(("name", "separator"), [("in.csv", ","), ("in.tsv", "\t"), ("in.csv", ";"), ("export", ",")])
def test_tables_of_label_studio_are_read(tmp_path, name, separator, cell):
    rows = [{**ROW, "comparison": cell}, {**ROW, "annotator": "b@x.org", "annotation_id": 2, "comparison": ""}]
    found = import_labels(write(tmp_path / name, table(rows, separator)), format="label-studio")
    assert [(pair.prompt, pair.response_a) for pair in found.pairs] == [("Name a colour", "Blue.")]
    [vote] = found.votes
    assert (vote.annotator, vote.choice.strength, vote.wall_seconds) == ("1", 3, 4.2)
    assert vote.created_at == 1767607200.123456
    assert found.left_out["annotations without a result"] == 1


def test_choices_and_ratings_of_tables_are_read(tmp_path):
    rows = [{**ROW, "verdict": "first one"}]
    options = {"names": {"comparison": "verdict"}, "labels": {"first one": "a_much_better"}}
    path = write(tmp_path / "in.csv", table(rows))
    assert import_labels(path, format="label-studio", **options).votes[0].choice.strength == 4
    path = write(tmp_path / "in.csv", table([{**ROW, "r1": 2, "r2": 5}]))
    found = import_labels(path, format="label-studio", names={"rating1": "r1", "rating2": "r2"})
    assert found.votes[0].choice.strength == -3


def test_tables_of_preferences_are_read(tmp_path):
    rows = [{"prompt": "Colour?", "chosen": " Blue.", "rejected": 'Dog, or "cat".', "margin": 0.5}]
    found = import_labels(write(tmp_path / "in.csv", table(rows)), format="preferences")
    (preference,) = preferences_of(found.pairs, found.votes).preferences
    assert (preference.chosen, preference.rejected) == (" Blue.", 'Dog, or "cat".')
    assert abs(found.votes[0].choice.strength) == 2
    broken = "prompt,chosen,rejected\na,b\n"
    with pytest.raises(ValueError, match=r"in.csv:2: 2 fields; the first line has 3"):
        import_labels(write(tmp_path / "in.csv", broken), format="preferences")
    with pytest.raises(ValueError, match=r"to_list\(flatten=True\)"):
        import_labels(write(tmp_path / "in.csv", table([{"id": 1, "prompt": "x"}])), format="argilla")


# ── there and back ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("format", "content", "options"),
    [
        ("label-studio", studio([pairwise("pw")], [pairwise("pw", "right")]), {}),
        ("label-studio", studio([choices("One")]), {"labels": {"One": "a_better"}}),
        ("label-studio", studio([rating("r1", 5), rating("r2", 2)]), {}),
        (
            "label-studio",
            studio([pairwise("pw", to_name="text1,text2")], data=OTHER_TEXTS),
            {"names": {"prompt": "question"}},
        ),
        ("argilla", argilla({"which": "one"}), {"labels": {"one": "b_better"}}),
        ("argilla", argilla({"preference": "tie"}, prompt=None, q="Why?"), {"names": {"prompt": "q"}}),
    ],
)
def test_what_was_read_with_other_names_goes_back_as_it_was(call, tmp_path, format, content, options):
    write(tmp_path / "in.json", content)
    words = [f"--{kind[:-1]}={one}={other}" for kind, given in options.items() for one, other in given.items()]
    assert call("labels", "import", "one.db", "in.json", "--format", format, *words)[0] == 0
    assert call("labels", "export", "one.db", "out.json", "--format", format)[0] == 0
    for task, was in zip(json.loads((tmp_path / "out.json").read_text()), content, strict=True):
        if format == "label-studio":
            assert (task["data"], task["annotations"]) == (was["data"], was["annotations"])
        else:
            assert {name: task[name] for name in was} == was
    assert call("labels", "import", "two.db", "out.json", "--format", format, *words)[0] == 0
    with Store.open("one.db") as one, Store.open("two.db") as two:
        assert one.votes() == two.votes()


@pytest.mark.parametrize("format", ["rlhfkit", "argilla", "argilla-nested", "label-studio"])
@pytest.mark.parametrize("num_said", [1, 2, 3])
def test_a_store_of_several_votes_a_pair_comes_back_as_it_was(call, format, num_said):
    from rlhfkit.feedback.states import StoreSettings
    from rlhfkit.feedback.votes import Choice, Vote
    from tests.feedback.labelling import numbered_pairs

    with Store.open("one.db", settings=StoreSettings(overlap=2)) as store:
        store.add_pairs(numbered_pairs(3))
        for number, name in enumerate(["Ada", "Bo", "Cy"][:num_said]):
            for pair in numbered_pairs(3)[: 3 - (number == 2)]:
                said = Choice("preference", 2 if number == 0 else -1)
                store.vote(Vote(f"{name} {pair.id}", pair.id, name, said, "a", 1.0, 1.0))
        late = Vote("late late", "pair-1", "Di", Choice("tie"), "b", 1.0, 1.0)
        assert store.vote(late) == ("surplus" if num_said == 3 else "recorded")
    assert call("labels", "export", "one.db", "out.json", "--format", format)[0] == 0
    code, output, error = call("labels", "import", "two.db", "out.json", "--format", format)
    assert (code, error) == (0, "")
    assert "pairs have 2 votes each here" in output
    with Store.open("one.db") as one, Store.open("two.db") as two:
        assert two.votes() == one.votes()
        assert two.settings.overlap == 2
        assert two.queue() == one.queue()


def test_a_file_that_does_not_say_how_many_votes_are_needed_shows_it(tmp_path):
    def annotated(*sides):
        [task] = studio([pairwise()])
        task["annotations"] = [
            {"id": number, "completed_by": number, "result": [pairwise(selected=side)]}
            for number, side in enumerate(sides)
        ]
        return import_labels(write(tmp_path / "in.json", [task]), format="label-studio")

    least = {"overlap": 1, "calibration_overlap": 3}
    assert annotated("left").overlaps(**least) == (1, 3)
    assert annotated("left", "left").overlaps(**least) == (2, 3)
    assert annotated("left", "right").overlaps(**least) == (2, 3)
    assert annotated("left", "right", "left").overlaps(**least) == (2, 3)  # the third decides between two
    assert annotated("left", "left", "right").overlaps(**least) == (3, 3)


def test_the_configuration_is_printed_and_its_names_are_those_of_the_export(call):
    code, studios, _ = call("labels", "config", "--format", "label-studio")
    assert code == 0
    assert '<Pairwise name="comparison" toName="answer1,answer2"/>' in studios
    assert all(f'value="${name}"' in studios for name in DATA)
    code, argillas, _ = call("labels", "config", "--format", "argilla")
    assert code == 0
    assert 'LabelQuestion(name="preference"' in argillas
    compile(argillas, "argilla", "exec")


def test_the_documentation_shows_the_configuration_that_is_printed():
    page = (Path(__file__).parents[2] / "docs" / "feedback.md").read_text(encoding="utf-8")
    assert f"```xml\n{configuration('label-studio')}```" in page


def test_names_of_a_hostile_file_cannot_steer_the_terminal(call, tmp_path):
    write(tmp_path / "in.json", studio([{"type": "x", "from_name": "\x1b]0;owned\x07\x1b[2J", "value": {}}]))
    code, _, error = call("labels", "import", "new.db", "in.json", "--format", "label-studio")
    assert code == 1
    assert "\x1b" not in error
    assert "\\x1b]0;owned" in error
