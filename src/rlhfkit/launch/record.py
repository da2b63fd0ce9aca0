"""What a driver writes into the run's directory for people: who works, what was lost, when who was at work."""

import json
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from rlhfkit.errors import CheckpointError
from rlhfkit.launch.board import SAMPLERS, SCORERS, News
from rlhfkit.rundir.atomic import write_atomically, write_json
from rlhfkit.rundir.cluster import MOST_EVENTS, events_of
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.lines import read_object

__all__ = ["Record"]


class Record:
    """Events of the whole run, and the files that show it. That one cannot be written never ends a run."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self.events: deque[dict[str, Any]] = deque(maxlen=MOST_EVENTS)
        self.num_restarts = 0
        self._loss: tuple[dict[str, Any], int] | None = None
        """The last loss of trainers while the run is not back where it was, and where that is."""
        self._drawn_iteration = -1

    def go_on(self) -> None:
        """Keep what drivers before this one have seen."""
        with suppress(CheckpointError):
            self.events.extend(asdict(event) for event in events_of(read_object(self._run.cluster)))

    def note(self, what: str, who: str = "driver", **facts: Any) -> dict[str, Any]:
        """An event of now."""
        event = {"time": time.time(), "what": what, "who": who, **facts}
        self.events.append(event)
        return event

    def trainers_lost(self, why: str, iteration: int) -> None:
        """They start again from the last checkpoint; what that costs is known when they are at `iteration` again."""
        self.num_restarts += 1
        self._loss = self.note("lost", "trainers", why=why), iteration

    def hear(self, news: News) -> None:
        """Keep what the trainers tell of their workers, who forget it when they are lost."""
        known = {(event["time"], event["what"], event["who"]) for event in self.events}
        told = [dict(event) for table in news.table.values() for event in table.get("events", ())]
        self.events.extend(event for event in told if (event["time"], event["what"], event["who"]) not in known)
        if self._loss is not None and news.silent_seconds is not None and news.iteration >= self._loss[1]:
            event, _ = self._loss
            event["lost_seconds"] = round(time.time() - event["time"], 1)
            self._loss = None

    def show(
        self,
        news: News,
        *,
        num_trainers: int,
        wanted: Mapping[str, int],
        starting: Mapping[str, Mapping[str, float]],
        state: str = "running",
    ) -> None:
        """Write the table, and the timeline after each iteration. `starting`: kind → name → seconds."""
        if not self._run.is_run():
            return  # the trainers refuse a directory that is not empty and no run's
        table = {
            "time": time.time(),
            "state": state,
            "iteration": news.iteration,
            "trainers": {
                "number": num_trainers,
                "restarts": self.num_restarts,
                "silent_seconds": news.silent_seconds,
            },
            "wanted": dict(wanted),
            **{kind: _of_kind(news.table.get(kind, {}), starting.get(kind, {})) for kind in (SAMPLERS, SCORERS)},
            "events": sorted(self.events, key=lambda event: float(event["time"])),
        }
        with suppress(CheckpointError, OSError):
            write_json(self._run.cluster, table)
            if news.iteration != self._drawn_iteration or state != "running":
                self._drawn_iteration = news.iteration
                self._draw(news)

    def _draw(self, news: News) -> None:
        spans = {kind: table["spans"] for kind, table in news.table.items() if "spans" in table}
        if spans:
            write_atomically(self._run.cluster_timeline, json.dumps(spans) + "\n")


def _of_kind(table: Mapping[str, Any], starting: Mapping[str, float]) -> dict[str, Any]:
    own = {key: value for key, value in table.items() if key not in ("events", "spans")}
    waiting = [
        {"name": name, "state": "starting", "seconds_in_state": round(seconds, 1)} for name, seconds in starting.items()
    ]
    return {**own, "workers": [*own.get("workers", ()), *waiting]}
