"""The user's own environment, named as `package.module:factory`."""

import inspect
from collections.abc import Callable
from typing import Any

from rlhfkit.config.callables import import_named
from rlhfkit.envs.text import TextEnvFactory, guarded, name_of
from rlhfkit.errors import ConfigError, EnvError

__all__ = ["load_factory"]


def load_factory(name: str, *, given: Callable[[], Any] | None = None) -> TextEnvFactory:
    """The factory `package.module:factory`, looked up from the working directory first, unless it is `given`.

    Raises: ConfigError where there is no such module or factory, or it cannot be called without arguments; EnvError
    where the module fails while it is imported, or, once it is called, the factory does or returns no environment.
    """
    factory = given or import_named(name, setting="env.function", error=EnvError)
    if _refuses(factory):
        raise ConfigError(
            f"env.function {name!r} takes {inspect.signature(factory)}; expected a class or a function that is called "
            "without arguments; give its parameters defaults, or name a function that fills them in"
        )

    if inspect.iscoroutinefunction(factory):
        raise ConfigError(f"env.function {name!r} is a coroutine; expected a plain function; take `async` out")

    def made() -> Any:
        env = guarded(factory, f"env.function {name!r}")
        if not callable(getattr(env, "reset", None)) or not callable(getattr(env, "step", None)):
            raise EnvError(
                f"env.function {name!r} returned a {name_of(env)}, without reset and step; return a TextEnv, an object "
                "with reset(seed) and step(response)"
            )
        _check_signature(env, "reset", "seed", "seed")  # reset(split="train") would take the seed for a split
        _check_signature(env, "step", "response")
        return env

    return made


def _check_signature(env: object, method: str, expected: str, *names: str) -> None:
    """Check that `env.method(value)` gives the value to a parameter that is meant for it.

    `names` are what it may be called, any name where there are none.
    Raises: EnvError where the method takes no value or several, or takes it for something else.
    """
    function = getattr(env, method)
    first = _first_parameter(function)
    fits = not _refuses(function, None) and first is not None
    is_meant = not names or first is None or first.strip("_") in ("", *names)
    if inspect.iscoroutinefunction(function):
        raise EnvError(f"{name_of(env)}.{method} is a coroutine; expected a plain method; take `async` out")
    if not (fits and is_meant):
        raise EnvError(
            f"{name_of(env)}.{method} takes {inspect.signature(function)}; expected ({expected}), given by its place; "
            "change its parameters"
        )


def _first_parameter(function: Callable[..., Any]) -> str | None:
    """The name of the parameter that a single value goes to; "" where there is no saying."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):
        return ""
    for parameter in parameters:
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            return parameter.name
        if parameter.kind is parameter.VAR_POSITIONAL:
            return ""
    return None


def _refuses(function: Callable[..., Any], *arguments: object) -> bool:
    """Whether the function cannot be called with so many arguments."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return True
    except ValueError:  # some callables written in C do not tell
        return False
    return False
