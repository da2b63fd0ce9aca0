"""MLflow, by its client: a server, or a database on this machine."""

import re
import time
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from rlhfkit.tracking.tracker import Ending, Tracked

__all__ = ["ENVIRONMENT", "INSTALL", "PACKAGE", "check", "opened"]

PACKAGE = "mlflow"
INSTALL = "pip install 'rlhfkit[mlflow]'"
ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}
"""What its process is given unless the user says otherwise: it reports its use to nobody, and gives up soon."""
STATUS: dict[Ending, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
MOST_PARAMS = 100
MOST_METRICS = 1000
MOST_CHARACTERS = 500
"""Limits of MLflow's API for one call, and for a value."""


def check() -> None:
    """MLflow needs nothing: without MLFLOW_TRACKING_URI it writes a database into the working directory."""


def opened(tracked: Tracked) -> "MlflowTracker":
    """The run in MLflow, new or gone on with."""
    client = import_module("mlflow.tracking").MlflowClient()
    if tracked.known_as is not None:
        client.update_run(tracked.known_as, status="RUNNING")
        return MlflowTracker(client, tracked.known_as)
    experiment = client.get_experiment_by_name(tracked.project)
    number = client.create_experiment(tracked.project) if experiment is None else experiment.experiment_id
    tags = {} if tracked.group is None else {"group": tracked.group}
    run = client.create_run(number, run_name=tracked.name, tags=tags).info.run_id
    param = import_module("mlflow.entities").Param
    params = [param(name, value[:MOST_CHARACTERS]) for name, value in _flat(tracked.settings)]
    for start in range(0, len(params), MOST_PARAMS):
        client.log_batch(run, params=params[start : start + MOST_PARAMS])
    return MlflowTracker(client, run)


def _flat(settings: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name and value of each setting."""
    if isinstance(settings, Mapping) and settings:
        for key, value in settings.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    else:
        yield _allowed(name), str(settings)


def _allowed(name: str) -> str:
    """The name with what MLflow takes in names."""
    return re.sub(r"[^\w\-. :/]", "_", name)


class MlflowTracker:
    """A run of MLflow."""

    def __init__(self, client: Any, run: str) -> None:
        """Write to `run` by its id."""
        self._client = client
        self.known_as = run
        self.place = f"{client.tracking_uri}, run {run}"

    def log(self, place: str, iteration: int, values: Mapping[str, float]) -> None:
        """Add the numbers of an iteration."""
        metric, now = import_module("mlflow.entities").Metric, int(time.time() * 1000)
        metrics = [metric(_allowed(f"{place}/{name}"), value, now, iteration) for name, value in values.items()]
        for start in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self.known_as, metrics=metrics[start : start + MOST_METRICS])

    def close(self, ending: Ending) -> None:
        """Say how it ended."""
        self._client.set_terminated(self.known_as, status=STATUS[ending])
