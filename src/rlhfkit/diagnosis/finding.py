"""What a rule says: what is wrong, the numbers that show it, why that is bad, and which setting to turn."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlhfkit.diagnosis.curves import Curves

__all__ = ["Evidence", "Finding", "Remedy", "Rule", "Settings", "setting_of"]

Settings = Mapping[str, Any]
"""The section of the recipe that the training read, as a table; under "recipe" the whole, where it is known."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Numbers that show it."""

    metric: str
    iterations: tuple[int, int] | None
    """First and last iteration that the numbers are from; None where they are no curve's."""
    words: str
    """The numbers in a sentence, without the metric's name: "is 41.2, where 24 is the limit"."""
    numbers: Mapping[str, float] = field(default_factory=dict)

    def when(self) -> str:
        """As "iterations 3 to 7"; nothing where they are no curve's."""
        if self.iterations is None:
            return ""
        first, last = self.iterations
        return f"iteration {first}" if first == last else f"iterations {first} to {last}"


@dataclass(frozen=True, slots=True)
class Remedy:
    """A setting to turn, and what to turn it to: as an override, the recipe takes it and is another one."""

    setting: str
    """Dotted name in the recipe."""
    to: str
    """What to set it to, as the recipe writes it."""
    now: str | None = None
    """What it is."""
    also: tuple[tuple[str, str], ...] = ()
    """Settings that have to go with it."""
    note: str = ""
    """How far to go, or what to look at."""

    def words(self) -> str:
        """As "ppo.kl.coef from 0 to 0.05"."""
        changed = f"{self.setting}{'' if self.now is None else f' from {self.now}'} to {self.to}"
        others = "".join(f", {name} to {to}" for name, to in self.also)
        return f"{changed}{others}{f': {self.note}' if self.note else ''}"

    def overrides(self) -> tuple[str, ...]:
        """As the command `run` takes them."""
        return tuple(f"{name}={to}" for name, to in ((self.setting, self.to), *self.also))


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that goes wrong."""

    name: str
    title: str
    cause: str
    source: str
    """Where it is known from."""
    when: str
    """When it is named, as the documents say it."""
    check: Callable[[Curves, Settings], tuple[Evidence, ...]]
    """The evidence at the end of the curves; none where there is nothing to see."""
    remedies: Callable[[Curves, Settings], tuple[Remedy, ...]]
    """Settings that would change something in this recipe."""
    advice: tuple[str, ...] = ()
    """What else to do, where no setting does it."""
    follows_from: frozenset[str] = frozenset()
    """Rules whose trouble brings this one with it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that applies."""

    rule: str
    title: str
    evidence: tuple[Evidence, ...]
    cause: str
    remedies: tuple[Remedy, ...]
    source: str
    follows_from: tuple[str, ...] = ()
    """Findings of the same training that this one probably is a consequence of."""
    advice: tuple[str, ...] = ()
    """What else to do."""

    def first_step(self) -> str:
        """The first thing to do, as an order."""
        if self.remedies:
            return f"set {self.remedies[0].words()}"
        return self.advice[0] if self.advice else "see `rlhfkit diagnose`"


def setting_of(settings: Settings, *path: str) -> Any:
    """A value of a nested table; None where it is not there."""
    value: Any = settings
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
