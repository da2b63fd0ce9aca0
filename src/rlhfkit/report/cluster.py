"""Of a run on a cluster: when trainers and workers were at work, and what was lost."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rlhfkit.errors import CheckpointError
from rlhfkit.report.svg import Chart, Stripe, timeline_chart
from rlhfkit.rundir.cluster import Event, read_cluster
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.timeline import Lane, Timeline, read_timeline
from rlhfkit.wording import counted, duration, percent

__all__ = ["ClusterPage", "cluster_page"]

LOSSES = {"lost": "lost", "wrong": "wrong answer", "refused": "taken out", "overtaken": "overtaken"}
MOST_LANES = 16
MOST_LOSSES = 20


@dataclass(frozen=True, slots=True)
class Loss:
    """What was lost, as cells of a table."""

    when: str
    who: str
    what: str
    cost: str
    why: str


@dataclass(frozen=True, slots=True)
class ClusterPage:
    """The section of the report."""

    words: str
    """How far sampling and training overlapped, in a sentence; empty where that is not known."""
    chart: Chart | None
    losses: tuple[Loss, ...]
    losses_in_words: str
    problem: str = ""


def cluster_page(run: RunDir) -> ClusterPage | None:
    """What the report says of the cluster; None where the run was on none."""
    try:
        table, timeline = read_cluster(run), read_timeline(run)
    except CheckpointError as error:  # the report has more to tell than this
        return ClusterPage("", None, (), "", problem=str(error))
    if table is None:
        return None
    lost = [event for event in table.events if event.what in LOSSES]
    return ClusterPage(
        words="" if timeline is None else _in_words(timeline),
        chart=None if timeline is None else _chart(timeline),
        losses=tuple(map(_loss, lost[-MOST_LOSSES:])),
        losses_in_words=_losses_in_words(lost),
    )


def _in_words(timeline: Timeline) -> str:
    each = f", each of them {percent(timeline.busy_share)} on average" if len(timeline.samplers) > 1 else ""
    iterations = counted(len(timeline.iterations), "whole iteration")
    return (
        f"In the last {iterations} ({_seconds(timeline.seconds)}) the trainer waited "
        f"{percent(timeline.waiting_share)} of the time. Samplers worked {percent(timeline.sampling_share)} of "
        f"it{each}. For {percent(timeline.both_share)} of it training and sampling went on at the same time."
    )


def _chart(timeline: Timeline) -> Chart:
    shown = timeline.samplers[:MOST_LANES]
    scorers = timeline.reward_workers[:MOST_LANES]
    left_out = len(timeline.samplers) + len(timeline.reward_workers) - len(shown) - len(scorers)
    caption = "Lines mark where the trainer asks for the responses of an iteration, whose number stands above."
    if left_out:
        caption += f" Not shown: {counted(left_out, 'further worker')}."
    trainer = [
        *(Stripe(start, end, "training") for start, end in timeline.training),
        *(Stripe(start, end, "waiting") for start, end in timeline.waits_for_responses),
        *(Stripe(start, end, "waiting") for start, end in timeline.waits_for_scores),
    ]
    return timeline_chart(
        [
            ("trainer", trainer),
            *((lane.name, _stripes(lane, "sampling")) for lane in shown),
            *((lane.name, _stripes(lane, "scoring")) for lane in scorers),
        ],
        marks=[(at, str(number)) for at, number in zip(timeline.starts, timeline.iterations, strict=True)],
        seconds=timeline.seconds,
        title="Who was at work",
        caption=caption,
        summary=_in_words(timeline),
    )


def _stripes(lane: Lane, work: str) -> list[Stripe]:
    return [Stripe(span.start, span.end, "lost" if span.is_lost else work) for span in lane.spans]


def _loss(event: Event) -> Loss:
    return Loss(
        when=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(event.time)),
        who=event.who,
        what=LOSSES[event.what],
        cost="–" if event.lost_seconds is None else _seconds(event.lost_seconds),
        why=event.why,
    )


def _losses_in_words(lost: Sequence[Event]) -> str:
    if not lost:
        return "Nothing was lost."
    more = f" The last {MOST_LOSSES} are shown." if len(lost) > MOST_LOSSES else ""
    total = sum(event.lost_seconds or 0.0 for event in lost)
    return (
        f"{counted(len(lost), 'loss', 'losses')}, {_seconds(total)} in all. For a worker that is its work on a chunk "
        f"that another one did too; for trainers, the time until the run was back where it had been.{more}"
    )


def _seconds(seconds: float) -> str:
    return duration(seconds, digits=2)
