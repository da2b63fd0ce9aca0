"""Files of labels: JSON lists, JSON lines and tables as records, with errors that name the record."""

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from rlhfkit.data.rows import described
from rlhfkit.errors import DataError
from rlhfkit.rundir.atomic import write_atomically
from rlhfkit.wording import listed

__all__ = [
    "Record",
    "decode_records",
    "id_key",
    "items_of",
    "number_of",
    "object_of",
    "parse_all",
    "read_records",
    "text_of",
    "write_records",
]

T = TypeVar("T")

DEEPEST = 64
MOST_FAULTS_NAMED = 8
LARGEST_NUMBER = sys.float_info.max
SEPARATORS = ",;\t"
LONGEST_FIELD = 2**31 - 1
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file."""

    content: dict[str, Any]
    """Name → value."""
    number: int
    """Which it is, from 1: the item of a list, or the line."""
    origin: str
    """Where it stands, as "export.json:3"."""
    is_of_table: bool = False
    """Whether all its values are text, as in CSV."""


def read_records(path: str | Path) -> list[Record]:
    """Records of a JSON list, of JSON lines, of a file with one object, or of CSV or TSV; plain or gzipped, UTF-8.

    Raises: DataError where the file cannot be read or is empty, and where any record is no sound object.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} is not there; expected a file of labels or pairs; fix the path") from None
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        raise DataError(f"{path} cannot be read ({error}); expected a readable file; fix the path") from error
    return decode_records(data, name=path.name)


def decode_records(data: bytes, *, name: str) -> list[Record]:
    """Records in the bytes of a file called `name`. Raises: DataError."""
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{name} is damaged: {error}; expected a whole gzip file; copy it again") from error
    text = _text(data, name)
    if not text.strip():
        raise DataError(f"{name} is empty; expected at least one record; is it the right file?")
    is_table = _is_table(text, name)
    found = _rows_of_table(text, name) if is_table else _items(text, name)
    if not found:
        raise DataError(
            f"{name} holds {'no row' if is_table else 'an empty list'}; expected at least one record; "
            "is it the right file?"
        )

    def check(item: tuple[int, Any]) -> Record:
        number, value = item
        if isinstance(value, DataError):
            raise value
        if not isinstance(value, dict):
            raise DataError(f"{described(value)}; expected an object; fix or remove it")
        _check_sound(value)
        return Record(value, number, f"{name}:{number}", is_table)

    return parse_all(found, check, origin=lambda item: f"{name}:{item[0]}")


def parse_all(items: Sequence[Any], parse: Callable[[Any], T], *, origin: Callable[[Any], str]) -> list[T]:
    """What `parse` makes of each item, all or nothing.

    Raises: DataError with the first fault and the places of the others; `parse` leaves the place to this function.
    """
    parsed: list[T] = []
    faults: list[tuple[str, str]] = []
    for item in items:
        try:
            parsed.append(parse(item))
        except DataError as error:
            faults.append((origin(item), str(error)))
    if not faults:
        return parsed
    (place, fault), *others = faults
    if not others:
        raise DataError(f"{place}: {fault}")
    named = listed((place for place, _ in others), MOST_FAULTS_NAMED)
    raise DataError(f"{place}: {fault} ({len(faults)} bad records of {len(items)}, also {named})")


def write_records(path: str | Path, records: Sequence[dict[str, Any]], *, as_lines: bool) -> None:
    """Write JSON lines, or a JSON list, whole or not at all.

    Raises: DataError where the content cannot be written as UTF-8, or the file not at all.
    """
    lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records]
    text = "".join(f"{line}\n" for line in lines) if as_lines else "[{}]\n".format(",\n ".join(lines))
    try:
        write_atomically(Path(path), text)
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise DataError(
            f"{path} is not written: a text holds half a character, {half}, before "
            f"{text[error.end : error.end + 20]!r}; fix it in the source"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be written ({error}); expected a place for a file; fix the path") from error


def text_of(content: dict[str, Any], key: str) -> str:
    """The text under `key`. Raises: DataError."""
    value = _needed(content, key)
    if not isinstance(value, str):
        raise DataError(f'"{key}" is {described(value)}; expected text')
    return value


def object_of(content: dict[str, Any], key: str, *, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """The object under `key`; `default` where it is missing or null and there is a default. Raises: DataError."""
    value = content.get(key)
    if value is None and default is not None:
        return default
    if value is None:
        value = _needed(content, key)
    if not isinstance(value, dict):
        raise DataError(f'"{key}" is {described(value)}; expected an object')
    return value


def items_of(content: dict[str, Any], key: str) -> list[Any]:
    """The list under `key`, empty where it is missing or null. Raises: DataError."""
    value = content.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise DataError(f'"{key}" is {described(value)}; expected a list')
    return value


def number_of(content: dict[str, Any], key: str) -> float:
    """The number under `key`, 0 where it is missing or null. Raises: DataError where it is none or negative."""
    value = content.get(key)
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise DataError(f'"{key}" is {described(value)}; expected a number of seconds, or null')
    return float(value)


def id_key(content: dict[str, Any], key: str = "id") -> str:
    """The id under `key`, a text or a whole number, as text. Raises: DataError."""
    value = _needed(content, key)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f'"{key}" is {described(value)}; expected a text or a whole number')
    return str(value)


def _needed(content: dict[str, Any], key: str) -> Any:
    if key not in content:
        raise DataError(f'there is no "{key}"; the record has {", ".join(list(content)[:12]) or "nothing"}; add it')
    return content[key]


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        likely = "UTF-16" if data.startswith(UTF16_MARKS) else "another encoding"
        raise DataError(
            f"{name}:{line}: byte {error.start} (0x{data[error.start]:02x}) is not UTF-8, so perhaps it is {likely}; "
            "save the file as UTF-8"
        ) from None


def _items(text: str, name: str) -> list[tuple[int, Any]]:
    """Number and value of each record; in the place of an unreadable line its error."""
    start = text.lstrip()[:1]
    if start == "[":
        value = _json(text, f"{name} is not JSON", "a list of objects; is the file whole?")
        return list(enumerate(value, start=1))
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if start == "{" and len(lines) > 1 and lines[0][1].strip()[-1] != "}":  # one object over several lines
        return [(1, _json(text, f"{name} is not JSON", "one object, a list of them, or one on each line"))]
    items: list[tuple[int, Any]] = []
    for number, line in lines:
        try:
            items.append((number, _json(line, "not JSON", "one object on each line; is the file whole?")))
        except DataError as error:
            items.append((number, error))
    return items


def _is_table(text: str, name: str) -> bool:
    """Whether a file is CSV or TSV: by its name, or where it cannot be JSON and its first line has separators."""
    if name.lower().removesuffix(".gz").endswith((".csv", ".tsv")):
        return True
    first = text.lstrip().partition("\n")[0]
    return first[:1].isalpha() and any(separator in first for separator in SEPARATORS)


def _rows_of_table(text: str, name: str) -> list[tuple[int, Any]]:
    """Line and row of each record under the names in the first line; in the place of a bad row its error."""
    first = text.lstrip().partition("\n")[0]
    separator = max(SEPARATORS, key=first.count)
    limit = csv.field_size_limit(LONGEST_FIELD)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise DataError(f"{name}:1: the first line names a column twice; rename one")
        rows: list[tuple[int, Any]] = []
        line = reader.line_num + 1
        for fields in reader:
            if len(fields) == len(header):
                rows.append((line, dict(zip(header, fields, strict=True))))
            elif fields:
                fault = f"{len(fields)} fields; the first line has {len(header)}; put text with separators in quotes"
                rows.append((line, DataError(fault)))
            line = reader.line_num + 1
        return rows
    except csv.Error as error:
        raise DataError(f"{name} is no table that can be read ({error}); put text with separators in quotes") from error
    finally:
        csv.field_size_limit(limit)


def _json(text: str, what: str, expected: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, character {error.colno}" if error.lineno > 1 else f"character {error.colno}"
        raise DataError(f"{what} ({error.msg}, {place}); expected {expected}") from error
    except RecursionError:
        raise DataError(f"{what} that can be read: it is nested too deeply; expected {expected}") from None
    except ValueError as error:
        raise DataError(f"{what} ({error}); expected {expected}") from error


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number of JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'an object has "{twice[:40]}" twice')
    return content


def _check_sound(content: dict[str, Any]) -> None:
    """Check that every value in it can be stored and written again."""
    left: list[tuple[Any, int]] = [(content, 1)]
    while left:
        value, depth = left.pop()
        if depth > DEEPEST:
            raise DataError(f"it is nested deeper than {DEEPEST} levels; expected labels; flatten it")
        if isinstance(value, dict):
            left += [(inner, depth + 1) for inner in value.values()] + [(name, depth) for name in value]
        elif isinstance(value, list):
            left += [(inner, depth + 1) for inner in value]
        elif isinstance(value, int | float) and not abs(value) <= LARGEST_NUMBER:
            raise DataError("a number is too large to be read; expected a finite one; fix it")
        elif isinstance(value, str) and not _is_encodable(value):
            raise DataError("a text holds half a character, such as \\ud83d alone; fix it")


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
