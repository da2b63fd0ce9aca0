"""What a check has found: a verdict, what was seen, and what to do about it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from rlhfkit.errors import RlhfkitError

__all__ = ["Finding", "Verdict", "checked", "fault", "finding_of_error", "ok", "skipped", "warning"]

Verdict = Literal["ok", "warning", "fault", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of what `rlhfkit doctor` says."""

    name: str
    """As "data.prompts"; what stands before the first dot is the heading that it comes under."""
    verdict: Verdict
    """A fault stops a run or makes it worthless; a warning may; what could not be looked at is skipped."""
    seen: str
    """What was measured, with its numbers, or why it was skipped."""
    remedy: str = ""
    """What to do; empty where nothing is to be done."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """For programs: what `seen` says in words."""


def ok(name: str, seen: str, **numbers: float) -> Finding:
    """Nothing is wrong."""
    return Finding(name, "ok", seen, numbers=numbers)


def warning(name: str, seen: str, remedy: str = "") -> Finding:
    """Something is probably not wanted."""
    return Finding(name, "warning", seen, remedy)


def fault(name: str, seen: str, remedy: str = "") -> Finding:
    """Something is wrong."""
    return Finding(name, "fault", seen, remedy)


def skipped(name: str, seen: str, remedy: str = "") -> Finding:
    """It could not be looked at."""
    return Finding(name, "skipped", seen, remedy)


def checked(name: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of `check`; where it raises, this is a fault called `name`, and what it found before stays."""
    try:
        yield from check()
    except RlhfkitError as error:
        yield finding_of_error(name, error)
    except Exception as error:  # one check that fails in an unforeseen way must not hide what the others find
        words = (str(error).splitlines() or [""])[0]
        yield fault(
            name,
            f"could not be checked: {type(error).__name__}: {words}",
            "if nothing above explains it, this is a bug of rlhfkit: report it with this line",
        )


def finding_of_error(name: str, error: RlhfkitError) -> Finding:
    """An error's message, which by custom says last, after a semicolon, what to do."""
    message = str(error)
    seen, semicolon, remedy = message.rpartition("; ")
    if not semicolon or "\n" in message or seen.count("(") != seen.count(")"):
        return fault(name, message)
    return fault(name, seen, remedy)
