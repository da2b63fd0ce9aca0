"""Lines with their comments as YAML, as arguments of a shell script, and as constants of a Python file."""

import json
import re
import shlex
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from rlhfkit.handover.terms import HERE, Line

__all__ = ["arguments", "constants", "yaml_of"]

WIDTH = 116


def _commented(comment: str, indent: str) -> list[str]:
    return textwrap.wrap(
        comment, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}#   ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def yaml_of(lines: Iterable[Line]) -> str:
    """YAML of dotted keys, each with its comment above it; `HERE` becomes an environment variable of OmegaConf."""
    tree: dict[str, Any] = {}
    for line in lines:
        *above, last = line.key.split(".")
        place = tree
        for key in above:
            place = place.setdefault(key, {})
        place[last] = line
    return "\n".join(_branch(tree, "")) + "\n"


def _branch(tree: dict[str, Any], indent: str) -> list[str]:
    written: list[str] = []
    for key, value in tree.items():
        if isinstance(value, Line):
            written += _commented(value.comment, indent)
            written.append(f"{indent}{key}: {_yaml_value(value.value)}")
        else:
            written += [f"{indent}{key}:", *_branch(value, f"{indent}  ")]
    return written


def _yaml_value(value: Any) -> str:
    """JSON, which is YAML; numbers in a form that every YAML parser takes for a number, as 1e-5 is none to some."""
    if isinstance(value, float):
        return _yaml_number(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml_value, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {_yaml_value(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False).replace(HERE, "${oc.env:HANDOVER}")


def _yaml_number(value: float) -> str:
    text = repr(value)
    return re.sub(r"^(-?\d+)e", r"\1.0e", text)


def arguments(lines: Iterable[Line]) -> str:
    """Elements of a bash array, each with its comment above it; `HERE` becomes $here. False is an argument left out."""
    written: list[str] = []
    for line in lines:
        if line.value is not False:
            written += _commented(line.comment, "  ")
            written.append(f"  --{line.key}{''.join(f' {word}' for word in _words(line.value))}")
    return "\n".join(written)


def _words(value: Any) -> Sequence[str]:
    if value is True:
        return ()
    values = value if isinstance(value, list) else [value]
    return [_word(inner) for inner in values]


def _word(value: Any) -> str:
    """A word for the shell. Numbers stand in digits where they are large: -1e9 would be taken for an option."""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1e6 and value == int(value) else repr(value)
    text = str(value)
    return f'"{text.replace(HERE, "$here")}"' if HERE in text else shlex.quote(text)


def constants(lines: Iterable[Line]) -> str:
    """Assignments of a Python file, each with its comment above it."""
    written: list[str] = []
    for line in lines:
        written += [*_commented(line.comment, ""), f"{line.key} = {line.value!r}"]
    return "\n".join(written) + "\n"
