"""What the parameters of somebody's reward function get: bound by their names, never by a guess.

prompts                     all prompts
responses, completions      all responses
prompt, response, completion    one of each: the function is called for one response at a time
any other name              the column of that name of the prompts' rows
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_origin

from rlhfkit.errors import ConfigError

__all__ = ["Binding", "bind"]

PROMPTS, RESPONSES = ("prompts", "prompt"), ("responses", "completions", "response", "completion")
SINGULAR = frozenset({"prompt", "response", "completion"})
EXPECTED = (
    "(prompts, responses, …), two lists of text (or `completions` for the responses), or (prompt, response, …), one "
    "text each; every other name is that of a column of the prompts' rows"
)
SEQUENCES = ("list", "List", "Sequence", "Iterable", "tuple", "typing.List", "collections.abc.Sequence")


@dataclass(frozen=True, slots=True)
class Binding:
    """What a function is called with."""

    names: dict[str, str]
    """Parameter → "prompts" or "responses"."""
    columns: dict[str, bool]
    """Column → whether the function cannot do without it."""
    takes_all: bool
    """Whether a `**` takes all columns, and the prompts or responses that no parameter names."""
    one_at_a_time: bool
    """Whether the function is called for each response, rather than for all of them."""
    by_place: tuple[str, ...] = ()
    """Parameters that have a place and no name, in order."""


def bind(function: Callable[..., Any], name: str) -> Binding:
    """How to call `function`, which the recipe calls `name`.

    Raises: ConfigError where its parameters do not say which of them are the responses, or which is which.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):  # some callables written in C do not tell
        raise _refused(name, "…", "its parameters cannot be seen: call it from a function of yours") from None
    bare = [parameter.replace(annotation=parameter.empty) for parameter in parameters]
    shown = str(inspect.Signature(bare))[1:-1]
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if takes_all and not named and any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise _refused(name, shown, "these are a decorator's; put @functools.wraps(function) before its inner function")
    names = _names(named)
    columns = {p.name: p.default is p.empty for p in named if p.name not in names}
    by_place = tuple(p.name for p in named if p.kind is p.POSITIONAL_ONLY)
    if "responses" not in names.values() and not (takes_all and not columns):
        raise _refused(name, shown, "none of these is called responses; rename the one that is")
    if stray := [column for column in by_place if column in columns]:
        raise _refused(name, shown, f"{stray[0]} has no name to be called by; take the / out")
    singular = {_is_singular(p) for p in named if p.name in names}
    if len(singular) > 1:
        raise _refused(name, shown, "some of these are lists and some are one text; name all of them alike")
    return Binding(names, columns, takes_all, one_at_a_time=singular == {True}, by_place=by_place)


def _names(parameters: list[inspect.Parameter]) -> dict[str, str]:
    """Parameter → prompts or responses, of those whose name says so; `_` before the responses is for the prompts."""
    names = {}
    for position, parameter in enumerate(parameters):
        plain = parameter.name.strip("_")
        if plain in PROMPTS:
            names[parameter.name] = "prompts"
        elif plain in RESPONSES:
            names[parameter.name] = "responses"
        elif not plain and position == 0 and len(parameters) > 1 and parameters[1].name.strip("_") in RESPONSES:
            names[parameter.name] = "prompts"
    return names


def _is_singular(parameter: inspect.Parameter) -> bool:
    """Whether the parameter is one text, by its annotation, or else by its name."""
    annotation = parameter.annotation
    if annotation in (str, "str"):
        return True
    if isinstance(annotation, str) and annotation.partition("[")[0] in SEQUENCES:
        return False
    if annotation is list or get_origin(annotation) is not None:
        return False
    return parameter.name.strip("_") in SINGULAR


def _refused(name: str, shown: str, reason: str) -> ConfigError:
    return ConfigError(f"reward.function {name!r} takes ({shown}); expected {EXPECTED}; {reason}")
