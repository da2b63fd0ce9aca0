"""What is wrong with a recipe, in words.

A fault names the setting as the recipe spells it, shows the value, and says what was expected and what to do.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from rlhfkit.config.elsewhere import named_elsewhere
from rlhfkit.config.section import Section
from rlhfkit.wording import shortened

__all__ = [
    "faults_of",
    "shown",
]


LONGEST_VALUE = 80


def shown(value: object) -> str:
    """A value as a recipe may have it, shortened where it is long."""
    return shortened(json.dumps(value, ensure_ascii=False, default=str), LONGEST_VALUE)


def _shown_in_python(value: object) -> str:
    return shortened(repr(value), LONGEST_VALUE)


class _Place(NamedTuple):
    """Where in the recipe a fault is."""

    name: str
    """Dotted, without the labels by which pydantic tells the members of a union apart."""
    field: FieldInfo | None
    """The setting, if there is one of that name."""
    section: type[Section]
    """The section that the setting is, or would be, in."""
    siblings: tuple[type[Section], ...]
    """Other sections that may stand there, with another `type`."""
    recipe: type[Section]
    """The class of the whole recipe; in Python, of the section that is made."""


def faults_of(
    error: ValidationError, overrides: dict[str, str], kind: type[Section], *, in_python: bool = False
) -> list[str]:
    """One line for each setting that is wrong; `in_python` names the class, and types as Python has them."""
    reasons: dict[str, list[str]] = {}
    for detail in error.errors(include_url=False):
        place = _locate(detail["loc"], kind)
        if in_python:
            subject, reason = _fault_in_python(detail, place)
        else:
            subject, reason = _fault(detail, place, overrides)
        if reason and reason not in reasons.setdefault(subject, []):  # the members of a union complain one by one
            reasons[subject].append(reason)
    return [subject + " or ".join(several) for subject, several in reasons.items() if several]


def _fault_in_python(detail: ErrorDetails, place: _Place) -> tuple[str, str]:
    """As `_fault`, of a section that a program has made."""
    subject, reason = _fault(detail, place, {}, shown=_shown_in_python)
    owner = place.recipe.public_name()
    if detail["type"] in ("model_type", "model_attributes_type", "dict_type"):
        sections = _sections(_members(place.field.annotation if place.field else None))
        reason = " or ".join(["a dictionary", *(section.public_name() for section in sections)])
    elif detail["type"] in ("bool_type", "bool_parsing"):
        reason = "True or False"
    return f"{owner}.{subject}" if place.name else f"{owner}: {subject}", reason


def _fault(
    detail: ErrorDetails, place: _Place, overrides: dict[str, str], *, shown: Callable[[object], str] = shown
) -> tuple[str, str]:
    """Which setting is wrong, and what was expected; the latter is empty where pydantic repeats itself."""
    name, value, context = place.name, detail["input"], detail.get("ctx", {})
    origin = _origin(name, overrides)
    match detail["type"]:
        case "missing":
            return f"{name} is required: ", _how_to_give(name, place.field)
        case "union_tag_not_found":
            tags = _either(_tags(place.field.annotation if place.field else None))
            return f"{name}.type is required: ", f"give one of {tags}"
        case "extra_forbidden":
            return f"{name}{origin}: ", f"no such setting; {_where_instead(place)}"
        case "value_error":
            reason = str(context["error"])
            blamed = [given for key, given in overrides.items() if _names(reason, key, name)]
            given = f" (you gave {', '.join(blamed)})" if blamed else ""
            return f"{name}: " if name else "", reason + given
        case "union_tag_invalid":
            tags = _either(context["expected_tags"].replace("'", "").split(", "))
            return f"{name}.type = {shown(context['tag'])}{_origin(f'{name}.type', overrides)}: expected ", tags
        case "default_factory_not_called":  # what it would go by is wrong, and is reported
            return name, ""
        case "too_short" if len(value) >= context["min_length"]:  # counts without the items that are wrong themselves
            return name, ""
        case kind:
            takes_text = place.field is not None and str in _members(place.field.annotation)
            if name in overrides and takes_text and not isinstance(value, str):
                origin = f" (from the command line; '{name}=\"…\"' makes it a text)"
            return f"{name} = {shown(value)}{origin}: expected ", _expected(kind, context, detail["msg"], place.field)


def _expected(kind: str, context: dict[str, Any], message: str, field: FieldInfo | None) -> str:
    match kind:
        case "string_type":
            return "a text"
        case "bool_type" | "bool_parsing":
            return "true or false"
        case "int_type" | "int_parsing" | "int_from_float":
            return "a whole number"
        case "float_type" | "float_parsing":
            return "a number"
        case "finite_number":
            return "a finite number"
        case "greater_than":
            return f"a number above {context['gt']:g}"
        case "greater_than_equal":
            return f"a number of at least {context['ge']:g}"
        case "less_than_equal":
            return f"a number of at most {context['le']:g}"
        case "literal_error":
            return str(context["expected"]).replace("'", '"')
        case "tuple_type":
            return "a list"
        case "too_short":
            return f"at least {context['min_length']} of them"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "a table"
        case "string_pattern_mismatch":
            return f"a text that matches {context['pattern']} ({_help(field)})"
        case _:
            return message.removeprefix("Input should be ")


def _locate(location: tuple[int | str, ...], kind: type[Section]) -> _Place:
    """Walk the recipe's types along a location of pydantic's."""
    name = ""
    field: FieldInfo | None = None
    section: type[Section] = kind
    siblings: tuple[type[Section], ...] = ()
    annotation: Any = kind
    for step in location:
        members = _members(annotation)
        if len(members) > 1:  # the step is pydantic's label of one member, not a key of the recipe
            annotation = next((member for member in members if step in _tags(member)), None)
            siblings = tuple(member for member in _sections(members) if member is not annotation)
        elif sections := _sections(members):
            section, field = sections[0], sections[0].model_fields.get(str(step))
            annotation = field.annotation if field else None
            name += f".{step}" if name else str(step)
        else:
            annotation = _item(members[0]) if members else None
            name += f"[{step}]" if isinstance(step, int) else f".{step}"
    return _Place(name, field, section, siblings, kind)


def _item(annotation: Any) -> Any:
    """Type of what a list or a table of free names holds."""
    arguments = get_args(annotation) or (None,)
    return arguments[1] if get_origin(annotation) is dict else arguments[0]


def _members(annotation: Any) -> tuple[Any, ...]:
    """Members of a union without None, or the one type that `annotation` is."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return tuple(member for part in get_args(annotation) for member in _members(part))
    return () if annotation in (None, NoneType) else (annotation,)


def _sections(members: Sequence[Any]) -> list[type[Section]]:
    return [member for member in members if isinstance(member, type) and issubclass(member, Section)]


def _tags(annotation: Any) -> list[str]:
    """What `type` may say where `annotation` stands."""
    sections = _sections(_members(annotation))
    return [tag for section in sections if "type" in section.model_fields for tag in _literals(section)]


def _literals(section: type[Section]) -> tuple[str, ...]:
    return get_args(section.model_fields["type"].annotation)


def _origin(name: str, overrides: dict[str, str]) -> str:
    def is_inside(inner: str, outer: str) -> bool:
        return inner == outer or inner.startswith((f"{outer}.", f"{outer}["))

    given = any(is_inside(name, key) or is_inside(key, name) for key in overrides)
    return " (from the command line)" if given else ""


def _names(reason: str, key: str, section: str) -> bool:
    """Whether a validator of `section` (of the whole recipe, if empty) speaks of the setting `key`."""
    setting = key.removeprefix(f"{section}.") if section else key
    return re.search(rf"(?<![\w.]){re.escape(setting)}(?!\w)", reason) is not None


def _how_to_give(name: str, field: FieldInfo | None) -> str:
    """How to give a setting that is missing; for a whole section, the first setting that it needs."""
    sections = _sections(_members(field.annotation)) if field else []
    for key, inner in sections[0].model_fields.items() if sections else ():
        if inner.is_required():
            return _how_to_give(f"{name}.{key}", inner)
    example = field.examples[0] if field and field.examples else name.rpartition(".")[2].upper()
    means = f" ({_help(field)})" if _help(field) else ""
    # Overrides cannot reach into lists, and a section without needs is given as a table.
    return f"add it to the recipe{means}" if "[" in name or sections else f"give {name}={example}{means}"


def _where_instead(place: _Place) -> str:
    """What may have been meant by a setting that does not exist."""
    parent, _, key = place.name.rpartition(".")
    if tags := [tag for sibling in place.siblings if key in sibling.model_fields for tag in _literals(sibling)]:
        return f"{key} belongs to {parent}.type = {_either(tags)}"
    elsewhere = [name for name in _settings(place.recipe) if name.endswith(f".{key}")]
    if not elsewhere and (ours := named_elsewhere(key, place.section, place.recipe)):
        return f"here it is {ours}"
    if near := difflib.get_close_matches(key, place.section.model_fields, n=1):
        return f"did you mean {f'{parent}.' if parent else ''}{near[0]}?"
    if near := [name for name in elsewhere if name.startswith(f"{parent}.")] or elsewhere:
        return f"did you mean {' or '.join(near[:3])}?"
    owner = parent or ("a recipe" if "stages" in place.recipe.model_fields else place.recipe.public_name())
    return f"{owner} has {', '.join(place.section.model_fields)}"


def _settings(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Dotted names of every setting; where a union stands, those of its first member."""
    for key, field in section.model_fields.items():
        yield prefix + key
        if sections := _sections(_members(field.annotation)):
            yield from _settings(sections[0], f"{prefix}{key}.")


def _help(field: FieldInfo | None) -> str:
    return " ".join((field.description or "").split()).rstrip(".") if field else ""


def _either(names: Sequence[str]) -> str:
    *others, last = (f'"{name}"' for name in names)
    return f"{', '.join(others)} or {last}" if others else last
