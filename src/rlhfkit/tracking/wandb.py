"""Weights & Biases."""

import netrc
import os
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rlhfkit.errors import ConfigError
from rlhfkit.tracking.tracker import Ending, Tracked

__all__ = ["ENVIRONMENT", "INSTALL", "PACKAGE", "check", "opened"]

PACKAGE = "wandb"
INSTALL = "pip install 'rlhfkit[wandb]'"
ENVIRONMENT = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
"""What its process is given unless the user says otherwise: it reports its own faults to nobody."""
WITHOUT_KEY = {"offline", "disabled", "dryrun"}
KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")


def check() -> None:
    """Raises: ConfigError where nobody is logged in, and it is not to stay on this machine."""
    if os.environ.get("WANDB_MODE") in WITHOUT_KEY or any(os.environ.get(name) for name in KEYS):
        return
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    with suppress(OSError, netrc.NetrcParseError):
        if netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None:
            return
    homes = (Path("wandb"), Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb"))
    if any((home / "settings").is_file() for home in homes):
        return  # of `wandb offline` and its kind, which the package reads itself
    raise ConfigError(
        f'tracking.to names "wandb", but nobody is logged in to {host}: run wandb login, or export '
        "WANDB_MODE=offline to keep it on this machine (wandb sync sends it later)"
    )


def opened(tracked: Tracked) -> "WandbTracker":
    """The run in W&B, new or gone on with."""
    wandb = import_module("wandb")
    # Only what is logged goes out: no console, code, git, command line, packages, host name or load of the machine.
    settings = wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        x_save_requirements=False,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        host="-",
    )
    run = wandb.init(
        project=tracked.project,
        name=tracked.name,
        group=tracked.group,
        id=tracked.known_as or tracked.id,
        resume="allow",
        config=dict(tracked.settings),
        dir=os.environ.get("WANDB_DIR") or tracked.directory,
        settings=settings,
    )
    return WandbTracker(run)


class WandbTracker:
    """A run of W&B; each stage counts its own iterations, which are the axis of its numbers."""

    def __init__(self, run: Any) -> None:
        """Write to `run`."""
        self._run = run
        self._axes: set[str] = set()
        self.known_as = str(run.id)
        self.place = str(run.url or Path(run.dir).parent)

    def log(self, place: str, iteration: int, values: Mapping[str, float]) -> None:
        """Add the numbers of an iteration."""
        axis = f"{place}/iteration"
        if place not in self._axes:
            self._run.define_metric(axis)
            self._run.define_metric(f"{place}/*", step_metric=axis)
            self._axes.add(place)
        self._run.log({axis: iteration, **{f"{place}/{name}": value for name, value in values.items()}})

    def close(self, ending: Ending) -> None:
        """Say how it ended, and wait until all is sent."""
        self._run.finish(exit_code=0 if ending == "finished" else 1)
