"""What several processes did: how long they waited for each other, and how much memory each one took."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhfkit.config.stages import title_of
from rlhfkit.report.svg import Chart, Colour, Series, line_chart
from rlhfkit.rundir.contents import Facts, curve
from rlhfkit.rundir.lines import finite_or_none
from rlhfkit.wording import binary, counted

__all__ = ["SharedWork", "shared_work"]

SHARED = {
    "none": "Each had all weights, and its share of the rows.",
    "fsdp": "Each had its part of weights, gradients and averages, and its share of the rows.",
}


@dataclass(frozen=True, slots=True)
class RankRow:
    """A process, and the most memory that it took in each stage, in words."""

    rank: int
    place: str
    peaks: Sequence[str]


@dataclass(frozen=True, slots=True)
class SharedWork:
    """The section of a report about several processes."""

    lead: str
    charts: Sequence[Chart]
    stages: Sequence[str]
    """Titles, in the order of `RankRow.peaks`."""
    planned: Sequence[str]
    """What was foreseen for each stage."""
    rows: Sequence[RankRow]


def shared_work(facts: Facts) -> SharedWork | None:
    """What the processes of a run did; None where one did all."""
    noted = facts.manifest.get("stages")
    stages = {
        name: record
        for name, record in (noted.items() if isinstance(noted, Mapping) else ())
        if isinstance(record, Mapping) and isinstance(record.get("ranks"), list) and record["ranks"]
    }
    if not stages:
        return None
    num = max(len(record["ranks"]) for record in stages.values())
    parallel = facts.manifest.get("parallel")
    taken = SHARED.get(str(parallel.get("taken")), "") if isinstance(parallel, Mapping) else ""
    return SharedWork(
        lead=" ".join((f"{counted(num, 'process', 'processes')} worked on this run.", taken)).strip(),
        charts=list(_charts(facts)),
        stages=[title_of(name) for name in stages],
        planned=[_binary(_record(record, "memory").get("predicted_peak_bytes")) for record in stages.values()],
        rows=[_row(rank, list(stages.values())) for rank in range(num)],
    )


def _charts(facts: Facts) -> Iterator[Chart]:
    rows = facts.metrics.get("ppo", ())
    named: tuple[tuple[str, str, Colour], ...] = (
        ("mean", "time/waiting_share_mean", "after"),
        ("the one that waited most", "time/waiting_share_max", "before"),
    )
    series = [Series(label, *curve(rows, key), colour=colour) for label, key, colour in named]
    if all(one.ys for one in series):
        yield line_chart(
            series,
            title="Waiting for each other",
            x_label="iteration",
            y_label="share of PPO's time",
            caption="Where one waits much more than the mean, rows were shared out unevenly, or a machine is slower. "
            "Where both are high, there are too many processes for this model, or the network between them is slow.",
            limits=(0, None),
        )


def _row(rank: int, stages: Sequence[Mapping[str, Any]]) -> RankRow:
    """What is known of a process; of a stage that fewer did, nothing."""
    own = [_record(record["ranks"], rank) for record in stages]
    where = next(filter(None, own), {})
    threads = finite_or_none(where.get("num_threads"))
    place = [str(where.get("host", "unknown")), str(where.get("device", ""))]
    place += [counted(int(threads), "thread")] if threads is not None and place[1].startswith("cpu") else []
    return RankRow(rank, ", ".join(filter(None, place)), [_binary(each.get("measured_peak_bytes")) for each in own])


def _record(records: Any, key: str | int) -> Mapping[str, Any]:
    """The record under `key`; an empty one where there is none."""
    try:
        found = records[key]
    except (KeyError, IndexError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _binary(value: object) -> str:
    size = finite_or_none(value)
    return "–" if size is None else binary(size)
