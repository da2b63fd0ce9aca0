"""Errors, notes and warnings in the words of a Python program: arguments and classes, not flags and tables of a recipe.

What checks and trains serves the command line, too, and names settings as a recipe does. Here, where a program comes
in, is the one place where its words are put in their stead.
"""

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

from rlhfkit.config.elsewhere import named_elsewhere
from rlhfkit.config.section import Section
from rlhfkit.errors import RlhfkitError

__all__ = ["Words"]

P = ParamSpec("P")
R = TypeVar("R")
Class = TypeVar("Class", bound=type)

PHRASES = {
    r"start over here with --fresh": "remove that directory to start over",
    r"start over with --fresh": "remove the directory of the run to start over",
    r"--run-dir\b": "run_dir",
    r"--substitute takes": "substitute=True takes",
    r"--(gpus|directory)\b": r"\1",
    r"--response-tokens N": "response_tokens=N",
    r"\bmodel\.path = ": "model = ",
    r"\bmodel\.(lora|device|dtype)\b": r"\1",
    r"; add \[data\.test_prompts\], or leave it out": "; give test_prompts=…, or leave it out",
    r"\bdata\.(prompts|test_prompts|demonstrations|preferences|test_preferences)\b": r"\1",
    r"\breward\.path = ": "reward = ",
    r"\breward\.function '": "the function '",
    r"\bevaluation\.(judge|num_prompts|num_samples)\b": r"\1",
    r"correct the path or data\.directory": "correct the path",
    r'a dataset on the hub is format = "hub"': "of a dataset on the hub, give what datasets.load_dataset(…) returns",
    r"\benv\.max_turns\b": "max_turns",
    r"\bexpected a table\b": "expected a dictionary",
}
"""Pattern of what the command line says → what a program has in its place."""


class Words:
    """The words of one trainer or function, by the sections of settings that it takes."""

    def __init__(self, phrases: Mapping[str, str] | None = None, /, **arguments: tuple[str, type[Section]]) -> None:
        """Each argument's section: its name in a recipe, and its class; and `phrases` of this one alone."""
        self._sections = {argument: kind for argument, (_, kind) in arguments.items()}
        # Neither the end of a file's name nor a part of a metric is a setting.
        self._patterns = (
            dict(phrases or {})
            | {
                rf"(?<![\w./\"'-]){re.escape(name)}\.(?=(?:{'|'.join(kind.model_fields)})\b)": f"{kind.public_name()}."
                for name, kind in arguments.values()
            }
            | PHRASES
        )

    def said(self, text: str) -> str:
        """The text, with a program's names in place of a recipe's and the command line's."""
        for pattern, words in self._patterns.items():
            text = re.sub(pattern, words, text)
        return text

    def of_class(self, kind: Class) -> Class:
        """The class, whose public methods speak these words; see `of`."""
        for name, member in list(vars(kind).items()):
            if inspect.isfunction(member) and (name in ("__init__", "__next__") or not name.startswith("_")):
                setattr(kind, name, self.of(member, called=kind.__name__ if name == "__init__" else name))
        return kind

    def of(self, function: Callable[P, R], *, called: str = "") -> Callable[P, R]:
        """The function, which refuses unknown arguments with what was meant, and fails in these words.

        Raises: TypeError where there is no such argument; and whatever the function raises.
        """
        parameters = [name for name in inspect.signature(function).parameters if name != "self"]

        @functools.wraps(function)
        def speaking(*args: P.args, **kwargs: P.kwargs) -> R:
            for name in kwargs:
                if name not in parameters:
                    instead = self._instead(name, parameters)
                    raise TypeError(f"{called or function.__name__} has no argument {name!r}; {instead}")
            try:
                return function(*args, **kwargs)
            except RlhfkitError as error:
                error.args = (self.said(str(error)),)
                raise

        return speaking

    def _instead(self, name: str, parameters: list[str]) -> str:
        """What to give in place of an argument that there is not."""
        for argument, kind in self._sections.items():
            if argument in parameters and name in kind.model_fields:
                return f"it is a setting: give {argument}={kind.public_name()}({name}=…)"
        for argument, kind in self._sections.items():
            if argument in parameters and (ours := named_elsewhere(name, kind, kind)):
                return f"here it is a setting of {argument}={kind.public_name()}(…): {ours}"
        if near := difflib.get_close_matches(name, parameters, n=1):
            return f"did you mean {near[0]}?"
        return f"it has {', '.join(parameters)}"
