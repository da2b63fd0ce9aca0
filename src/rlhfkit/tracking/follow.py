"""From `metrics.jsonl` to a tracker: each iteration once, also where the run is killed and goes on."""

import json
import os
import secrets
from collections.abc import Callable
from importlib import import_module
from typing import Any

from rlhfkit.config.tracking import TrackerName, TrackingConfig
from rlhfkit.rundir.atomic import read_json
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.lines import Row, finite_or_none, read_object, whole_or_none
from rlhfkit.rundir.tail import Mark, new_rows
from rlhfkit.tracking.tracker import Ending, Tracked, Tracker, safe_settings, safe_words

__all__ = ["Follower", "module_of", "state_of"]

LABELS = ("seed",)
"""Fields of a line that tell one training of a stage from another, as in the directories of TensorBoard."""


def module_of(name: TrackerName) -> Any:
    """The module of a tracker."""
    return import_module(f"rlhfkit.tracking.{name}")


def state_of(run: RunDir, name: TrackerName) -> dict[str, Any]:
    """What is known of a run in a tracker: `id`, `known_as`, `place`, and how far each training is `sent`."""
    return read_object(run.tracking / f"{name}.json")


class Follower:
    """Sends what a run has written and its tracker does not have yet.

    How far each training was sent is kept in `tracking/NAME.json`, so that a resumed run, which writes some iterations
    again, with the same bits, adds to the same curves.
    """

    def __init__(
        self, run: RunDir, name: TrackerName, *, open_tracker: Callable[[Tracked], Tracker] | None = None
    ) -> None:
        """Open the tracker of this name, or with `open_tracker`, for `run`."""
        self._run, self._name = run, name
        self._mark = Mark()
        state = state_of(run, name)
        self._sent: dict[str, int] = state.get("sent") or {}
        self._id = str(state.get("id") or secrets.token_hex(4))
        run.tracking.mkdir(exist_ok=True)
        self._tracker = (open_tracker or module_of(name).opened)(self._tracked(state.get("known_as")))
        self._keep()

    @property
    def place(self) -> str:
        """Where a person finds the run."""
        return self._tracker.place

    def follow(self) -> None:
        """Send all whole lines that are new."""
        has_more = True
        while has_more:
            rows, self._mark, has_more = new_rows(self._run, self._mark)
            for row in rows:
                self._send(row)

    def forget(self, stage: str) -> None:
        """Send the iterations of a stage again, which begins anew, maybe with other settings."""
        self._sent = {place: sent for place, sent in self._sent.items() if place.split("/")[0] != stage}
        self._mark = Mark()

    def close(self, ending: Ending) -> None:
        """Send the rest, and say how the run ended."""
        self.follow()
        self._tracker.close(ending)

    def _send(self, row: Row) -> None:
        stage, iteration = row.get("stage"), whole_or_none(row.get("iteration"))
        if not isinstance(stage, str) or iteration is None:
            return
        place = "/".join([stage, *(f"{label}-{row[label]}" for label in LABELS if label in row)])
        if iteration <= self._sent.get(place, -1):
            return
        left_out = {"stage", "iteration", *LABELS}
        values = {name: number for name, value in row.items()
                  if name not in left_out and (number := finite_or_none(value)) is not None}  # fmt: skip
        self._tracker.log(place, iteration, values)
        self._sent[place] = iteration
        self._keep()

    def _keep(self) -> None:
        """Write the state; not synchronized to the disk, since an iteration sent twice does no harm."""
        path = self._run.tracking / f"{self._name}.json"
        state = {"id": self._id, "known_as": self._tracker.known_as, "place": self.place, "sent": self._sent}
        written = path.with_name(f".{path.name}.new")
        written.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        os.replace(written, path)

    def _tracked(self, known_as: object) -> Tracked:
        settings = read_json(self._run.config)
        asked = TrackingConfig.model_validate(settings.get("tracking") or {})
        path = self._run.path.resolve()
        is_round = path.name.startswith("round-") and (path.parent / "config.json").exists()
        name = asked.name or (path.parent.name if is_round else path.name)
        group = asked.group or (path.parent.name if is_round else None)
        return Tracked(
            project=safe_words(asked.project),
            name=safe_words(f"{name}-{path.name}" if is_round else name),
            group=None if group is None else safe_words(group),
            settings=safe_settings(settings),
            directory=self._run.tracking,
            id=self._id,
            known_as=None if known_as is None else str(known_as),
        )
