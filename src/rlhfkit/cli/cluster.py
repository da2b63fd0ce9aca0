"""`rlhfkit cluster`: who works on a run on a cluster, and how many shall."""

import shlex
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from rlhfkit.cli.app import Debug, RunArgument, app, existing_run, program
from rlhfkit.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from rlhfkit.rundir.cluster import ClusterTable, Event, Wanted, WorkerRow, Workers
    from rlhfkit.rundir.directory import RunDir

__all__ = ["cluster"]

ANSWER_SECONDS = 20.0
"""A driver looks for requests every half second, unless it waits for the cluster."""
SHOWN_ROWS, SHOWN_EVENTS = 60, 12
STATES = {
    "idle": ("idle", ""),
    "working": ("working", "green"),
    "slow": ("slow", "yellow"),
    "lost": ("lost", "red"),
    "refused": ("taken out", "bold red"),
    "starting": ("starting", "cyan"),
}
"""State → its word, and its style."""


@app.command()
def cluster(
    run: RunArgument,
    samplers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Samplers from now on, while the run goes on.", show_default=False),
    ] = None,
    reward_workers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Reward workers from now on, in a run that has any.", show_default=False),
    ] = None,
    debug: Debug = False,
) -> None:
    """Show who works on a run on a cluster, or change how many do.

    As in: rlhfkit cluster runs/demo --samplers 4
    """
    existing = existing_run(run)
    from rlhfkit.rundir.cluster import Wanted

    if samplers is None and reward_workers is None:
        _show(existing, _table_of(existing))
    else:
        print(_change(existing, Wanted(samplers=samplers, reward_workers=reward_workers)))


def _table_of(run: "RunDir") -> "ClusterTable":
    from rlhfkit.rundir.cluster import read_cluster

    table = read_cluster(run)
    if table is None:
        raise CheckpointError(
            f"{run.path} has no {run.cluster.name}: it runs on no cluster, or its PPO has not begun there; start it "
            f"with: {program()} run RECIPE --run-dir {shlex.quote(str(run.path))} --ray local"
        )
    return table


def _change(run: "RunDir", wanted: "Wanted") -> str:
    """Has the driver change the numbers; says what they are then."""
    from rlhfkit.rundir.cluster import ask_for, refused
    from rlhfkit.wording import counted

    before = _table_of(run)
    if before.state != "running":
        raise CheckpointError(
            f"nobody would hear of it: {_state_in_words(before)}; go on with the run, and give cluster.samplers=N "
            "or cluster.reward_workers=N there"
        )
    if why_not := refused(wanted, before.wanted):
        raise ConfigError(why_not)
    ask_for(run, wanted)
    try:
        after = _answer(run, wanted)
    finally:
        run.cluster_request.unlink(missing_ok=True)  # or a driver to come would take it for its own
    if after is None:
        raise CheckpointError(
            f"the driver has not answered within {ANSWER_SECONDS:.0f} s, so that all stays as it is; see its terminal"
        )
    pairs = [
        (name, old, new)
        for name, old, new in (
            ("sampler", before.wanted.samplers, after.samplers),
            ("reward worker", before.wanted.reward_workers, after.reward_workers),
        )
        if new is not None
    ]
    return "\n".join(f"{counted(new, name)} from now on, in place of {old}" for name, old, new in pairs)


def _answer(run: "RunDir", wanted: "Wanted") -> "Wanted | None":
    """What was wanted, once the driver has seen to it; None where it does not."""
    from rlhfkit.rundir.cluster import read_cluster

    until = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < until:
        table = read_cluster(run)
        if table is not None and not run.cluster_request.exists():
            given = table.wanted
            if wanted.samplers in (None, given.samplers) and wanted.reward_workers in (None, given.reward_workers):
                return wanted
        time.sleep(0.1)
    return None


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _show(run: "RunDir", table: "ClusterTable") -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(Text(f"{run.path}: {_state_in_words(table)}", style="yellow" if table.state == "gone" else ""))
    console.print(Text(_trainers_in_words(table)))
    for title, unit, workers in (
        ("samplers", "tokens/s", table.samplers),
        ("reward workers", "responses/s", table.reward_workers),
    ):
        if workers.rows:
            console.print(_workers_table(title, unit, workers))
            console.print(Text(_queue_in_words(workers)))
    if table.events:
        console.print(_events_table(table.events))


def _state_in_words(table: "ClusterTable") -> str:
    from rlhfkit.wording import duration

    ago = f"{duration(table.age_seconds, digits=2)} ago"
    iteration = "" if table.iteration is None else f", iteration {table.iteration}"
    return {
        "running": f"running{iteration}, written {ago}",
        "gone": f"written {ago}: the driver is not running",
        "done": f"done, {ago}",
        "stopped": f"stopped on request{iteration}, {ago}",
        "failed": f"ended by an error{iteration}, {ago}",
    }[table.state]


def _trainers_in_words(table: "ClusterTable") -> str:
    from rlhfkit.wording import counted, duration

    again = counted(table.trainer_restarts or 0, "time")
    words = f"{counted(table.num_trainers or 0, 'trainer')}, started again {again}"
    if table.state != "running" or table.silent_seconds is None:
        return words
    return f"{words}, last sign of life {duration(table.silent_seconds + table.age_seconds, digits=2)} ago"


def _workers_table(title: str, unit: str, workers: "Workers") -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("worker", "state", "for", "host"):
        table.add_column(name)
    for name in ("process", "iteration", unit, "chunks", "restarts", "faults"):
        table.add_column(name, justify="right")
    for row in workers.rows[:SHOWN_ROWS]:
        table.add_row(*_cells(row))
    if left_out := len(workers.rows) - SHOWN_ROWS + workers.num_left_out:
        table.caption = f"and {left_out} more" if left_out > 0 else None
    return table


def _cells(row: "WorkerRow") -> "list[Text]":
    from rich.text import Text

    from rlhfkit.wording import duration

    word, style = STATES.get(row.state, ("unknown", "yellow"))
    since = "–" if row.seconds_in_state is None else duration(row.seconds_in_state, digits=2)
    numbers = (row.pid, row.iteration, row.per_second, row.chunks, row.restarts, row.faults)
    shown = ["–" if number is None else f"{number:.10g}" for number in numbers]
    return [Text(row.name), Text(word, style=style), Text(since), Text(row.host or "–"), *map(Text, shown)]


def _queue_in_words(workers: "Workers") -> str:
    from rlhfkit.wording import counted, duration

    words = f"{counted(workers.open_chunks or 0, 'chunk')} not done, {workers.waiting_chunks or 0} of them waiting"
    if workers.median_chunk_seconds is not None:
        words += f", {duration(workers.median_chunk_seconds, digits=2)} each"
    return f"{words}; {counted(workers.dropped_answers or 0, 'answer')} too many"


def _events_table(events: "tuple[Event, ...]") -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from rlhfkit.wording import duration

    table = Table("time", "who", "what", "cost", "why", title="last events", title_justify="left", box=box.SIMPLE_HEAD)
    for event in events[-SHOWN_EVENTS:]:
        cost = "" if event.lost_seconds is None else duration(event.lost_seconds, digits=2)
        at = time.strftime("%H:%M:%S", time.localtime(event.time))
        table.add_row(at, *map(Text, (event.who, event.what, cost, event.why)))
    return table
