"""The section `tracking`: which other tools get the numbers of a run while it goes on."""

from typing import Annotated, Literal

from pydantic import Field

from rlhfkit.config.section import Section

__all__ = ["TrackerName", "TrackingConfig"]

TrackerName = Literal["wandb", "mlflow", "trackio"]


class TrackingConfig(Section):
    """Trackers beside `metrics.jsonl` and TensorBoard, which are always written; nothing is sent unless one is named.

    Where each sends to is what its own environment variables say, as WANDB_MODE=offline or MLFLOW_TRACKING_URI.

    Example:
        >>> from rlhfkit.config.tracking import TrackingConfig
        >>> TrackingConfig(to=["wandb"]).project
        'rlhfkit'
    """

    to: tuple[TrackerName, ...] = ()
    """Trackers that get every number of `metrics.jsonl` and the settings: "wandb", "mlflow", "trackio"."""
    project: Annotated[str, Field(pattern=r"^[\w. -]{1,100}$")] = "rlhfkit"
    """Project of W&B and Trackio, experiment of MLflow."""
    name: Annotated[str, Field(min_length=1, max_length=120)] | None = None
    """Name of the run there; by default that of its directory."""
    group: Annotated[str, Field(min_length=1, max_length=120)] | None = None
    """What it is shown together with, as runs of several seeds."""
