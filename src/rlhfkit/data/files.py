"""Files of data as bytes and text: found, unpacked, decoded, and refused where they are no files or have no end."""

import codecs
import difflib
import gzip
import io
import stat
import zlib
from pathlib import Path

from rlhfkit.errors import DataError
from rlhfkit.wording import listed

__all__ = ["close_names", "decode", "not_found", "read_bytes", "refuse_if_unpacked_is_too_large", "unpacked"]

GZIP_MAGIC = b"\x1f\x8b"
OTHER_FILES = {
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it first (zstd -d)",
    b"BZh": "compressed with bzip2; unpack it first (bunzip2)",
    b"\xfd7zXZ": "compressed with xz; unpack it first (unxz)",
    b"PK\x03\x04": "a zip archive or an Excel workbook; unpack it, or save the sheet as CSV in UTF-8",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save the sheet as CSV in UTF-8",
    b"ARROW1": "an Arrow file; write it as Parquet, or name the directory that save_to_disk() wrote",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; fetch it with git lfs pull",
    b"SQLite format 3": "an SQLite database; export the table as CSV or JSONL",
}
"""How a file begins -> what it is, and what to do."""
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
NO_FILES = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)
ALWAYS_ROOM = 64 << 20
LARGEST_RATIO = 200
"""Rows of text shrink to a third or a twentieth; what shrinks more is a file of zeros, or meant to fill the memory."""


def read_bytes(name: str, path: Path) -> bytes:
    """What a file holds. Raises: DataError where it is not there, cannot be read, or is no file."""
    try:
        mode = path.stat().st_mode  # to open a pipe would wait for ever
        for is_kind, what in NO_FILES:
            if is_kind(mode):
                raise DataError(f"{name} is {what}; expected a file: rows are read more than once; write them to one")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise not_found(name, path) from None
    except OSError as error:
        raise DataError(f"{name} cannot be read ({error.strerror}); expected a readable file; see {path}") from error


def unpacked(name: str, data: bytes) -> bytes:
    """What a gzip file holds; anything else as it is.

    Raises: DataError where it is damaged, of another kind, or unpacks to far more than rows do.
    """
    for magic, what in OTHER_FILES.items():
        if data.startswith(magic):
            raise DataError(f"{name} is {what}")
    if not data.startswith(GZIP_MAGIC):
        return data
    blocks = []
    num_bytes = 0
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            while block := file.read(1 << 22):
                blocks.append(block)
                num_bytes += len(block)
                refuse_if_unpacked_is_too_large(name, len(data), num_bytes)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name} is damaged: {error}; expected a whole gzip file; copy it again") from error
    return b"".join(blocks)


def refuse_if_unpacked_is_too_large(name: str, packed: int, num_bytes: int) -> None:
    """Refuse a file of `packed` bytes that unpacks to more than such files do. Raises: DataError."""
    if num_bytes > max(ALWAYS_ROOM, LARGEST_RATIO * packed):
        raise DataError(
            f"{name} has {packed / 1e6:.2g} MB and unpacks to more than {num_bytes / 1e6:.0f} MB, which no rows of "
            "text do; if it is what you want, unpack it, and name the file that comes out"
        )


def not_found(name: str, path: Path) -> DataError:
    """What to say of a file that is not there."""
    if not path.parent.is_dir():
        return DataError(f"{name} is not there: no directory {path.parent}; correct the path or data.directory")
    directory = path.parent.resolve()  # "is not in ." says nothing
    if close := close_names(path):
        return DataError(f"{name} is not in {directory}; did you mean {' or '.join(close)}?")
    there = sorted(entry.name for entry in path.parent.iterdir() if not entry.name.startswith("."))
    held = listed(there, 8) if there else "nothing"
    return DataError(
        f"{name} is not in {directory}, which holds {held}; correct the path or data.directory "
        '(a dataset on the hub is format = "hub")'
    )


def close_names(path: Path) -> list[str]:
    """What is there under names like that of `path`."""
    if not path.parent.is_dir():
        return []
    return difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()])


def decode(name: str, data: bytes, encoding: str) -> str:
    """The text of a file; a mark at its beginning says that it is UTF-16 or UTF-32. Raises: DataError."""
    if encoding == "utf-8":
        encoding = next((other for mark, other in MARKS.items() if data.startswith(mark)), encoding)
        if encoding == "utf-8" and data[:1000].count(0) > len(data[:1000]) / 4:
            order = "le" if data[1:2] == b"\0" else "be"
            raise DataError(
                f'{name} is full of zero bytes; expected UTF-8; if it is text, encoding = "utf-16-{order}" may read it'
            )
    try:
        return data.decode(encoding).lstrip("\ufeff")
    except LookupError:
        raise DataError(
            f'{name}: encoding = "{encoding}" is unknown; expected a name such as "utf-8", "latin-1" or "utf-16"'
        ) from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name}:{line}: byte {error.start} (0x{data[error.start]:02x}) is not {encoding}; "
            "save the file as UTF-8, or say in its table, or by data.encoding for all, how it is written, perhaps "
            f'encoding = "{_likely_encoding(data)}"'
        ) from None


def _likely_encoding(data: bytes) -> str:
    """Of two that look alike: Latin-1 has no quotation marks and dashes, and reads those of Windows as nothing."""
    try:
        data.decode("windows-1252")
    except UnicodeDecodeError:
        return "latin-1"
    return "windows-1252"
