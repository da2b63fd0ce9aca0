"""Trackio: a database on this machine, a server of one's own, or a private Space of the Hugging Face hub."""

import os
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from rlhfkit.tracking.tracker import Ending, Tracked

__all__ = ["ENVIRONMENT", "INSTALL", "PACKAGE", "check", "opened"]

PACKAGE = "trackio"
INSTALL = "pip install trackio"
"""No extra: it takes another version of Pillow than the one that the tests of all others go by."""
ENVIRONMENT = {"GRADIO_ANALYTICS_ENABLED": "False"}
"""What its process is given unless the user says otherwise: it reports its use to nobody."""


def check() -> None:
    """Trackio needs nothing: unless its own variables say otherwise, it writes below the home directory."""


def opened(tracked: Tracked) -> "TrackioTracker":
    """The run in Trackio, new or gone on with; it knows runs by their names."""
    name = tracked.known_as or f"{tracked.name}-{tracked.id}"
    run = import_module("trackio").init(
        project=tracked.project,
        name=name,
        group=tracked.group,
        config=dict(tracked.settings),
        resume="allow",
        private=True,
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    return TrackioTracker(run, tracked.project, name)


class TrackioTracker:
    """A run of Trackio."""

    def __init__(self, run: Any, project: str, name: str) -> None:
        """Write to `run` of this name."""
        self._run = run
        self.known_as = name
        where = os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL") or "this machine"
        self.place = f"project {project}, run {name}, on {where}"

    def log(self, place: str, iteration: int, values: Mapping[str, float]) -> None:
        """Add the numbers of an iteration."""
        self._run.log({f"{place}/{name}": value for name, value in values.items()}, step=iteration)

    def close(self, ending: Ending) -> None:
        """Wait until all is sent; Trackio does not keep how it ended."""
        self._run.finish()
