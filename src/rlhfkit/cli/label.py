"""`rlhfkit label`, `dashboard` and `labels`: what people say, and how it comes in and goes out."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    pass
from rlhfkit.cli.app import Debug, app, existing_run

__all__ = [
    "labels",
]

Part = Literal["train", "test"]


WithoutStatus = Literal["refuse", "leave-out", "submitted"]


ChosenIs = Literal["better", "worse"]


ImportFormat = Literal["rlhfkit", "preferences", "hh", "argilla", "argilla-nested", "label-studio"]


ExportFormat = Literal["rlhfkit", "preferences", "hh", "argilla", "argilla-nested", "label-studio"]


@app.command()
def label(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN", help="Run directory, whose newest model answers its prompts.", show_default=False
        ),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="In place of RUN: prompts, answered by --model.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="DIR", help="Who answers --prompts.")] = None,
    pairs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="In place of RUN: prompts with two responses each.")
    ] = None,
    num_pairs: Annotated[int, typer.Option(min=1, metavar="N", help="How many pairs to sample.")] = 100,
    database: Annotated[
        str | None,
        typer.Option(metavar="URL", help="SQLite file or postgresql://…; by default labels.db in RUN, or here."),
    ] = None,
    annotator: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Somebody who gets a link of their own; may come more than once."),
    ] = None,
    guidelines: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Markdown text that is shown beside the page.")
    ] = None,
    votes_per_pair: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            show_default=False,
            help="People who see a pair, one more where they disagree; by default 1, or as the database has it.",
        ),
    ] = None,
    calibration_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, metavar="SHARE", help="Share of the pairs that several people see.")
    ] = 0.15,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where the page listens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, metavar="N", help="The next free one if taken.")] = 8571,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="The same seed samples the same pairs.")] = 0,
    debug: Debug = False,
) -> None:
    """Let people compare responses on a page.

    Votes are kept as they are given; Ctrl-C ends. Started again, it goes on where it was.
    """
    _one_source(run, prompts, model, pairs)
    from rlhfkit.config.feedback import PeopleConfig
    from rlhfkit.feedback.transfer import usable
    from rlhfkit.machine.progress import Progress
    from rlhfkit.pipeline import label_session as session

    options = session.LabelOptions(
        database=None if database is None else usable(database),
        num_pairs=num_pairs,
        people=PeopleConfig(
            type="people",
            votes_per_pair=votes_per_pair or 1,
            calibration_share=calibration_share,
            calibration_votes=max(3, votes_per_pair or 1),
            names=tuple(annotator or ()),
            guidelines=None if guidelines is None else str(guidelines),
            host=host,
            port=port,
        ),
        seed=seed,
        keeps_settings=votes_per_pair is None,
        opens_browser=browser and sys.stdout.isatty(),
    )
    if run is not None:
        words = session.label_run(existing_run(run).path, options, Progress())
    elif prompts is not None and model is not None:
        words = session.label_prompts(prompts, model, options, Progress())
    else:
        assert pairs is not None
        words = session.label_pairs(pairs, options, Progress())
    print(words)


def _one_source(run: Path | None, prompts: Path | None, model: str | None, pairs: Path | None) -> None:
    """Check that exactly one source of pairs was given. Raises: typer.BadParameter."""
    given = [name for name, value in (("RUN", run), ("--prompts", prompts), ("--pairs", pairs)) if value is not None]
    if len(given) != 1:
        raise typer.BadParameter(f"give one of RUN, --prompts and --pairs; there is {' and '.join(given) or 'none'}")
    if (prompts is None) != (model is None):
        raise typer.BadParameter("--prompts FILE and --model DIR belong together")


@app.command()
def dashboard(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory that holds runs.")] = Path("runs"),
    port: Annotated[int, typer.Option(min=1, max=65535, metavar="N", help="The next free one if taken.")] = 8571,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    debug: Debug = False,
) -> None:
    """Watch runs while they train.

    Curves, samples and labels, on a page that only this machine can open; it reads files and disturbs nothing.
    """
    from rlhfkit.machine.progress import Progress
    from rlhfkit.pipeline.label_session import watch

    watch(directory, port=port, opens_browser=browser and sys.stdout.isatty(), progress=Progress())


labels = typer.Typer(help="Judge, export and import what people have said.", no_args_is_help=True)
app.add_typer(labels, name="labels")


StoreArgument = Annotated[
    str, typer.Argument(metavar="STORE", help="SQLite file, address of a PostgreSQL database, or a run directory.")
]


@labels.command("report")
def labels_report(
    store: StoreArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    debug: Debug = False,
) -> None:
    """Agreement, biases, every annotator, and the ceiling for reward models."""
    from rlhfkit.feedback.transfer import report_of
    from rlhfkit.feedback.trust.text import lines_of

    report = report_of(store)
    if as_json:
        import json

        print(json.dumps(report.as_dict(), ensure_ascii=False))
    else:
        print("\n".join(lines_of(report)))


@labels.command("export")
def labels_export(
    store: StoreArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What to write.")],
    format: Annotated[ExportFormat, typer.Option("--format", help="preferences and hh hold the majority's choice.")],
    part: Annotated[Part | None, typer.Option(help="Only prompts to train on, or only those to measure with.")] = None,
    margin: Annotated[bool, typer.Option("--margin", help="For preferences: how much better, from 0 to 1.")] = False,
    min_votes: Annotated[int, typer.Option(min=1, metavar="N", help="Votes that a pair needs.")] = 1,
    debug: Debug = False,
) -> None:
    """Write labels for other tools, whole or not at all."""
    from rlhfkit.feedback.transfer import export_store

    for line in export_store(store, file, format=format, part=part, use_margin=margin, min_votes=min_votes):
        print(line)


@labels.command("import")
def labels_import(
    store: StoreArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What to read.")],
    format: Annotated[ImportFormat, typer.Option("--format", help="Which tool wrote it.")],
    annotator: Annotated[
        str, typer.Option(metavar="NAME", help="Who labelled, where the file does not say.")
    ] = "imported",
    name: Annotated[
        list[str] | None, typer.Option(metavar="OURS=THEIRS", help="What the file calls it, as prompt=instruction.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="THEIRS=OURS", help="What a label means, as 'Answer 1'=a_better.")
    ] = None,
    user: Annotated[
        list[str] | None, typer.Option(metavar="ID=NAME", help="Whom an id of the file means, as 7=Ada.")
    ] = None,
    without_status: Annotated[
        WithoutStatus, typer.Option("--without-status", help="What becomes of Argilla's responses without a status.")
    ] = "refuse",
    chosen_is: Annotated[ChosenIs, typer.Option("--chosen-is", help="For hh: what people were asked for.")] = "better",
    debug: Debug = False,
) -> None:
    """Read labels of other tools into a store, all or none.

    All but the options --annotator and --chosen-is may come more than once.
    """
    from rlhfkit.feedback.transfer import import_into_store

    # A name of ours has no "=", a label or an id of theirs may.
    names = dict(_parted(text, "--name", text.partition("=")) for text in name or ())
    labels = dict(_parted(text, "--label", text.rpartition("=")) for text in label or ())
    users = dict(_parted(text, "--user", text.rpartition("=")) for text in user or ())
    for line in import_into_store(
        store,
        file,
        format=format,
        annotator=annotator,
        names=names,
        labels=labels,
        users=users,
        without_status=without_status,
        chosen_is=chosen_is,
    ):
        print(line)


def _parted(text: str, option: str, parts: tuple[str, str, str]) -> tuple[str, str]:
    if not parts[0] or not parts[1]:
        raise typer.BadParameter(f"{option} {text}: expected two names with = between them")
    return parts[0], parts[2]


@labels.command("config")
def labels_config(
    format: Annotated[
        Literal["label-studio", "argilla"], typer.Option("--format", help="The tool in which people label.")
    ],
    debug: Debug = False,
) -> None:
    """What to paste into another tool, so that it takes what `labels export` writes."""
    from rlhfkit.feedback.exchange import configuration

    print(configuration(format), end="")
