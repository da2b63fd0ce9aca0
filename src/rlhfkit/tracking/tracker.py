"""What a tracker of experiments is to a run, and what it gets from it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from rlhfkit.config.secrets import hidden, hidden_in, looks_secret

__all__ = ["Ending", "Tracked", "Tracker", "safe_settings", "safe_words"]

Ending = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class Tracked:
    """A run as a tracker is to know it."""

    project: str
    name: str
    group: str | None
    settings: Mapping[str, Any]
    """The recipe's, without secrets."""
    directory: Path
    """Where a tracker may keep files, beside its state."""
    id: str
    """Of the run here: the same whenever it goes on."""
    known_as: str | None
    """What the tracker called it when it began, if it has begun."""


class Tracker(Protocol):
    """One run in one tracker, opened by the function `opened` of its module."""

    @property
    def known_as(self) -> str:
        """By what the tracker finds the run again."""
        ...

    @property
    def place(self) -> str:
        """Where a person finds it, as an address or a directory; no secret."""
        ...

    def log(self, place: str, iteration: int, values: Mapping[str, float]) -> None:
        """Add the numbers of an iteration as `place/name`; `place` is the stage, and the seed if it has several."""
        ...

    def close(self, ending: Ending) -> None:
        """Say how the run ended, and wait until all is sent."""
        ...


def safe_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without any value that is a known secret, or looks like one."""
    return {name: _safe(value) for name, value in hidden_in(settings).items()}


def _safe(value: Any) -> Any:
    if isinstance(value, str):
        return "(hidden)" if looks_secret(value) else safe_words(value)
    if isinstance(value, Mapping):
        return {name: _safe(inner) for name, inner in value.items()}
    return [_safe(inner) for inner in value] if isinstance(value, list | tuple) else value


def safe_words(text: str) -> str:
    """A text without known secrets, and without user and password or tokens of addresses in it."""
    text = re.sub(r"://[^/@\s]+@", "://", hidden(text))
    return re.sub(r"(?i)([?&;][\w-]*(?:token|key|secret|passw|signature)[\w-]*=)[^&;\s\"']+", r"\1(hidden)", text)
