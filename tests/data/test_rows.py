import csv
import gzip
import hashlib
import json
import os
import socket
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from rlhfkit.config.data import RowsConfig
from rlhfkit.data import Row, files, load_prompts, load_texts, read_rows
from rlhfkit.errors import ConfigError, DataError, MissingDependencyError

SHARED = Path(__file__).parents[3] / "shared" / "data"


def read(path: Path, **settings):
    rows, _ = read_rows(RowsConfig(path=path.name, **settings), directory=path.parent)
    return rows


def write_lines(path: Path, num_rows: int) -> Path:
    path.write_text("".join(json.dumps({"prompt": str(number)}) + "\n" for number in range(num_rows)))
    return path


TWO_ROWS = [{"prompt": "Naïve?", "label": "1"}, {"prompt": 'a "b",\tc', "label": "2"}]
JSONL = "\n".join(json.dumps(row) for row in TWO_ROWS)
CSV = 'prompt,label\nNaïve?,1\n"a ""b"",\tc",2\n'
TSV = 'prompt\tlabel\nNaïve?\t1\n"a ""b"",\tc"\t2\n'


@pytest.mark.parametrize(
    ("name", "content", "origins"),
    [
        ("x.jsonl", JSONL, [1, 2]),
        ("x.jsonl", JSONL.replace("\n", "\r\n\r\n"), [1, 3]),
        ("x.jsonl", "\ufeff" + JSONL, [1, 2]),
        ("x.json", json.dumps(TWO_ROWS, indent=2), [1, 2]),
        ("x.json", JSONL, [1, 2]),
        ("x.csv", CSV, [2, 3]),
        ("x.csv", "\ufeff" + CSV, [2, 3]),
        ("X.TSV", TSV, [2, 3]),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_every_text_format_gives_the_same_rows_with_their_lines(tmp_path, name, content, origins, zipped):
    path = tmp_path / (name + ".gz" if zipped else name)
    data = content.encode()
    path.write_bytes(gzip.compress(data) if zipped else data)
    assert read(path) == [Row(row, f"{path.name}:{line}") for row, line in zip(TWO_ROWS, origins, strict=True)]


@pytest.mark.parametrize("zipped", [False, True])
def test_parquet_gives_the_same_rows(tmp_path, zipped):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(TWO_ROWS), path)
    if zipped:
        path = tmp_path / "x.parquet.gz"
        path.write_bytes(gzip.compress((tmp_path / "x.parquet").read_bytes()))
    assert read(path) == [Row(TWO_ROWS[0], f"{path.name}:1"), Row(TWO_ROWS[1], f"{path.name}:2")]


def test_lines_of_text_are_stripped_and_blank_ones_left_out(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("  one \n\n two\u2028still two\nthree")
    assert read(path) == [
        Row({"text": "one"}, "x.txt:1"),
        Row({"text": "two\u2028still two"}, "x.txt:3"),
        Row({"text": "three"}, "x.txt:4"),
    ]


def test_csv_row_is_named_by_the_line_on_which_it_begins(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('prompt\n"two\nlines"\nlast\n')
    assert read(path) == [Row({"prompt": "two\nlines"}, "x.csv:2"), Row({"prompt": "last"}, "x.csv:4")]


def test_csv_field_may_be_long_and_the_limit_of_the_csv_module_stays_as_it_was(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("prompt\n" + "a" * 200_000 + "\n")
    before = csv.field_size_limit()
    assert len(read(path)[0].columns["prompt"]) == 200_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        (":", range(11)),
        (":3", range(3)),
        ("9:", range(9, 11)),
        ("-2:", range(9, 11)),
        (" 2 : -7 ", range(2, 4)),
        (":90%", range(9)),  # 9.9 rows, of which 9 whole ones
        ("90%:", range(9, 11)),
        ("-10%:", range(9, 11)),
        ("45%:90%", range(4, 9)),
        (":200%", range(11)),
    ],
)
def test_slice_keeps_the_rows_it_names(tmp_path, rows, kept):
    path = write_lines(tmp_path / "x.jsonl", 11)
    assert [row.columns["prompt"] for row in read(path, rows=rows)] == [str(number) for number in kept]


def test_slice_is_taken_of_each_file_and_sources_are_named_and_hashed(tmp_path):
    write_lines(tmp_path / "a.jsonl", 4)
    write_lines(tmp_path / "b.jsonl", 2)
    rows, sources = read_rows(RowsConfig(path=("a.jsonl", "b.jsonl"), rows=":50%"), directory=tmp_path)
    assert [row.origin for row in rows] == ["a.jsonl:1", "a.jsonl:2", "b.jsonl:1"]
    assert [(source.path, source.num_rows) for source in sources] == [("a.jsonl", 2), ("b.jsonl", 1)]
    assert sources[0].sha256 == hashlib.sha256((tmp_path / "a.jsonl").read_bytes()).hexdigest()


def test_columns_are_renamed_swapped_and_taken_out_of_objects(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"chosen": "bad", "rejected": "good", "prompt": {"text": "Hi", "id": 3}, "n": 1}))
    columns = {"chosen": "rejected", "rejected": "chosen", "prompt": "prompt.text"}
    assert read(path, columns=columns)[0].columns == {"chosen": "good", "rejected": "bad", "prompt": "Hi", "n": 1}


def test_other_encodings_are_read(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes("café\nnaïve".encode("utf-16"))
    assert [row.columns["text"] for row in read(path, encoding="utf-16")] == ["café", "naïve"]


@pytest.mark.parametrize(
    ("name", "data", "settings", "message"),
    [
        ("x.jsonl", b"", {}, "x.jsonl is empty; expected at least one row"),
        ("x.jsonl", b"\n\n", {}, "x.jsonl is empty"),
        ("x.csv", b"prompt,label\n", {}, "x.csv is empty"),
        ("x.json", b"[]", {}, "x.json is empty"),
        ("x.json", b'[{"prompt": 1},', {}, "x.json is not JSON: .*line 1 column 16"),
        ("x.csv", b"a,a\n1,2\n", {}, "x.csv:1: the header a,a names a column twice"),
        ("x.csv", b'a,b\n"1"2,3\n', {}, "x.csv:2: not CSV"),
        ("x.csv", b'a,b\n"1,3\n', {}, "x.csv:2: not CSV"),
        ("x.parquet", b"PAR1 is not enough", {}, "x.parquet is not Parquet"),
        ("x.txt.gz", gzip.compress(b"some text", mtime=0)[:-6], {}, "x.txt.gz is damaged: .*copy it again"),
        ("x.txt", b"one\ncaf\xe9\n", {}, r'x.txt:2: byte 7 \(0xe9\) is not utf-8; .*encoding = "windows-1252"'),
        ("x.txt", b"\xe9\x81", {}, 'x.txt:1: .*encoding = "latin-1"'),
        ("x.jsonl", b"PAR1\x15\x04", {}, 'x.jsonl is a Parquet file; set data.format = "parquet"'),
        ("x.txt", "one two".encode("utf-16-be"), {}, 'x.txt is full of zero bytes; .*encoding = "utf-16-be"'),
        ("x.csv", b"\x28\xb5\x2f\xfd\x04", {}, "x.csv is compressed with zstd; unpack it first"),
        ("x.xlsx", b"PK\x03\x04\x14", {}, "x.xlsx is a zip archive or an Excel workbook; .* save the sheet as CSV"),
        ("x.csv", b",".join(b"%d" % n for n in range(10_001)) + b"\n", {}, "x.csv:1: 10,001 columns; .*on its side"),
        ("x.csv", b"a;b;a\n1;2;3\n", {}, "x.csv:1: the header a,b,a names a column twice"),
        ("x.txt", b"one", {"encoding": "utf-9"}, 'encoding = "utf-9" is unknown; expected a name such as "utf-8"'),
        ("x.jsonl", b'{"prompt": "a"}', {"rows": "5:"}, 'rows = "5:" leaves none of the 1 rows of x.jsonl'),
        ("x.md", b"one", {}, 'x.md is of unknown format; .*jsonl.*format = "text"'),
        ("x.txt", b"one", {"format": "datasets"}, "x.txt is a file; .*leave the format out"),
    ],
)
def test_file_that_cannot_be_used_is_named_with_cause_and_remedy(tmp_path, name, data, settings, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("revews.jsonl", "revews.jsonl is not in .*; did you mean reviews.jsonl?"),
        ("zzz.csv", r"zzz.csv is not in .*, which holds reviews.jsonl; correct the path or data.directory"),
        ("nowhere/reviews.jsonl", "nowhere/reviews.jsonl is not there: no directory .*nowhere"),
        ("plainname", 'plainname is not in .*format = "hub"'),
    ],
)
def test_missing_file_is_named_with_what_is_there(tmp_path, path, message):
    write_lines(tmp_path / "reviews.jsonl", 1)
    with pytest.raises(DataError, match=message):
        read_rows(RowsConfig(path=path), directory=tmp_path)


def test_missing_file_in_an_empty_directory(tmp_path):
    with pytest.raises(DataError, match="which holds nothing"):
        read_rows(RowsConfig(path="x.csv"), directory=tmp_path)


def test_no_path_at_all_is_refused(tmp_path):
    with pytest.raises(DataError, match="names no file"):
        read_rows(RowsConfig(path=()), directory=tmp_path)


def test_file_that_may_not_be_read_is_named(tmp_path):
    (tmp_path / "x.txt").mkdir()
    with pytest.raises(DataError, match=r"x.txt cannot be read"):
        read_rows(RowsConfig(path="x.txt", format="text"), directory=tmp_path)


BAD_LINES = [
    (
        "x.jsonl",
        '{"prompt": "a"\n',
        r'x.jsonl:2: not JSON \(character 15: .*\) in .\{"prompt": "a".; expected one object',
    ),
    ("x.jsonl", '"just text"\n', "x.jsonl:2: the text 'just text'; expected an object"),
    ("x.jsonl", "[" * 100_000 + "\n", "x.jsonl:2: not JSON"),
    ("x.jsonl", '{"question": "a"}\n', 'x.jsonl:2: no column "prompt"; the row has question; .*columns = {prompt'),
    ("x.jsonl", '{"prompt": true}\n', 'x.jsonl:2: column "prompt" is true; expected text or a list'),
    ("x.jsonl", '{"prompt": null}\n', 'x.jsonl:2: column "prompt" is empty'),
    ("x.jsonl", '{"prompt": "\\ud83d"}\n', "x.jsonl:2: .*half a character"),
    ("x.jsonl", "{}\n", 'x.jsonl:2: no column "prompt"; the row has none'),
    ("x.csv", "bad,bad\n", "x.csv:3: 2 fields; the header has 1"),
]


@pytest.mark.parametrize(("name", "bad", "message"), BAD_LINES)
def test_bad_row_stops_with_its_line_or_is_left_out(tmp_path, name, bad, message):
    good = {"x.jsonl": ('{"prompt": "one"}\n', '{"prompt": "two"}\n'), "x.csv": ("prompt\none\n", "two\n")}[name]
    (tmp_path / name).write_text(good[0] + bad + good[1] + bad)
    source = RowsConfig(path=name)
    with pytest.raises(DataError, match=message) as caught:
        load_prompts(source, directory=tmp_path)
    assert '(2 bad rows of 4; correct them, or leave them out with data.on_bad_row = "skip")' in str(caught.value)
    assert "\n" not in str(caught.value)
    loaded = load_prompts(source, directory=tmp_path, on_bad_row="skip")
    assert [prompt.content for prompt in loaded.records] == ["one", "two"]
    assert len(loaded.skipped) == 2


def test_bad_item_of_a_json_list_is_a_bad_row(tmp_path):
    (tmp_path / "x.json").write_text('[{"prompt": "one"}, 2]')
    loaded = load_prompts(RowsConfig(path="x.json"), directory=tmp_path, on_bad_row="skip")
    assert [prompt.content for prompt in loaded.records] == ["one"]
    assert loaded.skipped[0].startswith("x.json:2: the number 2; expected an object")


def test_renamed_column_that_is_not_there_is_a_bad_row(tmp_path):
    write_lines(tmp_path / "x.jsonl", 1)
    with pytest.raises(DataError, match=r'x.jsonl:1: no column "ask"; the row has prompt; correct columns.prompt'):
        load_prompts(RowsConfig(path="x.jsonl", columns={"prompt": "ask"}), directory=tmp_path)
    with pytest.raises(DataError, match=r'no column "prompt.text"'):
        load_prompts(RowsConfig(path="x.jsonl", columns={"prompt": "prompt.text"}), directory=tmp_path)


def test_nothing_left_is_an_error_even_where_bad_rows_are_skipped(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n{"b": 1}\n')
    with pytest.raises(DataError, match=r"none of the 2 rows can be used; the first: x.jsonl:1"):
        load_prompts(RowsConfig(path="x.jsonl"), directory=tmp_path, on_bad_row="skip")


def test_directory_of_datasets_gives_the_rows_of_its_split(tmp_path):
    import datasets

    train, test = datasets.Dataset.from_list(TWO_ROWS), datasets.Dataset.from_list(TWO_ROWS[:1])
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(str(tmp_path / "both"))
    train.save_to_disk(str(tmp_path / "one"))

    rows, sources = read_rows(RowsConfig(path="both"), directory=tmp_path)
    assert rows == [Row(TWO_ROWS[0], "both:1"), Row(TWO_ROWS[1], "both:2")]
    arrow = next((tmp_path / "both" / "train").glob("*.arrow"))
    assert sources[0].sha256 == hashlib.sha256(arrow.read_bytes()).hexdigest()
    assert len(read_rows(RowsConfig(path="both", split="test"), directory=tmp_path)[0]) == 1
    assert len(read_rows(RowsConfig(path="one"), directory=tmp_path)[0]) == 2

    with pytest.raises(DataError, match='both has no split "dev"; it has train, test'):
        read_rows(RowsConfig(path="both", split="dev"), directory=tmp_path)
    with pytest.raises(DataError, match='one has no splits, so split = "test" cannot be taken'):
        read_rows(RowsConfig(path="one", split="test"), directory=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty is no directory of `datasets`.*no file of rows is in it"):
        read_rows(RowsConfig(path="empty"), directory=tmp_path)
    with pytest.raises(DataError, match="nowhere is not in"):
        read_rows(RowsConfig(path="nowhere", format="datasets"), directory=tmp_path)


def test_hub_id_is_loaded_from_the_hub(tmp_path, monkeypatch):
    import datasets

    asked = []

    def load_dataset(*arguments, **settings):
        asked.append((arguments, settings))
        return datasets.Dataset.from_list(TWO_ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows, _ = read_rows(RowsConfig(path="owner/name", subset="main", split="test", revision="v1"), directory=tmp_path)
    assert asked == [(("owner/name", "main"), {"split": "test", "revision": "v1"})]
    assert rows[0] == Row(TWO_ROWS[0], "owner/name:1")


def test_hub_that_cannot_be_reached_is_said_in_one_line(tmp_path, monkeypatch):
    import datasets

    def load_dataset(*arguments, **settings):
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub\n(and a long story)")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"owner/name is not a file here .* on the Hub; check the path") as caught:
        read_rows(RowsConfig(path="owner/name"), directory=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "module"), [("owner/name", "datasets"), ("saved", "datasets"), ("x.parquet", "pyarrow")]
)
def test_without_the_extra_the_install_line_is_told(tmp_path, monkeypatch, path, module):
    (tmp_path / "saved").mkdir()
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, module, None)  # its import fails
    with pytest.raises(
        MissingDependencyError, match=rf"{path} .*needs .*\({module}\).* pip install 'rlhfkit\[datasets\]'"
    ):
        read_rows(RowsConfig(path=path), directory=tmp_path)


def test_mistyped_directory_is_not_looked_up_on_the_hub(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "reviews").mkdir()
    with pytest.raises(DataError, match=r"did you mean reviews\?"):
        read_rows(RowsConfig(path="data/revews"), directory=tmp_path)


def test_range_of_beginning_words_must_be_in_order():
    with pytest.raises(ConfigError, match=r"\[8, 4\] is not a range; write \[4, 8\]"):
        RowsConfig(path="x.txt", beginning_words=(8, 4))


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"real data are not at {SHARED}")
def test_real_files_are_read():
    def count(path: str, **settings) -> int:
        rows, _ = read_rows(RowsConfig(path=path, **settings), directory=SHARED)
        assert all(isinstance(row, Row) for row in rows)
        return len(rows)

    assert count("bias_crows_pairs/crows_pairs_anonymized.csv") == 1508
    assert count("sent_rt_polarity/rt-polarity.pos", format="text") == 5331
    assert count("safety_real_toxicity_prompts/rtp_val_head3000.jsonl.gz", columns={"prompt": "prompt.text"}) == 3000


# ── what is no file, or has no end ───────────────────────────────────────────────────────────────────────────────────


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.jsonl")
    with pytest.raises(DataError, match=r"x\.jsonl is a pipe; expected a file: .*; write them to one"):
        read(tmp_path / "x.jsonl")


def test_a_device_is_refused(tmp_path):
    (tmp_path / "x.txt").symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"x\.txt is a device; expected a file"):
        read(tmp_path / "x.txt")


def test_a_socket_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("x.csv")
        with pytest.raises(DataError, match=r"x\.csv is a socket; expected a file"):
            read(tmp_path / "x.csv")


def test_a_directory_in_the_place_of_a_file_is_named(tmp_path):
    (tmp_path / "x.jsonl").mkdir()
    with pytest.raises(DataError, match=r"x\.jsonl cannot be read \(Is a directory\)"):
        read(tmp_path / "x.jsonl", format="jsonl")


def test_a_file_that_unpacks_to_far_more_than_rows_do_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ALWAYS_ROOM", 1 << 20)
    packed = gzip.compress(b'{"prompt": "' + b"a" * (8 << 20) + b'"}\n', mtime=0)
    (tmp_path / "x.jsonl.gz").write_bytes(packed)
    with pytest.raises(
        DataError, match=r"x\.jsonl\.gz has 0\.00\d+ MB and unpacks to more than \d MB, .* unpack it, and"
    ):
        read(tmp_path / "x.jsonl.gz")
    assert len(gzip.decompress(packed)) / len(packed) > files.LARGEST_RATIO


def test_parquet_that_unpacks_to_far_more_than_rows_do_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ALWAYS_ROOM", 1 << 20)
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"prompt": ["a" * 1000] * 20_000}), path)
    with pytest.raises(DataError, match=r"x\.parquet has .* MB and unpacks to more than"):
        read(path)


def test_a_long_text_is_bounded(tmp_path):
    (tmp_path / "x.txt").write_text("a " * 5_000_001)
    with pytest.raises(DataError, match=r'column "text" has 10,000,001 characters; expected at most 10,000,000'):
        load_texts(RowsConfig(path="x.txt"), directory=tmp_path)


def test_an_object_with_a_million_names_is_a_bad_row_with_a_short_message(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({f"c{number}": "a" for number in range(20_000)}))
    with pytest.raises(DataError, match=r"x\.jsonl:1: an object with 20,000 names") as caught:
        load_prompts(RowsConfig(path="x.jsonl"), directory=tmp_path)
    assert len(str(caught.value)) < 300


def test_a_message_lists_a_few_of_many_columns(tmp_path):
    (tmp_path / "x.csv").write_text(",".join(f"c{number}" for number in range(500)) + "\n" + ",".join("a" * 500) + "\n")
    with pytest.raises(DataError, match=r"c0, c1, .*c19 and 480 more") as caught:
        load_prompts(RowsConfig(path="x.csv"), directory=tmp_path)
    assert len(str(caught.value)) < 700


# ── files as other programs write them ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.csv", b"prompt;label\na, b;1\n"),  # a spreadsheet where the comma is for decimals
        ("x.csv", '\ufeffprompt,label\r\n"a, b",1\r\n'.encode()),
        ("x.csv", "prompt\tlabel\na, b\t1\n".encode("utf-16")),
        ("x.tsv", b"prompt\tlabel\na, b\t1\n"),
        ("x.csv", b"prompt|label\na, b|1\n"),
        ("x.ndjson", b'{"prompt": "a, b", "label": "1"}\n'),
        ("x.json", b'{"version": "1.1", "data": [{"prompt": "a, b", "label": "1"}]}'),
        ("x.json", b'{\n  "prompt": "a, b",\n  "label": "1"\n}\n'),
        ("x.json", b'{"prompt": {"0": "a, b"}, "label": {"0": "1"}}'),
        ("x.json", b'{"columns": ["prompt", "label"], "index": [0], "data": [["a, b", "1"]]}'),
        ("x.json", b'\xef\xbb\xbf[{"prompt": "a, b", "label": "1"}]'),
    ],
)
def test_files_of_other_programs_are_read(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    (row,) = read(tmp_path / name)
    assert row.columns == {"prompt": "a, b", "label": "1"}


def test_one_row_of_messages_over_several_lines_stays_one_row(tmp_path):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    (tmp_path / "x.json").write_text(json.dumps({"messages": messages}, indent=2))
    assert [row.columns for row in read(tmp_path / "x.json")] == [{"messages": messages}]
