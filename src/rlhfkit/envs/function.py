"""The user's own environment, named as `package.module:factory`."""

from typing import Any

from rlhfkit.envs.text import TextEnvFactory, guarded, name_of
from rlhfkit.errors import EnvError
from rlhfkit.importing import import_named

__all__ = ["load_factory"]


def load_factory(name: str) -> TextEnvFactory:
    """The factory `package.module:factory`, looked up from the working directory first.

    Raises: ConfigError where there is no such module or factory; EnvError where the module fails while it is imported,
    or, once it is called, the factory does or returns no environment.
    """
    factory = import_named(name, setting="env.function", error=EnvError)

    def made() -> Any:
        env = guarded(factory, f"env.function {name!r}")
        if not callable(getattr(env, "reset", None)) or not callable(getattr(env, "step", None)):
            raise EnvError(
                f"env.function {name!r} returned a {name_of(env)}, without reset and step; return a TextEnv, an object "
                "with reset(seed) and step(response)"
            )
        return env

    return made
