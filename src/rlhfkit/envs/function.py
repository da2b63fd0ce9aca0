"""The user's own environment, named as `package.module:factory`."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from rlhfkit.envs.text import TextEnvFactory, guarded, name_of
from rlhfkit.errors import ConfigError, EnvError

__all__ = ["load_factory"]


def load_factory(name: str) -> TextEnvFactory:
    """The factory `package.module:factory`, looked up from the working directory first.

    Raises: ConfigError where there is no such module or factory; EnvError where the module fails while it is imported,
    or, once it is called, the factory does or returns no environment.
    """
    module_name, factory_name = name.split(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _failed_import(name, error) from error
        raise ConfigError(
            f"env.function = {name!r}: there is no module {error.name!r}; write `package.module:factory`, importable "
            f"from the working directory {os.getcwd()} or installed beside rlhfkit"
        ) from error
    except (Exception, SystemExit) as error:
        raise _failed_import(name, error) from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        found = ", ".join(sorted(key for key, value in vars(module).items() if _may_be_meant(key, value, module_name)))
        raise ConfigError(
            f"env.function = {name!r}: {module_name} has no class or function {factory_name!r}; it has "
            f"{found or 'none at all'}"
        )
    return lambda: _made(factory, name)


def _made(factory: Callable[[], Any], name: str) -> Any:
    env = guarded(factory, f"env.function = {name!r}")
    if not callable(getattr(env, "reset", None)) or not callable(getattr(env, "step", None)):
        raise EnvError(
            f"env.function = {name!r} returned a {name_of(env)}, without reset and step; return a TextEnv, an object "
            "with reset(seed) and step(response)"
        )
    return env


def _failed_import(name: str, error: BaseException) -> EnvError:
    words = " ".join(str(error).split())
    return EnvError(
        f"env.function = {name!r}: importing its module raised {type(error).__name__}: {words}; mend the module"
    )


def _may_be_meant(key: str, value: object, module: str) -> bool:
    return callable(value) and not key.startswith("_") and getattr(value, "__module__", None) == module
