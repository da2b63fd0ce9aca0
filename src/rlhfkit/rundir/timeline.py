"""When trainers and workers of a run on a cluster were at work, from `cluster_timeline.json`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlhfkit.rundir.cluster import KINDS, MOST_ROWS, amount, short_text
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.lines import list_or_empty, mapping_or_empty, read_object, whole_or_none

__all__ = ["Lane", "Span", "Timeline", "overlap", "read_timeline", "union"]

MOST_ITERATIONS = 4
MOST_SPANS = 5000
LEAST_SECONDS = 1e-3

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Span:
    """Somebody was at something from `start` to `end`, in seconds since the window began."""

    who: str
    iteration: int | None
    start: float
    end: float
    is_lost: bool
    """Nothing came of it."""


@dataclass(frozen=True, slots=True)
class Lane:
    """The spans of one worker."""

    name: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Timeline:
    """The last iterations that are there as a whole: from one time that the trainer asks for responses to another."""

    iterations: tuple[int, ...]
    starts: tuple[float, ...]
    """When each of them begins; the first at 0."""
    seconds: float
    samplers: tuple[Lane, ...]
    reward_workers: tuple[Lane, ...]
    waits_for_responses: tuple[Interval, ...]
    waits_for_scores: tuple[Interval, ...]

    @property
    def training(self) -> list[Interval]:
        """When the trainer did not wait."""
        edges = [0.0, *(edge for wait in self._waits() for edge in wait), self.seconds]
        return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if end > start]

    @property
    def waiting_share(self) -> float:
        """Of the time, in which the trainer waited."""
        return _length(self._waits()) / self.seconds

    @property
    def sampling_share(self) -> float:
        """Of the time, in which at least one sampler worked."""
        return _length(self._sampling()) / self.seconds

    @property
    def busy_share(self) -> float:
        """Of its time, in which a sampler worked, on average."""
        busy = sum(span.end - span.start for lane in self.samplers for span in lane.spans)
        return busy / (self.seconds * len(self.samplers)) if self.samplers else 0.0

    @property
    def both_share(self) -> float:
        """Of the time, in which the trainer worked while a sampler did."""
        return overlap(self.training, self._sampling()) / self.seconds

    def _waits(self) -> list[Interval]:
        return union([*self.waits_for_responses, *self.waits_for_scores])

    def _sampling(self) -> list[Interval]:
        return union((span.start, span.end) for lane in self.samplers for span in lane.spans)


def read_timeline(run: RunDir) -> Timeline | None:
    """The last whole iterations; None where there are none. Raises: CheckpointError where the file is damaged."""
    content = read_object(run.cluster_timeline)
    kinds = {setting: mapping_or_empty(content.get(name)) for setting, name in KINDS.items()}
    work = {setting: _spans(kind.get("work")) for setting, kind in kinds.items()}
    waits = {setting: _spans(kind.get("waits")) for setting, kind in kinds.items()}
    whole_since = [since for kind in kinds.values() if (since := amount(kind.get("whole_since"))) is not None]
    begins: dict[int, float] = {}
    for span in waits["samplers"]:
        if span.iteration is not None and span.start >= max(whole_since, default=span.start):
            begins[span.iteration] = min(span.start, begins.get(span.iteration, span.start))
    bounds = sorted(begins.items(), key=lambda item: item[1])[-MOST_ITERATIONS - 1 :]
    if len(bounds) < 2 or bounds[-1][1] - bounds[0][1] < LEAST_SECONDS:
        return None
    start, end = bounds[0][1], bounds[-1][1]
    return Timeline(
        tuple(iteration for iteration, _ in bounds[:-1]),
        tuple(at - start for _, at in bounds[:-1]),
        end - start,
        **{setting: _lanes(_within(spans, start, end)) for setting, spans in work.items()},
        waits_for_responses=_intervals(_within(waits["samplers"], start, end)),
        waits_for_scores=_intervals(_within(waits["reward_workers"], start, end)),
    )


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same times as intervals that do not touch, in order."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def overlap(one: Sequence[Interval], other: Sequence[Interval]) -> float:
    """For how long both are; each as `union` gives it."""
    total, at = 0.0, 0
    for start, end in one:
        while at < len(other) and other[at][1] <= start:
            at += 1
        further = at
        while further < len(other) and other[further][0] < end:
            total += min(end, other[further][1]) - max(start, other[further][0])
            further += 1
    return total


def _length(intervals: Iterable[Interval]) -> float:
    return sum(end - start for start, end in intervals)


def _spans(rows: object) -> list[Span]:
    found = []
    for row in map(list_or_empty, list_or_empty(rows)[-MOST_SPANS:]):
        if len(row) < 4:
            continue
        start, end = amount(row[2]), amount(row[3])
        if start is not None and end is not None and start <= end:
            is_lost = len(row) > 4 and row[4] is True
            found.append(Span(short_text(row[0]), whole_or_none(row[1]), start, end, is_lost))
    return found


def _within(spans: Iterable[Span], start: float, end: float) -> list[Span]:
    return [
        Span(span.who, span.iteration, max(span.start, start) - start, min(span.end, end) - start, span.is_lost)
        for span in spans
        if span.end > start and span.start < end
    ]


def _lanes(spans: Iterable[Span]) -> tuple[Lane, ...]:
    by_name: dict[str, list[Span]] = {}
    for span in spans:
        by_name.setdefault(span.who, []).append(span)
    names = sorted(by_name, key=lambda name: (len(name), name))[:MOST_ROWS]
    return tuple(Lane(name, tuple(sorted(by_name[name], key=lambda span: span.start))) for name in names)


def _intervals(spans: Iterable[Span]) -> tuple[Interval, ...]:
    return tuple(union((span.start, span.end) for span in spans))
