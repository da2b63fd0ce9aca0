"""What lies beside the files that are read, and is read by no table, is named."""

import pytest

from rlhfkit.config.data import DataConfig, RowsConfig
from rlhfkit.config.load import load_recipe
from rlhfkit.data import note_on_unread, read_rows
from rlhfkit.doctor.data import examine_unread
from rlhfkit.pipeline.opening import open_run
from tests.pipeline.whole_runs import Talk
from tests.small_recipe import small_recipe

ROW = '{"prompt": "Hi"}\n'


def directory_with(tmp_path, *names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(ROW)
    return tmp_path


def note_of(directory, **tables):
    data = DataConfig(directory=str(directory), **tables)
    sources = [file for rows in tables.values() for file in read_rows(rows, directory=directory)[1]]
    return note_on_unread(data, sources)


@pytest.mark.parametrize(
    ("there", "read", "unread"),
    [
        (("train.jsonl", "validation.jsonl", "test.jsonl"), "train.jsonl", "test.jsonl, validation.jsonl"),
        (("hh_train.jsonl", "hh_test.jsonl", "shp_test.jsonl"), "hh_train.jsonl", "hh_test.jsonl"),
        (("train.jsonl", "test.csv.gz", "Dev.JSON", "README.md"), "train.jsonl", "Dev.JSON, test.csv.gz"),
        (("train-0-of-2.jsonl", "train-1-of-2.jsonl"), "train-0-of-2.jsonl", "train-1-of-2.jsonl"),
        (("train.jsonl", "contest.jsonl", "evaluate.jsonl", "notes.txt"), "train.jsonl", None),
        (("pairs.jsonl", "test.jsonl"), "pairs.jsonl", None),
    ],
)
def test_files_that_differ_in_the_split_alone_and_are_not_read_are_named(tmp_path, there, read, unread):
    note = note_of(directory_with(tmp_path, *there), prompts=RowsConfig(path=read))
    expected = unread and f"data: no table reads {unread}; if one is for evaluation, name it in data.test_prompts"
    assert note == expected


def test_files_that_some_table_names_are_read_wherever_it_stands(tmp_path):
    directory = directory_with(tmp_path, "train.jsonl", "test.jsonl")
    two = {
        "prompts": RowsConfig(path="train.jsonl"),
        "test_prompts": RowsConfig(path=("../" + tmp_path.name + "/test.jsonl",)),
    }
    assert note_of(directory, **two) is None
    data = DataConfig(
        directory=str(directory),
        preferences={"type": "contrast", "chosen": {"path": "train.jsonl"}, "rejected": {"path": "test.jsonl"}},
    )
    assert note_on_unread(data, ()) is None
    classes = {"a": {"path": "train.jsonl"}, "b": {"path": "test.jsonl"}}
    assert (
        note_on_unread(DataConfig(directory=str(directory), prompts={"type": "labelled", "classes": classes}), ())
        is None
    )


def test_splits_of_a_dataset_that_no_table_reads_are_named(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"prompt": "Hi"}])
    datasets.DatasetDict({"train": rows, "validation": rows, "test": rows}).save_to_disk(str(tmp_path / "d"))
    train = RowsConfig(path="d")
    note = note_of(tmp_path, prompts=train)
    assert 'no table reads split "validation" of d, split "test" of d' in note
    assert 'reads split "test" of d;' in note_of(
        tmp_path, prompts=train, test_prompts=RowsConfig(path="d", split="validation")
    )


def test_a_run_and_the_doctor_say_it(tmp_path):
    directory = directory_with(tmp_path, "train.jsonl", "test.jsonl")
    table = f"""
[data]
directory = "{directory}"
texts = {{ path = "train.jsonl", columns = {{ text = "prompt" }} }}
"""
    (tmp_path / "recipe.toml").write_text(small_recipe("x", ["pretrain"], table))
    talk = Talk()
    with open_run(load_recipe(tmp_path / "recipe.toml"), tmp_path / "run", progress=talk) as ctx:
        said = [note for note in talk.notes if "test.jsonl" in note]
        assert said == [ctx.inputs.unread()]
    (finding,) = examine_unread(said[0])
    assert (finding.verdict, finding.seen.startswith("no table reads test.jsonl")) == ("ok", True)
    assert list(examine_unread(None)) == []
