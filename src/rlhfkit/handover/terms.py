"""What a translation consists of: rows, rules, and what they make of one recipe."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlhfkit.handover.subject import Subject

__all__ = ["HERE", "IN_REWARD_FILE", "OMITTED", "Line", "Refusal", "Row", "Rule", "Target", "always"]


class _Omitted:
    """What a row has for a value where it writes no line."""


OMITTED = _Omitted()

HERE = "@HERE@"
"""Stands, in a value, for the directory of the launch files."""

IN_REWARD_FILE = "reward.py:"
"""What the name of a row begins with that is a constant of the file of the reward."""


def always(subject: Subject) -> bool:
    """Every recipe."""
    return True


@dataclass(frozen=True)
class Row:
    """One setting of another tool, and where its value comes from."""

    theirs: str
    """Its dotted name there."""
    ours: tuple[str, ...]
    """Dotted names here; none for what the tool wants to be told, and no recipe says."""
    value: Callable[[Subject], Any]
    """What stands there: OMITTED for no line."""
    unit: str
    """Its unit there, and what is converted."""
    source: str
    """Where the tool uses it, as "trainer/ppo/ray_trainer.py:78"."""
    shared: tuple[str, ...] = ()
    """Where it comes from instead, if the critic is a head on the policy's trunk."""

    def origins(self, subject: Subject) -> tuple[str, ...]:
        """The settings that it comes from in this recipe."""
        return self.shared if self.shared and subject.shares_trunk else self.ours


@dataclass(frozen=True)
class Rule:
    """What a tool cannot say."""

    ours: tuple[str, ...]
    applies: Callable[[Subject], bool]
    why: str
    """What the tool does instead, or that it has nothing like it."""
    substitute: str | Callable[[Subject], str] = ""
    """The nearest thing, which the rows write where it is taken; empty where there is none."""
    remedy: str = ""
    """What to change where nothing can be substituted."""


@dataclass(frozen=True)
class Target:
    """A tool."""

    name: str
    version: str
    """The version whose sources were read."""
    where: str
    """What the paths of `Row.source` are relative to."""
    rows: tuple[Row, ...]
    rules: tuple[Rule, ...]
    remarks: tuple[str, ...] = ()
    """What is otherwise there whatever the recipe says, and has no setting."""


@dataclass(frozen=True)
class Line:
    """A line of a launch file."""

    key: str
    value: Any
    comment: str


@dataclass(frozen=True)
class Refusal:
    """A setting that the tool cannot take over."""

    setting: str
    """Name and value, as in a recipe."""
    why: str
    substitute: str
    """Empty where there is none."""
    remedy: str = ""

    def words(self) -> str:
        """As one line."""
        instead = f"; nearest: {self.substitute}" if self.substitute else f"; {self.remedy}" if self.remedy else ""
        return f"{self.setting}: {self.why}{instead}"
