"""A Python function as a reward."""

import difflib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch

from rlhfkit.config.schema import FunctionRewardConfig
from rlhfkit.errors import ConfigError, RewardError
from rlhfkit.records import Prompt
from rlhfkit.rewards.source import ScoredText, check_scores

__all__ = ["FunctionReward"]


class FunctionReward:
    """Scores that the user's function returns.

    The function gets all prompts and all responses, in this order, and returns one number per response:

        def politeness(prompts: list[str], responses: list[str], label: list[str]) -> list[float]: ...

    Each further parameter is filled with the column of that name of the prompts' rows, as a list; `**columns` gets
    every column that all of the rows have.
    """

    def __init__(self, config: FunctionRewardConfig) -> None:
        """Import the function.

        Raises: ConfigError where there is no such module or function, or its parameters do not fit; RewardError where
        the module fails while it is imported.
        """
        self.name = config.function
        self._function = _import_function(config.function)
        self._columns, self._takes_all = _wanted_columns(self._function, config.function)

    def score(self, episodes: Sequence[ScoredText]) -> torch.Tensor:
        """Scores (B,) that the function returns.

        Raises: RewardError where the function raises, asks for a column that a row lacks, or does not return one
        finite number per response.
        """
        prompts = [episode.prompt_text for episode in episodes]
        responses = [episode.response for episode in episodes]
        columns = self.columns_of([episode.prompt for episode in episodes])
        try:
            scores = self._function(prompts, responses, **columns)
        except (Exception, SystemExit) as error:  # sys.exit() there would end the run as if it were done
            raise RewardError(
                f"{self.name} raised {_told(error)} (at {_where(error, self._function)}); mend the function: a reward "
                "that fails must not become a number"
            ) from error
        return check_scores(scores, episodes, source=self.name)

    def columns_of(self, prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
        """What the function's further parameters get for `prompts`.

        Raises: RewardError where a prompt's row lacks a column.
        """
        filled: dict[str, list[Any]] = {}
        for column, required in self._columns.items():
            lacking = [prompt for prompt in prompts if column not in prompt.columns]
            if not lacking:
                filled[column] = [prompt.columns[column] for prompt in prompts]
            elif required:
                there = ", ".join(map(repr, sorted(lacking[0].columns))) or "none"
                raise RewardError(
                    f"{self.name} asks for the column {column!r}, which the row {lacking[0].origin or 'of a prompt'} "
                    f"does not have; its columns: {there}. Rename the parameter, give it a default, or add the column"
                )
        if self._takes_all and prompts:
            everywhere = set.intersection(*(set(prompt.columns) for prompt in prompts))
            for column in sorted(everywhere - set(filled)):
                filled[column] = [prompt.columns[column] for prompt in prompts]
        return filled


def _import_function(name: str) -> Callable[..., Any]:
    """The callable `package.module:function`, looked up from the working directory first."""
    module_name, function_name = name.split(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _failed_import(name, error) from error
        raise ConfigError(
            f"reward.function {name!r}: there is no module {error.name!r}; write `package.module:function`, importable "
            f"from the working directory {os.getcwd()} or installed beside rlhfkit"
        ) from error
    except (Exception, SystemExit) as error:
        raise _failed_import(name, error) from error
    function = getattr(module, function_name, None)
    if function is None:
        raise ConfigError(
            f"reward.function {name!r}: {module_name} has no function {function_name!r}"
            f"{_suggestion(function_name, module)}"
        )
    if not callable(function):
        raise ConfigError(
            f"reward.function {name!r} is of type {type(function).__name__}, not a function"
            f"{_suggestion(function_name, module)}"
        )
    return function  # type: ignore[no-any-return]


def _failed_import(name: str, error: BaseException) -> RewardError:
    if isinstance(error, SyntaxError):
        where = f"{error.filename}:{error.lineno}"
    else:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{frame.filename}:{frame.lineno}"
    return RewardError(
        f"reward.function {name!r}: importing its module raised {_told(error)} (at {where}); mend the module"
    )


def _told(error: BaseException) -> str:
    """Type and words of somebody else's exception, on one line."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _suggestion(wanted: str, module: ModuleType) -> str:
    functions = [
        name
        for name, value in vars(module).items()
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    close = difflib.get_close_matches(wanted, functions, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; its functions: {', '.join(sorted(functions)) or 'none'}"


def _wanted_columns(function: Callable[..., Any], name: str) -> tuple[dict[str, bool], bool]:
    """Column → whether it is required, for the parameters after prompts and responses; and whether there is `**`."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # some callables written in C do not tell
        return {}, False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    names = [p.name for p in positional]
    if (len(positional) < 2 and not variadic) or names[:1] == ["responses"] or names[1:2] == ["prompts"]:
        raise ConfigError(
            f"reward.function {name!r} takes ({', '.join(p.name for p in parameters)}); expected "
            "(prompts, responses, …): two lists of text in this order, then names of columns"
        )
    further = [p for p in parameters if p not in positional[:2] and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    columns = {p.name: p.default is p.empty for p in further}
    return columns, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _where(error: BaseException, function: Callable[..., Any]) -> str:
    """Last file:line of the traceback in the function's own file, or the last one of all."""
    frames = traceback.extract_tb(error.__traceback__)
    code = getattr(inspect.unwrap(function), "__code__", None)
    own = [frame for frame in frames if code is not None and frame.filename == code.co_filename]
    frame = (own or list(frames))[-1]
    return f"{frame.filename}:{frame.lineno}"
