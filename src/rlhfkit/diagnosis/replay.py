"""Asking the rules after each row, as a run would while it trains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rlhfkit.diagnosis.curves import Curves
from rlhfkit.diagnosis.finding import Evidence, Finding, Rule, Settings

__all__ = ["ROLLED_BACK_TO", "Named", "Replay", "replay"]

ROLLED_BACK_TO = "watch/rolled_back_to"
"""In the row after which the weights of an earlier iteration were put back: the last iteration that counts."""


@dataclass(frozen=True, slots=True)
class Named:
    """A finding, and when it was there."""

    finding: Finding
    """At its latest."""
    first: int
    """Iteration in which it was named first."""
    last: int
    """Iteration in which it was named last."""
    is_present: bool
    """Whether it was still there in the last iteration."""


class Replay:
    """The rules over one training, row by row."""

    def __init__(self, rules: Sequence[Rule], settings: Settings) -> None:
        """Ask `rules`, which read `settings`."""
        self._rules, self._settings = rules, settings
        self.curves = Curves()

    def add(self, row: Mapping[str, object]) -> dict[str, tuple[Evidence, ...]]:
        """Take a row; what the rules see at its end, by name, most telling first."""
        self.curves.add(row)
        seen = ((rule.name, rule.check(self.curves, self._settings)) for rule in self._rules)
        return {name: evidence for name, evidence in seen if evidence}

    def roll_back(self, row: Mapping[str, object]) -> None:
        """Forget the iterations that a row says were taken back, if it does."""
        to, iteration = row.get(ROLLED_BACK_TO), row.get("iteration")
        if isinstance(to, int | float) and isinstance(iteration, int | float):
            self.curves = self.curves.without(int(to), int(iteration))

    def finding(self, name: str, seen: Mapping[str, tuple[Evidence, ...]]) -> Finding:
        """What a rule that was seen says in full."""
        rule = next(rule for rule in self._rules if rule.name == name)
        return Finding(
            rule.name,
            rule.title,
            seen[name],
            rule.cause,
            rule.remedies(self.curves, self._settings),
            rule.source,
            tuple(other for other in seen if other in rule.follows_from),
            rule.advice,
        )


def replay(rows: Sequence[Mapping[str, object]], rules: Sequence[Rule], settings: Settings) -> list[Named]:
    """What the rules name in a training, in the order of `rules`."""
    asked = Replay(rules, settings)
    named: dict[str, Named] = {}
    for row in rows:
        if not isinstance(row.get("iteration"), int | float):
            continue
        seen = asked.add(row)
        iteration = asked.curves["iteration"].iterations[-1]
        for name, before in named.items():
            if name not in seen and before.is_present:
                named[name] = replace(before, is_present=False)
        for name in seen:
            first = named[name].first if name in named else iteration
            named[name] = Named(asked.finding(name, seen), first, iteration, True)
        asked.roll_back(row)
    causes = {rule.name: rule.follows_from for rule in rules}
    for name, one in named.items():
        # A single update that was too large is over when what it has broken begins to show.
        earlier = tuple(other for other in named if other in causes[name] and named[other].first <= one.last)
        named[name] = replace(one, finding=replace(one.finding, follows_from=earlier))
    return [named[rule.name] for rule in rules if rule.name in named]
