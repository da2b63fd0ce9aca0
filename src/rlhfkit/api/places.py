"""Where a trainer keeps its files: the run directory that it was given, or one that goes with it."""

import tempfile
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from fnmatch import fnmatch
from pathlib import Path

from rlhfkit.distributed.ranks import ranks
from rlhfkit.errors import CheckpointError, ConfigError

__all__ = ["Place", "closer", "place_to_save"]

OF_A_MODEL = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
"""Names of the files that a saved model has."""


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


def place_to_save(directory: str | Path) -> Path:
    """Where a model is saved to: a new directory, an empty one, or one that holds a saved model, which it replaces.

    Raises: CheckpointError where files of something else would be removed.
    """
    path = Path(directory).expanduser().absolute()
    if not path.exists():
        return path
    if not path.is_dir():
        raise CheckpointError(f"cannot save to {directory}: it is a file; expected a directory, give another name")
    inside = sorted(path.iterdir())
    other = [each.name for each in inside if not any(fnmatch(each.name, pattern) for pattern in OF_A_MODEL)]
    if inside and not any(each.suffix == ".safetensors" for each in inside):
        other = [each.name for each in inside]
    if other:
        named = ", ".join(other[:3]) + (", …" if len(other) > 3 else "")
        raise CheckpointError(
            f"cannot save to {directory}: it holds {named}, which saving would remove; "
            "expected a new or empty directory, or one that holds a saved model: give another name"
        )
    return path
