"""TOML and `section.key=value` overrides → Recipe; all faults in one message.

A fault names the setting as the recipe spells it, shows the value, and says what was expected and what to do.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from rlhfkit.config.control import ControlRecipe
from rlhfkit.config.recipe import Recipe
from rlhfkit.config.section import Section
from rlhfkit.errors import ConfigError

__all__ = [
    "LoadedRecipe",
    "RecipeSummary",
    "list_recipes",
    "load_recipe",
    "recipe_kind",
    "recipe_text",
    "resolved_json",
]

Table = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LoadedRecipe:
    """A recipe with what it was made from."""

    recipe: Recipe | ControlRecipe
    """Every setting, checked."""
    text: str
    """The TOML as it was given, comments included."""
    overrides: tuple[str, ...]
    """What the command line changed, as "ppo.iterations=2"."""


class RecipeSummary(NamedTuple):
    """What the header comment of a shipped recipe says."""

    name: str
    purpose: str
    hardware: str
    time: str


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Recipe of a shipped name or of a TOML file, with `section.key=value` overrides on top.

    A value is read as TOML where it is TOML, and as a text otherwise: `ppo.iterations=2`, `data.prompts.rows=:90%`.
    Raises: ConfigError, which lists every fault.
    """
    text = _read(str(name_or_path))
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"recipe {name_or_path} is not valid TOML: {error}; fix it there (texts stand in quotes, as in "
            'name = "mine", and each table begins on a line of its own, as [ppo])'
        ) from error
    applied, faults = _apply(overrides, table)
    kind = recipe_kind(table)
    try:
        recipe = kind.model_validate(table)
    except ValidationError as error:
        faults += _faults(error, applied, kind)
    if faults:
        heading = f"recipe {name_or_path}: " if len(faults) == 1 else f"recipe {name_or_path} has {len(faults)} faults:"
        raise ConfigError(heading + (faults[0] if len(faults) == 1 else "".join(f"\n  {fault}" for fault in faults)))
    return LoadedRecipe(recipe, text, tuple(overrides))


def recipe_kind(table: Table) -> type[Recipe] | type[ControlRecipe]:
    """The class of a recipe; a control task says so in its stages."""
    stages = table.get("stages")
    return ControlRecipe if isinstance(stages, list) and "control" in stages else Recipe


def resolved_json(recipe: Recipe | ControlRecipe) -> str:
    """Every setting, defaults included, as JSON (TOML has no null)."""
    return recipe.model_dump_json(indent=2) + "\n"


# ── shipped recipes ──────────────────────────────────────────────────────────────────────────────────────────────────


def list_recipes() -> list[RecipeSummary]:
    """Summaries of the shipped recipes, by name.

    The header comment's first line is the purpose; its lines `Hardware: …` and `Time: …` are the other two.
    """
    return [_summary(name, file.read_text(encoding="utf-8")) for name, file in _shipped().items()]


def recipe_text(name: str) -> str:
    """TOML of a shipped recipe.

    Raises: ConfigError where there is none of that name.
    """
    shipped = _shipped()
    if name not in shipped:
        raise ConfigError(f"no shipped recipe is called {name!r}{_did_you_mean(name, shipped)}; {_listed(shipped)}")
    return shipped[name].read_text(encoding="utf-8")


def _shipped() -> dict[str, Traversable]:
    folder = files("rlhfkit") / "recipes"
    found = {file.name.removesuffix(".toml"): file for file in folder.iterdir() if file.name.endswith(".toml")}
    return dict(sorted(found.items()))


def _listed(names: dict[str, Traversable]) -> str:
    return f"the shipped recipes are {', '.join(names)}"


def _summary(name: str, text: str) -> RecipeSummary:
    comment = re.match(r"(#[^\n]*\n)*", text)
    lines = [line.lstrip("# ").rstrip() for line in comment.group().splitlines()] if comment else []

    def after(label: str) -> str:
        return next((line.removeprefix(label).strip() for line in lines if line.startswith(label)), "")

    return RecipeSummary(name, lines[0] if lines else "", after("Hardware:"), after("Time:"))


def _read(name_or_path: str) -> str:
    if name_or_path in _shipped():
        return recipe_text(name_or_path)
    path = Path(name_or_path)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        shipped = _shipped()
        near = _did_you_mean(path.stem, shipped)
        raise ConfigError(f"there is neither a recipe nor a file {name_or_path!r}{near}; {_listed(shipped)}") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{name_or_path} is a directory; give a recipe's name or a TOML file") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"recipe {name_or_path}:{line}: byte {error.start} (0x{error.object[error.start]:02x}) is not UTF-8; "
            "save the file as UTF-8"
        ) from error
    except OSError as error:
        raise ConfigError(f"recipe {name_or_path} cannot be read: {error.strerror}") from error


# ── overrides ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _apply(overrides: Sequence[str], table: Table) -> tuple[dict[str, str], list[str]]:
    """Set each override in `table`; dotted name → override as given, and the faults of those that cannot be set."""
    applied: dict[str, str] = {}
    faults: list[str] = []
    for override in overrides:
        name, equals, value = override.partition("=")
        keys = [key.strip() for key in name.split(".")]
        if not equals or not all(keys):
            faults.append(f"override {override!r}: expected section.key=value, as in ppo.iterations=2")
            continue
        target: Any = table
        for depth, key in enumerate(keys[:-1], start=1):
            target = target.setdefault(key, {})
            if not isinstance(target, dict):
                parent = ".".join(keys[:depth])
                faults.append(
                    f"override {override!r}: {parent} is {_shown(target)}, which has no settings below it; "
                    f"replace it as a whole with {parent}=…"
                )
                break
        else:
            target[keys[-1]] = _value(value)
            applied[".".join(keys)] = override
    return applied, faults


def _value(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    is_plain = len(table) == 1 and not isinstance(table["value"], date | time | datetime)  # no setting is a date
    return table["value"] if is_plain else text


# ── faults ───────────────────────────────────────────────────────────────────────────────────────────────────────────


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
    """The class of the whole recipe."""


def _faults(error: ValidationError, overrides: dict[str, str], kind: type[Section]) -> list[str]:
    """One line for each setting that is wrong."""
    reasons: dict[str, list[str]] = {}
    for detail in error.errors(include_url=False):
        subject, reason = _fault(detail, _locate(detail["loc"], kind), overrides)
        if reason and reason not in reasons.setdefault(subject, []):  # the members of a union complain one by one
            reasons[subject].append(reason)
    return [subject + " or ".join(several) for subject, several in reasons.items() if several]


def _fault(detail: ErrorDetails, place: _Place, overrides: dict[str, str]) -> tuple[str, str]:
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
            return f"{name}.type = {_shown(context['tag'])}{_origin(f'{name}.type', overrides)}: expected ", tags
        case "too_short" if len(value) >= context["min_length"]:  # counts without the items that are wrong themselves
            return name, ""
        case kind:
            takes_text = place.field is not None and str in _members(place.field.annotation)
            if name in overrides and takes_text and not isinstance(value, str):
                origin = f" (from the command line; '{name}=\"…\"' makes it a text)"
            return f"{name} = {_shown(value)}{origin}: expected ", _expected(kind, context, detail["msg"], place.field)


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
    if near := difflib.get_close_matches(key, place.section.model_fields, n=1):
        return f"did you mean {f'{parent}.' if parent else ''}{near[0]}?"
    elsewhere = [name for name in _settings(place.recipe) if name.endswith(f".{key}")]
    if near := [name for name in elsewhere if name.startswith(f"{parent}.")] or elsewhere:
        return f"did you mean {' or '.join(near[:3])}?"
    return f"{parent or 'a recipe'} has {', '.join(place.section.model_fields)}"


def _settings(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Dotted names of every setting; where a union stands, those of its first member."""
    for key, field in section.model_fields.items():
        yield prefix + key
        if sections := _sections(_members(field.annotation)):
            yield from _settings(sections[0], f"{prefix}{key}.")


def _did_you_mean(name: str, known: dict[str, Traversable]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _help(field: FieldInfo | None) -> str:
    return " ".join((field.description or "").split()).rstrip(".") if field else ""


def _either(names: Sequence[str]) -> str:
    *others, last = (f'"{name}"' for name in names)
    return f"{', '.join(others)} or {last}" if others else last


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "…"
