"""Where a trainer keeps its files: the run directory that it was given, or one that goes with it."""

import tempfile
from pathlib import Path

__all__ = ["Place"]


class Place:
    """A run directory; without a path a temporary one, which is removed when nobody holds this object any more."""

    def __init__(self, run_dir: str | Path | None) -> None:
        """Keep files in `run_dir`."""
        self._temporary = tempfile.TemporaryDirectory(prefix="rlhfkit-") if run_dir is None else None
        self.path = Path(run_dir if run_dir is not None else self._temporary.name)  # type: ignore[union-attr]
        self.stays = run_dir is not None
        """Whether the files stay."""

    def close(self) -> None:
        """Remove what does not stay."""
        if self._temporary is not None:
            self._temporary.cleanup()
