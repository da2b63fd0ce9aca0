"""A Python function as a reward."""

import inspect
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rlhfkit.config.schema import FunctionRewardConfig
from rlhfkit.errors import ConfigError, RewardError
from rlhfkit.importing import import_named, told_error
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
        self._function = import_named(config.function, setting="reward.function", error=RewardError)
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
                f"{self.name} raised {told_error(error)} (at {_where(error, self._function)}); mend the function: a "
                "reward that fails must not become a number"
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
