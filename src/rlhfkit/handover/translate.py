"""A recipe in the words of another tool: what can be said, what is refused, and what has no effect there."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from rlhfkit.config.recipe import Recipe
from rlhfkit.config.section import Section
from rlhfkit.handover.nowhere import why_without_effect
from rlhfkit.handover.subject import Subject, value_text
from rlhfkit.handover.terms import IN_REWARD_FILE, OMITTED, Line, Refusal, Row, Rule, Target

__all__ = ["Translation", "accounted_for", "settings_of", "translate"]


@dataclass(frozen=True)
class Translation:
    """What becomes of a recipe."""

    target: Target
    lines: tuple[Line, ...]
    constants: tuple[Line, ...]
    """Of the file of the reward."""
    refused: tuple[Refusal, ...]
    """What the tool cannot say, whether a substitute was taken or not."""
    without_effect: tuple[str, ...]
    """Settings that are not at their default in the recipe, and do nothing there, with the reason."""


def translate(target: Target, subject: Subject) -> Translation:
    """The lines for `target`, those of substitutes included; the caller sees to it that these are wanted."""
    applying = [rule for rule in target.rules if rule.applies(subject)]
    refused = tuple(_refusal(rule, subject) for rule in applying)
    if any(not refusal.substitute for refusal in refused):
        return Translation(target, (), (), refused, ())
    made = [(row, line) for row in target.rows if (line := _line(row, subject, applying)) is not None]
    return Translation(
        target,
        tuple(line for row, line in made if not row.theirs.startswith(IN_REWARD_FILE)),
        tuple(
            Line(line.key.removeprefix(IN_REWARD_FILE), line.value, line.comment)
            for row, line in made
            if row.theirs.startswith(IN_REWARD_FILE)
        ),
        refused,
        tuple(_idle(subject.recipe)),
    )


def _refusal(rule: Rule, subject: Subject) -> Refusal:
    substitute = rule.substitute(subject) if callable(rule.substitute) else rule.substitute
    return Refusal(_said(rule.ours, subject), rule.why, substitute, rule.remedy)


def _said(names: tuple[str, ...], subject: Subject) -> str:
    """The settings with their values, those that the recipe has."""
    shown = [name for name in names if subject.setting(name) is not None or len(names) == 1]
    return ", ".join(subject.origin(name) for name in shown or names)


def _line(row: Row, subject: Subject, applying: list[Rule]) -> Line | None:
    value = row.value(subject)
    if value is OMITTED:
        return None
    names = row.origins(subject)
    instead = [rule for rule in applying if set(rule.ours) & set(names)]
    words = "; ".join(f"SUBSTITUTE ({rule.why}): {_refusal(rule, subject).substitute}" for rule in instead)
    origin = f"from {_said(names, subject)}" if names else "not of the recipe"
    comment = "; ".join(part for part in (origin, row.unit, words) if part)
    return Line(row.theirs, value, f"{comment} [{row.source}]")


# ── every setting has a place ────────────────────────────────────────────────────────────────────────────────────────


LISTS = ("reward.parts", "ppo.constraints")
"""Settings that hold rewards, which may hold rewards in turn."""


def settings_of(kind: type[Section] = Recipe, prefix: str = "") -> list[str]:
    """Dotted names of all settings, of every kind that a section may be of; sections without effect as one name."""
    found: set[str] = set()
    for key, field in kind.model_fields.items():
        name = f"{prefix}{key}"
        sections = [] if name in LISTS or why_without_effect(name) else list(_sections(field.annotation))
        if not sections:
            found.add(name)
        for section in sections:
            found |= set(settings_of(section, f"{name}."))
    return sorted(found)


def _sections(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections(inner)


def accounted_for(target: Target, name: str) -> bool:
    """Whether the target's tables say what becomes of a setting."""
    named = {ours for row in target.rows for ours in (*row.ours, *row.shared)}
    named |= {ours for rule in target.rules for ours in rule.ours}
    parts = name.split(".")
    above = {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
    return bool(above & named) or why_without_effect(name) is not None


def _idle(recipe: Recipe) -> Iterator[str]:
    """Settings that are not at their default and do nothing elsewhere, with the reason; sections before PPO as one."""
    for name, value in _changed(recipe):
        if name.split(".")[0] in ("model", "rollout", "ppo") and (why := why_without_effect(name)) is not None:
            yield f"{name} = {value_text(value)}: {why}"


def _changed(section: Section, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _changed(value, f"{prefix}{name}.")
        elif name in section.model_fields_set and (field.is_required() or value != field.default) and value is not None:
            yield f"{prefix}{name}", value
