"""What a recipe names as `package.module:name`: a callable, or an environment that the module registers."""

import difflib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from types import ModuleType
from typing import Any, cast

from rlhfkit.errors import ConfigError, RlhfkitError

__all__ = ["import_module_of", "import_named", "shown_error", "switches_kept"]


def import_named(name: str, *, setting: str, error: type[RlhfkitError]) -> Callable[..., Any]:
    """The callable `package.module:name` that `setting` names, looked up from the working directory first.

    Raises: ConfigError where there is no such module or callable; `error` where the module fails while it is imported.
    """
    module = import_module_of(name, setting=setting, error=error)
    module_name, function_name = name.split(":")
    function = reduce(lambda found, part: getattr(found, part, None), function_name.split("."), cast("Any", module))
    if function is None:
        if module_name == "__main__":
            script = getattr(module, "__file__", None) or "of no file"
            raise ConfigError(
                f"{setting} {name!r}: the script that runs, {script}, has no function {function_name!r}; `__main__` is "
                "a script that calls rlhfkit from Python; for the command line give the name of your file, without .py"
            )
        raise ConfigError(
            f"{setting} {name!r}: {module_name} has no function {function_name!r}{_suggestion(function_name, module)}"
        )
    if not callable(function):
        raise ConfigError(
            f"{setting} {name!r} is of type {type(function).__name__}, not a function"
            f"{_instead(function, name, module) or _suggestion(function_name, module)}"
        )
    owner_name, _, method = function_name.rpartition(".")
    owner = reduce(getattr, owner_name.split("."), cast("Any", module)) if owner_name else None
    if inspect.isclass(owner) and inspect.isfunction(inspect.getattr_static(owner, method)):
        raise ConfigError(
            f"{setting} {name!r} is a method of a class, and needs an object; make one in the module, as mine = "
            f"{owner_name}(), and name {module_name}:mine.{method}"
        )
    return function  # type: ignore[no-any-return]


def import_module_of(name: str, *, setting: str, error: type[RlhfkitError]) -> ModuleType:
    """The module of `package.module:name`, looked up from the working directory first.

    Raises: ConfigError where there is no such module; `error` where it fails while it is imported.
    """
    module_name, _, _ = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        with switches_kept():
            return importlib.import_module(module_name)
    except ModuleNotFoundError as missing:
        if missing.name is None or not f"{module_name}.".startswith(f"{missing.name}."):
            raise error(_failed_import(name, setting, missing)) from missing
        raise ConfigError(
            f"{setting} {name!r}: there is no module {missing.name!r}; write `package.module:name`, importable "
            f"from the working directory {os.getcwd()} or installed beside rlhfkit"
        ) from missing
    except (Exception, SystemExit) as failure:
        raise error(_failed_import(name, setting, failure)) from failure


@contextmanager
def switches_kept() -> Iterator[None]:
    """What somebody else's code switches for the whole process is put back.

    That is the working directory, in which a run finds its model and its own files, whether torch keeps gradients, and
    torch's default type.
    """
    import torch

    directory, gradients, dtype = os.getcwd(), torch.is_grad_enabled(), torch.get_default_dtype()
    try:
        yield
    finally:
        os.chdir(directory)
        torch.set_grad_enabled(gradients)
        torch.set_default_dtype(dtype)


def shown_error(error: BaseException) -> str:
    """Type and words of somebody else's exception, on one line."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _failed_import(name: str, setting: str, error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        where = f"{error.filename}:{error.lineno}"
    else:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{frame.filename}:{frame.lineno}"
    return f"{setting} {name!r}: importing its module raised {shown_error(error)} (at {where}); correct the module"


def _instead(found: object, given: str, module: ModuleType) -> str:
    """What was meant by an object of the module that cannot be called: its methods; of an environment, its class."""
    kind = type(found)
    if kind.__module__ != module.__name__:
        return ""
    methods = [name for name, _ in inspect.getmembers_static(kind, inspect.isfunction) if name[0] != "_"]
    if {"reset", "step"} <= set(methods):
        return f"; name its class, {module.__name__}:{kind.__name__}"
    return f"; name its method, {' or '.join(f'{given}.{method}' for method in methods)}" if methods else ""


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
