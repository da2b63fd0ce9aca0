"""Rows of files → typed records: prompts, demonstrations, preferences, texts."""

from rlhfkit.data.demonstrations import load_demonstrations
from rlhfkit.data.loading import refuse_bad_rows
from rlhfkit.data.preferences import load_preferences, write_preferences
from rlhfkit.data.prompts import find_overlap, load_prompts
from rlhfkit.data.rows import Loaded, OnBadRow, Row, SourceFile, read_rows
from rlhfkit.data.texts import load_texts
from rlhfkit.data.unread import note_on_unread

__all__ = [
    "Loaded",
    "OnBadRow",
    "Row",
    "SourceFile",
    "find_overlap",
    "load_demonstrations",
    "load_preferences",
    "load_prompts",
    "load_texts",
    "note_on_unread",
    "read_rows",
    "refuse_bad_rows",
    "write_preferences",
]
