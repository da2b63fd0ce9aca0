"""Environments in processes of their own, whose errors come back with the environment, the place and the cause."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
from gymnasium import logger

from rlhfkit.envs.check import MUST_RESET, MUST_STEP
from rlhfkit.envs.text import guarded
from rlhfkit.errors import EnvError

__all__ = ["InWorker", "errors_of_workers"]


class InWorker(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment in a worker, whose exceptions are EnvErrors there already.

    Gymnasium hands on the type and the words of a worker's exception. Where it was raised is known in the worker alone.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], name: str) -> None:
        super().__init__(env)
        self._name = name

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the environment's. Raises: EnvError."""
        found: tuple[Any, dict[str, Any]] = self._called(
            lambda: self.env.reset(seed=seed, options=options), "reset", must=MUST_RESET
        )
        return found

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment's. Raises: EnvError."""
        found: tuple[Any, Any, bool, bool, dict[str, Any]] = self._called(
            lambda: self.env.step(action), "step", must=MUST_STEP
        )
        return found

    def _called(self, call: Any, method: str, *, must: str) -> Any:
        try:
            return guarded(call, f"{self._name}: {method}", must=must)
        except EnvError as error:
            error.add_note("".join(traceback.format_exception(error)))  # --debug shows it; processes lose the rest
            raise


@contextmanager
def errors_of_workers() -> Iterator[None]:
    """Raise what an environment in a worker raised, and do not print its traceback, as Gymnasium does.

    Raises: EnvError.
    """
    level = logger.min_level
    logger.min_level = logger.ERROR + 1
    try:
        yield
    except EnvError as error:
        if error.args and isinstance(error.args[0], EnvError):  # as Gymnasium raises it, an error of an error
            raise EnvError(str(error)) from error.args[0]
        raise
    finally:
        logger.min_level = level
