"""`rlhfkit probe`: what else changed, and what a model or reward does beside its task."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhfkit.cli.app import Debug, app

if TYPE_CHECKING:
    from rich.table import Table

    from rlhfkit.rundir.probe_results import ProbeResults

__all__ = ["probe"]


@app.command()
def probe(
    directory: Annotated[
        Path, typer.Argument(metavar="RUN_OR_MODEL_DIR", help="Run directory, a language model or a reward model.")
    ],
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Probes, or files of rows; by default the run's.", show_default=False),
    ] = None,
    reward_model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Reward model to probe; by default the run's reward.")
    ] = None,
    primary: Annotated[
        str | None, typer.Option(metavar="NAME", help="The probe that counts, declared before you look.")
    ] = None,
    scorer: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Scores samples: a word list, a lexicon with weights, or a classifier."),
    ] = None,
    scorer_label: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Output of the classifier that counts.")
    ] = None,
    lm_eval: Annotated[
        str | None,
        typer.Option(
            "--lm-eval",
            metavar="TASKS",
            help="Tasks of lm-evaluation-harness, with commas between; a directory of task files may stand first.",
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Responses to each prompt; by default 5.")
    ] = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN", help="Further runs of the recipe with other seeds: numbers over all; may be repeated."
        ),
    ] = None,
    max_rows: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Rows of each probe; by default all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, as the last line.")] = False,
    debug: Debug = False,
) -> None:
    """Measure bias, safety and leakage, before and after.

    Of a run, writes probes.json and report.html. Of a model, only shows what it finds.
    """
    from rlhfkit.config.probe import ProbeConfig
    from rlhfkit.pipeline.probe import probe_model, probe_run, probe_seeds
    from rlhfkit.rundir.directory import RunDir
    from rlhfkit.rundir.resume import recipe_of

    given: dict[str, Any] = {
        "names": tuple(names or ()),
        "primary": primary,
        "scorer": None if scorer is None else str(scorer.absolute()),
        "scorer_label": scorer_label,
        "num_samples": samples,
        "lm_eval": tuple(lm_eval.split(",")) if lm_eval else (),
        "max_rows": max_rows,
    }
    changes = {name: value for name, value in given.items() if value not in (None, ())}
    run = RunDir(directory)
    if run.is_run():
        recorded = getattr(recipe_of(run), "probe", ProbeConfig()).model_dump()
        if changes.get("names") and recorded["primary"] not in changes["names"]:
            recorded["primary"] = ""
        config = ProbeConfig(**{**recorded, **changes})
        if also:
            found = probe_seeds([directory, *also], config)
        else:
            found = probe_run(directory, config, reward_model=reward_model)
    else:
        found = probe_model(str(directory), ProbeConfig(**changes), reward_model=reward_model)
    _show(found, as_json=as_json)


def _show(found: "ProbeResults", *, as_json: bool) -> None:
    import sys

    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 200)
    for of in ("model", "reward"):
        if any(measure.of == of for measure in found.measures):
            console.print(_table(found, of))
    print(found)
    if as_json:
        print(found.model_dump_json())


def _table(found: "ProbeResults", of: str) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from rlhfkit.rundir.probe_results import gate_words, interval_words, shown

    who = {"model": " → ".join(filter(None, (found.before, found.after))), "reward": found.reward}[of]
    table = Table(box=box.SIMPLE_HEAD, title=f"{of}: {who}", title_justify="left")
    has_before = any(measure.before for measure in found.measures if measure.of == of)
    sides = ["before", "after", "difference"] if has_before else ["value"]
    for column in (
        "probe",
        "what",
        *sides,
        "95 % interval",
        "detectable",
        "gate" if of == "model" else "floor",
        "says",
    ):
        table.add_column(column, overflow="fold")
    for measure in found.measures:
        if measure.of != of:
            continue
        unit = measure.unit
        values = [shown(measure.after.mean, unit)]
        if has_before:
            before = None if measure.before is None else measure.before.mean
            moved = None if measure.difference is None else measure.difference.mean
            values = [shown(before, unit), *values, shown(moved, unit, signed=True)]
        basis = gate_words(measure.gate) if of == "model" else shown(measure.floor, unit)
        row = [
            measure.probe + ("*" if measure.is_primary else ""),
            (f"  {measure.group}" if measure.group else measure.words) + f" ({measure.note})" * bool(measure.note),
            *values,
            interval_words(measure),
            shown(measure.detectable, unit),
            basis,
            measure.reading,
        ]
        table.add_row(*map(Text, row))
    return table
