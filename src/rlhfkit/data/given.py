"""Prompts that a person gives to `rlhfkit generate`: on the command line, in a file, or line by line."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rlhfkit.config.data import RowsConfig
from rlhfkit.data.prompts import load_prompts
from rlhfkit.data.texts import load_texts
from rlhfkit.errors import DataError
from rlhfkit.records import Prompt

__all__ = ["given_prompts"]


def given_prompts(texts: Sequence[str], file: Path | None) -> Iterator[str | Prompt]:
    """The texts, then the prompts of the file: a line each of a .txt, else the prompts of its rows; or those of stdin.

    Raises: DataError where the file cannot be read, or a row of it has no prompt.
    """
    yield from texts
    if file is not None:
        yield from _of_file(file)
    elif not texts:
        yield from _from_input()


def _of_file(file: Path) -> list[str] | list[Prompt]:
    source = RowsConfig(path=str(file))
    try:
        return load_texts(source).records if ".txt" in file.suffixes else load_prompts(source).records
    except DataError as error:
        raise DataError(f"--prompts: {error}") from error


def _from_input() -> Iterator[str]:
    """Lines of stdin that are not blank; a person at a terminal is asked for each."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin if line.strip())
        return
    print("One prompt a line; Ctrl-D ends.", file=sys.stderr)
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\n")
