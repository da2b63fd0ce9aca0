"""Where a trainer keeps its files: the run directory that it was given, or one that goes with it."""

import tempfile
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from rlhfkit.distributed.ranks import ranks
from rlhfkit.errors import ConfigError

__all__ = ["Place", "closer"]

_kept: list[tempfile.TemporaryDirectory[str]] = []
"""Those that go with this process: other ranks may still read there when this one is done with its trainer."""


class Place:
    """A run directory; without a path a temporary one, which is removed when nobody holds this object any more."""

    def __init__(self, run_dir: str | Path | None) -> None:
        """Keep files in `run_dir`; of several ranks the first makes the temporary one, and removes it at its end.

        Raises: ConfigError where a temporary one would not be seen by all.
        """
        here = ranks()
        if run_dir is None and here.local_size < here.size:
            raise ConfigError(
                "run_dir is missing, and the processes are on several machines; give a directory that all of them see"
            )
        self._temporary = tempfile.TemporaryDirectory(prefix="rlhfkit-") if run_dir is None and here.is_first else None
        made = str(run_dir) if self._temporary is None else self._temporary.name
        if self._temporary is not None and here.size > 1:
            _kept.append(self._temporary)
            self._temporary = None
        self.path = Path(run_dir if run_dir is not None else here.from_first(made))
        self.stays = run_dir is not None
        """Whether the files stay."""

    def close(self) -> None:
        """Remove what does not stay."""
        if self._temporary is not None:
            self._temporary.cleanup()


def closer(owner: object, stack: ExitStack, place: Place) -> Callable[[], object]:
    """What lets go of a run when it is called, or else when nobody holds `owner` any more, whom `stack` must not hold.

    In this order, as what is still being written needs the directory.
    """
    return weakref.finalize(owner, _close, stack, place)


def _close(stack: ExitStack, place: Place) -> None:
    stack.close()
    place.close()
