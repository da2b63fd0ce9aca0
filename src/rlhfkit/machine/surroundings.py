"""What a process needs of its surroundings before anything heavy is imported: streams for text, a place to cache in."""

import getpass
import os
import sys
import tempfile
from pathlib import Path
from typing import IO

__all__ = ["CACHE", "make_do"]

CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""Where torch keeps compiled code; without a directory that can be written, it cannot be imported by transformers."""


def make_do() -> None:
    """Let text be written to a terminal that lacks its letters, and torch start where its cache cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        _accept_all_letters(stream)
    try:
        place = Path(os.environ.get(CACHE) or Path(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}"))
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return
    except (OSError, KeyError):  # KeyError: a user without a name, as in some containers
        os.environ[CACHE] = tempfile.mkdtemp(prefix="rlhfkit-torch-")


def _accept_all_letters(stream: IO[str] | None) -> None:
    reconfigure = getattr(stream, "reconfigure", None)  # pytest's streams and notebooks' have none
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
