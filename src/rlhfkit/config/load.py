"""TOML and `section.key=value` overrides → Recipe; all faults in one message."""

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import date, datetime, time
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from rlhfkit.config.control import ControlRecipe
from rlhfkit.config.faults import faults_of, shown
from rlhfkit.config.ppo import PpoConfig
from rlhfkit.config.presets import open_to_a_preset
from rlhfkit.config.recipe import Recipe
from rlhfkit.errors import ConfigError

__all__ = [
    "MADE_IN_PYTHON",
    "LoadedRecipe",
    "RecipeSummary",
    "list_recipes",
    "load_recipe",
    "recipe_kind",
    "recipe_table",
    "recipe_text",
    "resolved_json",
    "with_overrides",
]


Table = dict[str, Any]

MADE_IN_PYTHON = "# Made by rlhfkit."
"""How the `recipe.toml` of a run begins that a trainer in Python has made; its name follows."""


@dataclass(frozen=True, slots=True)
class LoadedRecipe:
    """A recipe with what it was made from.

    Example:
        >>> from rlhfkit import load_recipe
        >>> load_recipe("demo", ["ppo.iterations=2"]).overrides
        ('ppo.iterations=2',)
    """

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

    Example:
        >>> from rlhfkit import load_recipe
        >>> load_recipe("demo", ["ppo.iterations=2", "seed=7"]).recipe.ppo.iterations
        2
    """
    text = _read(str(name_or_path))
    table = _table(str(name_or_path), text)
    return LoadedRecipe(with_overrides(table, overrides, name=f"recipe {name_or_path}"), text, tuple(overrides))


def recipe_table(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Table:
    """The settings that a recipe and overrides give, without the defaults, as tables of TOML.

    Raises: as `load_recipe`.
    """
    table = _table(str(name_or_path), _read(str(name_or_path)))
    with_overrides(table, overrides, name=f"recipe {name_or_path}")
    _apply(overrides, table)
    return table


def _table(name: str, text: str) -> Table:
    if text.startswith(MADE_IN_PYTHON):
        raise _made_in_python(name, text)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"recipe {name} is not valid TOML: {error}; fix it there (texts stand in quotes, as in "
            'name = "mine", and each table begins on a line of its own, as [ppo])'
        ) from error


def with_overrides(
    table: Mapping[str, Any], overrides: Sequence[str], *, name: str, is_resolved: bool = False
) -> Recipe | ControlRecipe:
    """The recipe of a table of settings, with `section.key=value` overrides on top; `name` is what faults are of.

    Of a table that `is_resolved`, in which every setting stands, a `ppo.preset` among the overrides replaces those that
    are the default, or that another preset has set.
    Raises: ConfigError, which lists every fault.
    """
    changed = deepcopy(dict(table))
    sets_preset = any(override.partition("=")[0].strip() == "ppo.preset" for override in overrides)
    if is_resolved and sets_preset and recipe_kind(changed) is Recipe:
        changed["ppo"] = open_to_a_preset(changed["ppo"], PpoConfig().model_dump(mode="json"))
    applied, faults = _apply(overrides, changed)
    kind = recipe_kind(changed)
    try:
        recipe = kind.model_validate(changed)
    except ValidationError as error:
        faults += faults_of(error, applied, kind)
    if faults:
        heading = f"{name}: " if len(faults) == 1 else f"{name} has {len(faults)} faults:"
        raise ConfigError(heading + (faults[0] if len(faults) == 1 else "".join(f"\n  {fault}" for fault in faults)))
    return recipe


def _made_in_python(path: str, text: str) -> ConfigError:
    trainer = text.removeprefix(MADE_IN_PYTHON).split()[0]
    return ConfigError(
        f"{path} is of a run that {trainer} made in Python, of things that may be in memory there alone; go on with it "
        f"in Python, by the same {trainer}(…, run_dir=…), or write a recipe of your own (rlhfkit recipes shows some). "
        "The commands report, diagnose and generate work on such a run as it is"
    )


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
        own = path / "recipe.toml"
        hint = f": to go on with the run there, rlhfkit run {own} --run-dir {path}" if own.is_file() else ""
        if hint and (text := own.read_text(encoding="utf-8")).startswith(MADE_IN_PYTHON):
            raise _made_in_python(name_or_path, text) from error
        raise ConfigError(f"{name_or_path} is a directory; give a recipe's name or a TOML file{hint}") from error
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
                    f"override {override!r}: {parent} is {shown(target)}, which has no settings below it; "
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


def _did_you_mean(name: str, known: dict[str, Traversable]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
