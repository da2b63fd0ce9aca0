"""Rows as they stand in files, `datasets` directories and datasets on the hub, each with its origin."""

import csv
import difflib
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from rlhfkit.config.schema import RowsConfig
from rlhfkit.errors import DataError
from rlhfkit.records import Demonstration, Preference, Prompt, place_of_prompt

__all__ = ["Loaded", "OnBadRow", "Row", "SourceFile", "described", "load_rows", "read_rows", "refuse_bad_rows"]

T = TypeVar("T")
OnBadRow = Literal["stop", "skip"]

FORMATS = {".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".txt": "text"}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
GZIP_MAGIC = b"\x1f\x8b"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
LONGEST_CSV_FIELD = 2**31 - 1


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


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """Records with what became of the rows that they come from."""

    records: list[T]
    """The good rows, in order."""
    skipped: tuple[str, ...]
    """One message for each row that was left out."""
    sources: tuple[SourceFile, ...]
    """The files that were read."""


def load_rows(
    source: RowsConfig, parse: Callable[[Row], T], *, directory: str | Path, on_bad_row: OnBadRow
) -> Loaded[T]:
    """Records that `parse` makes of the rows of `source`.

    A bad row is one that cannot be read, or of which `parse` says DataError (without its origin, which is added here).
    Raises: DataError for the first bad row where `on_bad_row` is "stop", and where no good row is left.
    """
    rows, sources = read_rows(source, directory=directory)
    records: list[T] = []
    faults: list[str] = []
    for row in rows:
        if isinstance(row, DataError):
            faults.append(str(row))
            continue
        try:
            records.append(parse(row))
        except DataError as error:
            faults.append(f"{row.origin}: {error}")
    refuse_bad_rows(faults, num_rows=len(rows), on_bad_row=on_bad_row)
    kept = _in_share(records, source.prompt_share)
    return Loaded(_one_per_prompt(kept) if source.one_per_prompt else kept, tuple(faults), sources)


def _in_share(records: list[T], share: str) -> list[T]:
    """The records whose prompt's hash lies in `share`, in per cent."""
    low, high = (bound.strip().removesuffix("%") for bound in share.split(":"))
    if not low and not high:
        return records
    start, stop = int(low or 0) / 100, int(high or 100) / 100
    kept = [record for record in records if start <= place_of_prompt(_prompt_of(record).content) < stop]
    if not kept:
        raise DataError(f'prompt_share = "{share}" leaves none of the {len(records)} rows; widen it')
    return kept


def _one_per_prompt(records: list[T]) -> list[T]:
    """The first record of each prompt; where it is a prompt itself, with the references of them all."""
    rows: dict[object, list[T]] = {}
    for record in records:
        rows.setdefault(_prompt_of(record).content, []).append(record)
    return [_merged(same) for same in rows.values()]


def _merged(records: Sequence[T]) -> T:
    first, *others = records
    if not isinstance(first, Prompt):
        return first
    references = [prompt.reference for prompt in others if isinstance(prompt, Prompt) and prompt.reference is not None]
    return replace(first, further_references=tuple(references))


def _prompt_of(record: object) -> Prompt:
    match record:
        case (Prompt() as prompt) | Demonstration(prompt=prompt) | Preference(prompt=prompt):
            return prompt
    raise DataError("prompt_share and one_per_prompt go by the prompt, and whole texts have none; use rows")


def refuse_bad_rows(faults: Sequence[str], *, num_rows: int, on_bad_row: OnBadRow) -> None:
    """Nothing, if `num_rows` rows of which those with `faults` are bad will do.

    Raises: DataError with the first fault where `on_bad_row` is "stop", and where no good row is left.
    """
    if faults and len(faults) == num_rows:
        raise DataError(f"none of the {num_rows} rows can be used; the first: {faults[0]}")
    if faults and on_bad_row == "stop":
        bad, them = ("1 bad row", "it") if len(faults) == 1 else (f"{len(faults)} bad rows", "them")
        raise DataError(
            f'{faults[0]} ({bad} of {num_rows}; mend {them}, or leave {them} out with data.on_bad_row = "skip")'
        )


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
        found, sha256 = _read(name, source, Path(directory).expanduser())
        if not found:
            raise DataError(f"{name} is empty; expected at least one row; is it the right file?")
        taken = found[_slice(source.rows, len(found))]
        if not taken:
            raise DataError(f'rows = "{source.rows}" leaves none of the {len(found)} rows of {name}; widen the slice')
        rows += [_renamed(row, source.columns) for row in taken]
        files.append(SourceFile(name, sha256, len(taken)))
    return rows, tuple(files)


def _read(name: str, source: RowsConfig, directory: Path) -> tuple[list[Row | DataError], str]:
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
    data = _read_bytes(name, path)
    sha256 = hashlib.sha256(data).hexdigest()
    if data.startswith(GZIP_MAGIC):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{name} is damaged: {error}; expected a whole gzip file; copy it again") from error
    if form == "parquet":
        return _parquet_rows(name, data), sha256
    text = _decode(name, data, source.encoding)
    if form in ("csv", "tsv"):
        is_tsv = form == "tsv" or _ending(name) == ".tsv"
        return _csv_rows(name, text, delimiter="\t" if is_tsv else ",", column_names=source.column_names), sha256
    return (_json_rows if form == "jsonl" else _text_rows)(name, text), sha256


def _ending(name: str) -> str:
    return Path(name.lower().removesuffix(".gz")).suffix


def _format(name: str, path: Path) -> str:
    if path.is_dir():
        return "datasets"
    if form := FORMATS.get(_ending(name)):
        return form
    if path.exists():
        raise DataError(
            f"{name} is of unknown format; expected one of the endings {', '.join(FORMATS)} (each also .gz); "
            'say how to read it, for example format = "text"'
        )
    if HUB_ID.fullmatch(name) and not _close_names(path):
        return "hub"
    raise _not_found(name, path)


def _read_bytes(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise _not_found(name, path) from None
    except OSError as error:
        raise DataError(f"{name} cannot be read ({error.strerror}); expected a readable file; see {path}") from error


def _not_found(name: str, path: Path) -> DataError:
    if not path.parent.is_dir():
        return DataError(f"{name} is not there: no directory {path.parent}; mend the path or data.directory")
    directory = path.parent.resolve()  # "is not in ." says nothing
    if close := _close_names(path):
        return DataError(f"{name} is not in {directory}; did you mean {' or '.join(close)}?")
    there = sorted(entry.name for entry in path.parent.iterdir() if not entry.name.startswith("."))
    listed = ", ".join(there[:8]) + (", …" if len(there) > 8 else "") if there else "nothing"
    return DataError(
        f"{name} is not in {directory}, which holds {listed}; mend the path or data.directory "
        '(a dataset on the hub is format = "hub")'
    )


def _close_names(path: Path) -> list[str]:
    if not path.parent.is_dir():
        return []
    return difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()])


def _decode(name: str, data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except LookupError:
        raise DataError(
            f'{name}: encoding = "{encoding}" is unknown; expected a name such as "utf-8", "latin-1" or "utf-16"'
        ) from None
    except UnicodeDecodeError as error:
        likely = "utf-16" if data.startswith(UTF16_MARKS) else "latin-1"
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name}:{line}: byte {error.start} (0x{data[error.start]:02x}) is not {encoding}; "
            f'save the file as UTF-8, or say in its table how it is written, perhaps encoding = "{likely}"'
        ) from None


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
        try:
            columns[ours] = _column(row.columns, theirs)
        except KeyError:
            return DataError(
                f'{row.origin}: no column "{theirs}"; the row has {", ".join(row.columns)}; '
                f"mend columns.{ours} in the recipe"
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


def _json_rows(name: str, text: str) -> list[Row | DataError]:
    if text.lstrip().startswith("["):
        try:
            items = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name} is not JSON: {error}; expected a list of objects; mend it there") from error
        return [_json_row(item, f"{name}:{number}") for number, item in enumerate(items, start=1)]
    rows: list[Row | DataError] = []
    for number, line in _lines(text):
        origin = f"{name}:{number}"
        try:
            rows.append(_json_row(json.loads(line), origin))
        except (ValueError, RecursionError) as error:
            rows.append(
                DataError(
                    f"{origin}: not JSON ({_json_fault(error)}) in {_short(line)!r}; expected one object per line, "
                    'as {"prompt": "…"}'
                )
            )
    return rows


def _json_row(value: object, origin: str) -> Row | DataError:
    if isinstance(value, dict):
        return Row(value, origin)
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
            return f"the text {_short(value)!r}"
        case list():
            return f"a list, {_short(str(value))}"
        case dict():
            return f"an object, {_short(str(value))}"
        case _:
            return f"of type {type(value).__name__}, {_short(str(value))}"


def _json_fault(error: Exception) -> str:
    """What is wrong with a line; to the parser it is always line 1."""
    return f"character {error.colno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else str(error)


def _csv_rows(name: str, text: str, *, delimiter: str, column_names: Sequence[str]) -> list[Row | DataError]:
    """Rows under the names in the first line, or under `column_names`, with which the first line is a row."""
    rows: list[Row | DataError] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    limit = csv.field_size_limit(LONGEST_CSV_FIELD)
    try:
        header = list(column_names) or next(reader, [])
        if len(set(header)) < len(header):
            place = "column_names" if column_names else f"{name}:1: the header"
            raise DataError(f"{place} {_short(','.join(header))} names a column twice; rename one")
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
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        table = parquet.read_table(pyarrow.BufferReader(data))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{name} is not Parquet ({_first_line(error)}); expected a whole Parquet file") from error
    return [Row(columns, f"{name}:{number}") for number, columns in enumerate(table.to_pylist(), start=1)]


def _directory_rows(name: str, path: Path, split: str) -> tuple[list[Row | DataError], str]:
    import datasets  # type: ignore[import-untyped]

    if not path.is_dir():
        raise (
            _not_found(name, path)
            if not path.exists()
            else DataError(f'{name} is a file; format = "datasets" expects a directory; leave the format out')
        )
    try:
        dataset = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{name} is no directory of `datasets` ({_first_line(error)}); expected one that save_to_disk() wrote; "
            "to read files in it, name them"
        ) from error
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise DataError(f'{name} has no split "{split}"; it has {", ".join(dataset)}; set split')
        return _dataset_rows(name, dataset[split])
    if split != "train" and str(dataset.split) != split:
        raise DataError(f'{name} has no splits, so split = "{split}" cannot be taken from it; leave split out')
    return _dataset_rows(name, dataset)


def _hub_rows(name: str, source: RowsConfig) -> tuple[list[Row | DataError], str]:
    import datasets

    try:
        dataset = datasets.load_dataset(name, source.subset, split=source.split, revision=source.revision)
    except Exception as error:  # the hub's client lets the exceptions of four libraries through
        raise DataError(
            f"{name} is not a file here and cannot be loaded from the hub: {_first_line(error)}; "
            "check the path, the id, split and subset, and the connection, or download its files and name them"
        ) from error
    return _dataset_rows(name, dataset)


def _dataset_rows(name: str, dataset: Any) -> tuple[list[Row | DataError], str]:
    sha256 = hashlib.sha256()
    for file in dataset.cache_files:
        with open(file["filename"], "rb") as opened:
            while block := opened.read(1 << 20):
                sha256.update(block)
    return [Row(row, f"{name}:{number}") for number, row in enumerate(dataset, start=1)], sha256.hexdigest()


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}…"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
