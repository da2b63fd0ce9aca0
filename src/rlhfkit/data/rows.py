"""Rows as they stand in files, `datasets` directories and datasets on the hub, each with its origin."""

import csv
import hashlib
import importlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from rlhfkit.config.data import RowsConfig
from rlhfkit.config.section import HUB_ID
from rlhfkit.data.files import close_names, decode, not_found, read_bytes, refuse_if_unpacked_is_too_large, unpacked
from rlhfkit.errors import DataError, MissingDependencyError
from rlhfkit.wording import listed, shortened

__all__ = ["Loaded", "MissingColumnError", "OnBadRow", "Row", "SourceFile", "described", "read_rows"]

T = TypeVar("T")
OnBadRow = Literal["stop", "skip"]

FORMATS = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
}
NAMES_OF_ROWS = ("data", "rows", "examples", "items", "instances")
LONGEST_CSV_FIELD = 2**31 - 1
MOST_COLUMNS = 10_000
"""A file with more is on its side, or no table."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file."""

    columns: dict[str, Any]
    """Name → value."""
    origin: str
    """Where it stands, as "reviews.jsonl:17"; counted from 1: lines of a text file, items of a list, rows elsewhere."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """What was read, for the manifest of the run."""

    path: str
    """As the recipe names it."""
    sha256: str
    """Of the bytes on disk; of a dataset in several files, of all of them in order."""
    num_rows: int
    """Rows taken from it."""
    splits: tuple[str, ...] = ()
    """All splits of a dataset that has several."""


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """Records with what became of the rows that they come from."""

    records: list[T]
    """The good rows, in order."""
    skipped: tuple[str, ...]
    """One message for each row that was left out."""
    sources: tuple[SourceFile, ...]
    """The files that were read."""
    notes: tuple[str, ...] = ()
    """What somebody should know of the rows: text that takes no part, signs of a wrong conversion."""

    def warnings(self, table: str) -> Iterator[str]:
        """What to warn of, once: several tables may read the same file."""
        if self.skipped:
            yield f"data.{table}: {len(self.skipped)} bad rows left out, the first: {self.skipped[0]}"
        yield from (f"{', '.join(file.path for file in self.sources)}: {note}" for note in self.notes)


class MissingColumnError(DataError):
    """A row lacks a column that it needs, perhaps because the file calls it otherwise."""

    def __init__(self, column: str, message: str) -> None:
        """Say `message`; the remedy is added by whoever knows the rows."""
        super().__init__(message)
        self.column = column


def read_rows(
    source: RowsConfig, *, directory: str | Path = "."
) -> tuple[list[Row | DataError], tuple[SourceFile, ...]]:
    """Rows of `source` in order, with the files that they come from; in the place of an unreadable row its error.

    Raises: DataError where a file is missing, empty, damaged, in another encoding or of unknown format, and where the
    slice leaves no row of it.
    """
    names = (source.path,) if isinstance(source.path, str) else source.path
    if not names:
        raise DataError("path = [] names no file; expected at least one; add it")
    rows: list[Row | DataError] = []
    files: list[SourceFile] = []
    for name in names:
        found, sha256, *splits = _read(name, source, Path(directory).expanduser())
        if not found:
            raise DataError(f"{name} is empty; expected at least one row; is it the right file?")
        if source.where:
            found = _where(found, source.where, name)
        taken = found[_slice(source.rows, len(found))]
        if not taken:
            raise DataError(f'rows = "{source.rows}" leaves none of the {len(found)} rows of {name}; widen the slice')
        rows += [_renamed(row, source.columns) for row in taken]
        files.append(SourceFile(name, sha256, len(taken), tuple(splits)))
    return rows, tuple(files)


def _read(name: str, source: RowsConfig, directory: Path) -> tuple[list[Row | DataError], str, *tuple[str, ...]]:
    """Rows and SHA-256 of a file or dataset; of a dataset that has several splits, their names after these."""
    path = directory / Path(name).expanduser()
    form = _format(name, path) if source.format == "auto" else source.format
    if source.column_names and form not in ("csv", "tsv"):
        raise DataError(
            f'{name} is read as "{form}", where column_names = {list(source.column_names)} says nothing; leave it out, '
            'or set format = "csv" or "tsv"'
        )
    if form == "hub":
        return _hub_rows(name, source)
    if form == "datasets":
        return _directory_rows(name, path, source.split)
    data = read_bytes(name, path)
    sha256 = hashlib.sha256(data).hexdigest()
    data = unpacked(name, data)
    if form == "parquet":
        return _parquet_rows(name, data), sha256
    if data.startswith(b"PAR1"):
        raise DataError(f'{name} is a Parquet file; set data.format = "parquet", or end its name with .parquet')
    text = decode(name, data, source.encoding)
    if form in ("csv", "tsv"):
        is_tsv = form == "tsv" or _ending(name) == ".tsv"
        delimiter = "\t" if is_tsv else "," if source.column_names else _delimiter(text)
        return _csv_rows(name, text, delimiter=delimiter, column_names=source.column_names), sha256
    return (_json_rows(name, text, source.split) if form == "jsonl" else _text_rows(name, text)), sha256


def _ending(name: str) -> str:
    return Path(name.lower().removesuffix(".gz")).suffix


def _format(name: str, path: Path) -> str:
    if path.is_dir():
        return "datasets"
    if form := FORMATS.get(_ending(name)):
        return form
    if path.exists():
        if path.is_file():
            with path.open("rb") as file:
                unpacked(name, b"" if (beginning := file.read(16)).startswith(b"\x1f\x8b") else beginning)
        raise DataError(
            f"{name} is of unknown format; expected one of the endings {', '.join(FORMATS)} (each also .gz); "
            'say how to read it, for example format = "text"'
        )
    if "/" in name and HUB_ID.fullmatch(name) and not close_names(path):
        return "hub"
    raise not_found(name, path)


def _where(rows: Sequence[Row | DataError], wanted: dict[str, Any], name: str) -> list[Row | DataError]:
    """The rows whose columns have these values, as values or as text; and those that cannot be read."""

    def fits(row: Row) -> bool:
        return all(_plain(_value(row, column)) == _plain(value) for column, value in wanted.items())

    kept = [row for row in rows if isinstance(row, DataError) or fits(row)]
    if not kept:
        held = {
            column: Counter(_plain(_value(row, column)) for row in rows if isinstance(row, Row)).most_common(4)
            for column in wanted
        }
        words = "; ".join(
            f"{column} holds {', '.join(f'{value!r} ({num})' for value, num in most)}" for column, most in held.items()
        )
        raise DataError(f"where leaves none of the {len(rows)} rows of {name}: {words}; correct it")
    return kept


def _value(row: Row, column: str) -> Any:
    try:
        return _column(row.columns, column)
    except KeyError:
        return None


def _plain(value: object) -> str:
    return shortened(str(value).strip().casefold())


def _slice(rows: str, num_rows: int) -> slice:
    """The slice of `num_rows` rows, such that "90%:" and "-10%:" begin where ":90%" ends."""

    def bound(text: str) -> int | None:
        if not text:
            return None
        if not text.endswith("%"):
            return int(text)
        percent = int(text[:-1])
        return max(0, num_rows * (percent + 100 if percent < 0 else percent) // 100)

    start, stop = (bound(part.strip()) for part in rows.split(":"))
    return slice(start, stop)


def _renamed(row: Row | DataError, names: dict[str, str]) -> Row | DataError:
    """The row with its columns under our names; a file's column that has one of our names already makes way."""
    if not names or isinstance(row, DataError):
        return row
    columns = {name: value for name, value in row.columns.items() if name not in {*names, *names.values()}}
    for ours, theirs in names.items():
        if not theirs:  # so that one table can go without what `data.columns` says for all
            continue
        try:
            columns[ours] = _column(row.columns, theirs)
        except KeyError:
            return DataError(
                f'{row.origin}: no column "{theirs}"; the row has {listed(row.columns)}; correct columns.{ours} in the '
                "recipe"
            )
    return Row(columns, row.origin)


def _column(columns: dict[str, Any], name: str) -> Any:
    if name in columns:
        return columns[name]
    first, dot, rest = name.partition(".")
    inner = columns[first]
    if not dot or not isinstance(inner, dict):
        raise KeyError(name)
    return _column(inner, rest)


# ── one reader per format ────────────────────────────────────────────────────────────────────────────────────────────


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Number and content of each line that is not blank; only newlines part lines, not U+2028 and its like."""
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if content := line.strip():
            yield number, content


def _text_rows(name: str, text: str) -> list[Row | DataError]:
    return [Row({"text": line}, f"{name}:{number}") for number, line in _lines(text)]


def _json_rows(name: str, text: str, split: str) -> list[Row | DataError]:
    if text.lstrip().startswith("["):
        try:
            items = json.loads(text)
        except (ValueError, RecursionError) as error:
            if not _is_a_list(text.strip().partition("\n")[0]):
                raise DataError(f"{name} is not JSON: {error}; expected a list of objects; correct it there") from error
            items = None
        if items is not None:
            return [_json_row(item, f"{name}:{number}") for number, item in enumerate(items, start=1)]
    if (items := _items_of_one_object(text, split)) is not None:
        return [_json_row(item, f"{name}:{number}") for number, item in enumerate(items, start=1)]
    rows: list[Row | DataError] = []
    for number, line in _lines(text):
        origin = f"{name}:{number}"
        try:
            rows.append(_json_row(json.loads(line), origin))
        except (ValueError, RecursionError) as error:
            rows.append(
                DataError(
                    f"{origin}: not JSON ({_json_fault(error)}) in {shortened(line)!r}; expected one object per line, "
                    'as {"prompt": "…"}'
                )
            )
    return rows


def _is_a_list(line: str) -> bool:
    """Whether a line is a whole list, so that its file has a list on each line."""
    try:
        return isinstance(json.loads(line), list)
    except (ValueError, RecursionError):
        return False


def _items_of_one_object(text: str, split: str) -> list[Any] | None:
    """The rows of a file that is one object: under one name, or by column, number or "split" as pandas writes them."""
    first, _, rest = text.strip().partition("\n")
    if not first.startswith("{") or (rest.strip() and first.rstrip().endswith("}")):
        return None
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(whole, dict):
        return None
    for name in (name for name in (split, *NAMES_OF_ROWS) if name in whole):
        items = whole[name]
        if isinstance(items, list) and all(isinstance(item, dict) for item in items):
            return items
        if isinstance(items, list) and isinstance(names := whole.get("columns"), list):
            return [dict(zip(names, item, strict=False)) for item in items]
    columns = list(whole.values())
    if columns and all(isinstance(column, dict) and column.keys() == columns[0].keys() for column in columns):
        numbers = columns[0].keys()
        if all(number.isdecimal() for number in numbers):
            return [{name: column[number] for name, column in whole.items()} for number in numbers]
        if all(number.isdecimal() for number in whole):
            return columns
    if columns and all(isinstance(column, list) for column in columns) and len({*map(len, columns)}) == 1:
        is_row = any(isinstance(column[0], dict) for column in columns if column)  # a list of messages
        if len(columns[0]) > 1 and not is_row:
            return [dict(zip(whole, values, strict=True)) for values in zip(*columns, strict=True)]
    return [whole]


def _json_row(value: object, origin: str) -> Row | DataError:
    if isinstance(value, dict):
        if len(value) > MOST_COLUMNS:
            return DataError(f"{origin}: an object with {len(value):,} names; expected one row, with a few columns")
        return Row(value, origin)
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return DataError(
            f"{origin}: an object in quotes, {described(value)}; write it without them, as jq -c fromjson does"
        )
    return DataError(f'{origin}: {described(value)}; expected an object such as {{"prompt": "…"}}')


def described(value: object) -> str:
    """What a value is, in the words of JSON."""
    match value:
        case None | "" | []:
            return "empty"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the text {shortened(value)!r}"
        case list():
            return f"a list, {shortened(str(value))}"
        case dict():
            return f"an object, {shortened(str(value))}"
        case _:
            return f"of type {type(value).__name__}, {shortened(str(value))}"


def _json_fault(error: Exception) -> str:
    """What is wrong with a line; to the parser it is always line 1."""
    return f"character {error.colno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else str(error)


SEPARATOR = re.compile(r"sep=(.)\r?\n")
"""A first line that tells Excel the separator of the columns."""


def _delimiter(text: str) -> str:
    """What parts the columns of a CSV file: a comma, unless its first line has none and a semicolon, tab or bar."""
    first = text.partition("\n")[0]
    return "," if "," in first else next((mark for mark in ";\t|" if mark in first), ",")


def _csv_rows(name: str, text: str, *, delimiter: str, column_names: Sequence[str]) -> list[Row | DataError]:
    """Rows under the names in the first line, or under `column_names`, with which the first line is a row."""
    rows: list[Row | DataError] = []
    named = SEPARATOR.match(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=named[1] if named else delimiter, strict=True)
    limit = csv.field_size_limit(LONGEST_CSV_FIELD)
    try:
        if named:
            next(reader)
        header = list(column_names) or next(reader, [])
        if len(header) > MOST_COLUMNS:
            raise DataError(f"{name}:1: {len(header):,} columns; expected one row a line; is the table on its side?")
        if len(set(header)) < len(header):
            place = "column_names" if column_names else f"{name}:1: the header"
            raise DataError(f"{place} {shortened(','.join(header))} names a column twice; rename one")
        line = reader.line_num + 1
        for fields in reader:
            if len(fields) == len(header):
                rows.append(Row(dict(zip(header, fields, strict=True)), f"{name}:{line}"))
            elif fields:
                rows.append(
                    DataError(
                        f"{name}:{line}: {len(fields)} fields; "
                        f"{'column_names' if column_names else 'the header'} has {len(header)}; "
                        "put text that holds separators in double quotes"
                    )
                )
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{name}:{reader.line_num}: not CSV ({error}); "
            'put text that holds quotes or separators in double quotes, each inner quote as ""'
        ) from error
    finally:
        csv.field_size_limit(limit)
    return rows


def _parquet_rows(name: str, data: bytes) -> list[Row | DataError]:
    pyarrow, parquet = _optional("pyarrow", name), _optional("pyarrow.parquet", name)
    rows: list[Row | DataError] = []
    num_bytes = 0
    try:
        for batch in parquet.ParquetFile(pyarrow.BufferReader(data)).iter_batches(batch_size=1000):
            num_bytes += batch.nbytes
            refuse_if_unpacked_is_too_large(name, len(data), num_bytes)
            rows += [Row(row, f"{name}:{number}") for number, row in enumerate(batch.to_pylist(), start=len(rows) + 1)]
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{name} is not Parquet ({_first_line(error)}); expected a whole Parquet file") from error
    return rows


def _directory_rows(name: str, path: Path, split: str) -> tuple[list[Row | DataError], str, *tuple[str, ...]]:
    datasets = _optional("datasets", name)
    if not path.is_dir():
        raise (
            not_found(name, path)
            if not path.exists()
            else DataError(f'{name} is a file; format = "datasets" expects a directory; leave the format out')
        )
    try:
        dataset = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{name} is no directory of `datasets` ({_first_line(error)}); expected one that save_to_disk() wrote; "
            f"{_files_in(name, path)}"
        ) from error
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise DataError(f'{name} has no split "{split}"; it has {", ".join(dataset)}; set data.split')
        return *_dataset_rows(name, dataset[split]), *dataset
    if split != "train" and str(dataset.split) != split:
        raise DataError(f'{name} has no splits, so split = "{split}" cannot be taken from it; leave split out')
    return _dataset_rows(name, dataset)


def _hub_rows(name: str, source: RowsConfig) -> tuple[list[Row | DataError], str, *tuple[str, ...]]:
    datasets = _optional("datasets", f"{name} is not a file here; as a dataset of the hub it")
    try:
        dataset = datasets.load_dataset(name, source.subset, split=source.split, revision=source.revision)
    except Exception as error:  # the hub's client lets the exceptions of four libraries through
        raise DataError(
            f"{name} is not a file here and cannot be loaded from the hub: {_first_line(error)}; "
            "check the path, the id, split and subset, and the connection, or download its files and name them"
        ) from error
    return *_dataset_rows(name, dataset), *(dataset.info.splits or ())


def _optional(module: str, name: str) -> Any:
    """A module of the extra [datasets], which what `name` says needs. Raises: MissingDependencyError."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{name} needs a package that is missing ({error.name}) to be read; pip install 'rlhfkit[datasets]', "
            "or give the rows as JSONL or CSV"
        ) from error


def _files_in(name: str, path: Path) -> str:
    """What to do with a directory that holds files of rows."""
    found = sorted(file for file in path.rglob("*") if file.is_file() and _ending(file.name) in FORMATS)
    if not found:
        return "no file of rows is in it; correct the path"
    shown = [f"{name}/{file.relative_to(path).as_posix()}" for file in found[:3]]
    more = f"; {len(found) - 3} more lie there" if len(found) > 3 else ""
    return f"to read files in it, name them, as in data.path = {json.dumps(shown, ensure_ascii=False)}{more}"


def _dataset_rows(name: str, dataset: Any) -> tuple[list[Row | DataError], str]:
    sha256 = hashlib.sha256()
    for file in dataset.cache_files:
        with open(file["filename"], "rb") as opened:
            while block := opened.read(1 << 20):
                sha256.update(block)
    return [Row(row, f"{name}:{number}") for number, row in enumerate(dataset, start=1)], sha256.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
