"""A Python function as a reward."""

import asyncio
import inspect
import numbers
import reprlib
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import torch

from rlhfkit.config.callables import import_named, shown_error, switches_kept
from rlhfkit.config.rewards import FunctionRewardConfig
from rlhfkit.distributed.ranks import on_first
from rlhfkit.errors import ConfigError, RewardError
from rlhfkit.records import Prompt
from rlhfkit.rewards.binding import Binding, bind
from rlhfkit.rewards.source import ScoredText, as_number, check_scores

__all__ = ["FunctionReward"]


class FunctionReward:
    """Scores that the user's function returns.

    Its parameters are bound by their names (see `binding.py`): all prompts and all responses, and the columns of the
    prompts' rows, each as a list, for which it returns one number per response:

        def politeness(prompts: list[str], responses: list[str], label: list[str]) -> list[float]: ...

    or, where the names are singular, one of each, for which it returns one number:

        def brevity(prompt: str, response: str) -> float: ...

    `**columns` gets every column that all of the rows have. The function may be a coroutine, a generator, an object
    that can be called, or a class of such objects.
    """

    def __init__(self, config: FunctionRewardConfig, *, given: Callable[..., Any] | None = None) -> None:
        """Import the function, unless it is `given`.

        Raises: ConfigError where there is no such module or function, or its parameters do not fit; RewardError where
        the module fails while it is imported.
        """
        self.name = config.function
        found = given or import_named(config.function, setting="reward.function", error=RewardError)
        self._function = _made(found, self.name)
        self.binding = bind(self._function, config.function)

    def score(self, episodes: Sequence[ScoredText]) -> torch.Tensor:
        """Scores (B,) that the function returns; of several ranks the first calls it, once for all rows.

        Raises: RewardError where the function raises, asks for a column that a row lacks, or does not return one
        finite number per response.
        """
        return on_first(lambda: self._score(episodes))

    def _score(self, episodes: Sequence[ScoredText]) -> torch.Tensor:
        given = self.columns_of([episode.prompt for episode in episodes])
        texts = {
            "prompts": [episode.prompt_text for episode in episodes],
            "responses": [episode.response for episode in episodes],
        }
        given |= {name: texts[what] for name, what in self.binding.names.items()}
        if self.binding.takes_all:
            given |= {name: texts[name] for name in texts if name not in self.binding.names.values()}
        try:
            with switches_kept():
                scores = self._called(given, len(episodes))
        except (Exception, SystemExit) as error:  # sys.exit() there would end the run as if it were done
            raise RewardError(
                f"{self.name} raised {shown_error(error)} (at {_where(error, self._function)}); correct the function: "
                "a reward that fails must not become a number"
            ) from error
        self._check_kind(scores, len(episodes))
        return check_scores(scores, episodes, source=self.name)

    def columns_of(self, prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
        """What the function's further parameters get for `prompts`.

        Raises: RewardError where a prompt's row lacks a column.
        """
        filled: dict[str, list[Any]] = {}
        for column, required in self.binding.columns.items():
            lacking = [prompt for prompt in prompts if column not in prompt.columns]
            if not lacking:
                filled[column] = [prompt.columns[column] for prompt in prompts]
            elif required:
                there = ", ".join(map(repr, sorted(lacking[0].columns))) or "none"
                raise RewardError(
                    f"{self.name} asks for the column {column!r}, which the row {lacking[0].origin or 'of a prompt'} "
                    f"does not have; its columns: {there}. Rename the parameter (prompts and responses are the lists "
                    "of text), give it a default, or add the column"
                )
        if self.binding.takes_all and prompts:
            everywhere = set.intersection(*(set(prompt.columns) for prompt in prompts))
            for column in sorted(everywhere - set(filled) - set(self.binding.names) - {"prompts", "responses"}):
                filled[column] = [prompt.columns[column] for prompt in prompts]
        return filled

    def _check_kind(self, scores: object, num: int) -> None:
        """Check that one text gave one number, and a list of texts a list.

        Raises: RewardError that says what the function got, what it returned, and what was expected.
        """
        names = ", ".join(self.binding.names) or "**"
        if self.binding.one_at_a_time:
            assert isinstance(scores, list)
            odd = [score for score in scores if as_number(score) is None]
            if odd:
                raise RewardError(
                    f"{self.name} got one text for each of ({names}) and returned {_shown(odd[0])}; expected one "
                    "number: return a float; or, to score many at once, take (prompts, responses) and return a list"
                )
        elif isinstance(scores.tolist() if hasattr(scores, "tolist") else scores, numbers.Number):
            raise RewardError(
                f"{self.name} got lists of {num} texts as ({names}) and returned {_shown(scores)}; expected a list of "
                f"{num} numbers, one for each response, in order: return a list; or, to score one at a time, take "
                "(prompt, response)"
            )

    def _called(self, given: Mapping[str, list[Any]], num: int) -> object:
        """What the function returns, all at once or one response at a time; of a coroutine, what it comes to."""
        if not self.binding.one_at_a_time:
            (returned,) = _awaited([_call(self._function, self.binding, given)])
            return _listed(returned)
        rows = [{name: values[index] for name, values in given.items()} for index in range(num)]
        return _awaited([_call(self._function, self.binding, row) for row in rows])


def _made(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function itself; of a class whose objects can be called, an object.

    Raises: ConfigError where an object needs arguments, or cannot be called; RewardError where making it fails.
    """
    if not inspect.isclass(function):
        return function
    if "__call__" not in dir(function):
        raise ConfigError(f"reward.function {name!r} is a class without __call__; name a function, or add __call__")
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"reward.function {name!r} is a class that cannot be made without arguments ({error}); make an object of "
            "it in the module, and name that"
        ) from error
    try:
        with switches_kept():
            made: object = function()
    except (Exception, SystemExit) as error:
        raise RewardError(f"{name}() raised {shown_error(error)} (at {_where(error, function)})") from error
    return cast("Callable[..., Any]", made)


def _call(function: Callable[..., Any], binding: Binding, given: Mapping[str, Any]) -> Any:
    by_place = [given[name] for name in binding.by_place]
    return function(*by_place, **{name: value for name, value in given.items() if name not in binding.by_place})


def _awaited(returned: list[Any]) -> list[Any]:
    """What was returned, with what coroutines among it come to, run side by side."""
    if not any(inspect.isawaitable(value) for value in returned):
        return returned

    async def all_of_them() -> list[Any]:
        return list(await asyncio.gather(*returned))

    with ThreadPoolExecutor(1) as thread:  # a notebook's loop runs in this one already
        return thread.submit(asyncio.run, all_of_them()).result()


def _shown(returned: object) -> str:
    """What a function returned, with its type, unless that is plain."""
    return "None" if returned is None else f"{reprlib.repr(returned)} (of type {type(returned).__name__})"


def _listed(scores: object) -> object:
    """Scores that come in order and are no list, as of a generator, as one."""
    is_ordered = isinstance(scores, Iterable) and not isinstance(scores, str | bytes | Mapping | Set | torch.Tensor)
    return list(scores) if is_ordered and not hasattr(scores, "__len__") else scores  # type: ignore[call-overload]


def _where(error: BaseException, function: Callable[..., Any]) -> str:
    """Last file:line of the traceback in the function's own file, or the last one of all."""
    frames = traceback.extract_tb(error.__traceback__)
    code = getattr(inspect.unwrap(function), "__code__", None)
    own = [frame for frame in frames if code is not None and frame.filename == code.co_filename]
    frame = (own or list(frames))[-1]
    return f"{frame.filename}:{frame.lineno}"
