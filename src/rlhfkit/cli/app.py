"""The command line: parse, import late, call one function.

Nothing but typer is imported before a command runs, so that `--help` answers at once.
"""

import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rlhfkit.errors import CheckpointError, RlhfkitError
from rlhfkit.machine.surroundings import make_do

if TYPE_CHECKING:
    from rlhfkit.rundir.directory import RunDir

__all__ = ["app", "closing_words", "main"]

app = typer.Typer(
    name="rlhfkit",
    help="Take a pre-trained language model and make it behave as people prefer: SFT, reward model, PPO, evaluation.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Workload = Literal["ppo", "generate", "cartpole"]
Size = Literal["1m", "6m", "30m", "124m"]
Dtype = Literal["auto", "float32", "bfloat16"]
Part = Literal["train", "test"]
WithoutStatus = Literal["refuse", "leave-out", "submitted"]
ChosenIs = Literal["better", "worse"]
ImportFormat = Literal["rlhfkit", "preferences", "hh", "argilla", "argilla-nested", "label-studio"]
ExportFormat = Literal["rlhfkit", "preferences", "hh", "argilla", "argilla-nested", "label-studio"]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, as runs/demo.")]


def main() -> None:
    """Run the command line; exit code 0 done, 1 an error (one line on stderr), 2 wrong usage, 130 interrupted."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # or each retry of a download is a line of its own
    make_do()
    try:
        app(prog_name="rlhfkit")
    except Exception as error:
        from rlhfkit.config.secrets import hidden

        if "--debug" in sys.argv:
            sys.excepthook = lambda kind, error, trace: print(
                hidden("".join(traceback.format_exception(error))), end="", file=sys.stderr
            )
            raise
        typer.echo(
            _printable(hidden(f"error: {error if isinstance(error, RlhfkitError) else _unexpected(error)}")), err=True
        )
        sys.exit(1)


def _printable(text: str) -> str:
    """The text without characters that steer a terminal: files of others may hold them, and messages quote files."""
    return "".join(letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text)


def _unexpected(error: Exception) -> str:
    reason = (str(error).splitlines() or [""])[0]
    return (
        f"{type(error).__name__}: {reason} (this is a bug, or something that this machine cannot do; "
        "run again with --debug to see where)"
    )


def _show_version(wanted: bool) -> None:
    if wanted:
        from rlhfkit import __version__

        print(f"rlhfkit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name, or a TOML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="SECTION.KEY=VALUE", help="Settings that replace the recipe's.", show_default=False),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to write; by default runs/<name of the recipe>.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over; removes what an earlier run left, but never people's votes.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Run a recipe, or go on where it stopped.

    As in: rlhfkit run demo ppo.iterations=20 data.prompts.rows=:90%
    """
    from rlhfkit.config.load import load_recipe
    from rlhfkit.rundir.directory import RunDir, default_run_dir

    loaded = load_recipe(recipe, overrides or [])
    directory = run_dir or default_run_dir(loaded.recipe.name, loaded.recipe.seed)
    try:
        from rlhfkit.machine.interrupts import ends_like_interrupts
        from rlhfkit.pipeline.rounds import run as run_recipe

        with ends_like_interrupts():
            run_recipe(loaded, directory, fresh=fresh)
    except KeyboardInterrupt:
        command = f"{_program()} {shlex.join(word for word in sys.argv[1:] if word != '--fresh')}"
        typer.echo(f"\nstopped; to go on from the last checkpoint: {command}", err=True)
        raise typer.Exit(130) from None
    print(closing_words(RunDir(directory)))


YOUR_OWN = "For your own data: pairs (preferences) or function (prompts and a Python function as the reward)"


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Recipe to print.", show_default=False)] = None,
    debug: Debug = False,
) -> None:
    """List the shipped recipes, or print one.

    To write your own, copy one: rlhfkit recipes demo > mine.toml
    """
    from rlhfkit.config.load import list_recipes, recipe_text

    if name is not None:
        print(recipe_text(name), end="")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("recipe", "purpose", "hardware", "time", box=box.SIMPLE_HEAD, caption=YOUR_OWN)
    for summary in list_recipes():
        table.add_row(*(Text(column) for column in summary))
    Console(width=None if sys.stdout.isatty() else 200).print(table)  # a file or a pipe needs no screen's width


@app.command()
def generate(
    directory: Annotated[
        Path, typer.Argument(metavar="RUN_OR_MODEL_DIR", help="Run directory, or a model in Hugging Face format.")
    ],
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="A prompt; may be repeated. Without any, each line of the input is one."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File of prompts: lines of a .txt, or rows as of data.prompts."),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="The prompt is a user's message, not text to continue.")] = False,
    max_response_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Longest response; by default the run's.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, metavar="T", help="0 is greedy, high is varied; by default the run's.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="The same seed gives the same responses.")] = 0,
    debug: Debug = False,
) -> None:
    """Show how a model responds.

    Of a run, the model that PPO trained answers, or the one before it where PPO has not run.
    """
    from rlhfkit.data.given import given_prompts
    from rlhfkit.pipeline.generate import generate as responses_to

    responses = responses_to(
        directory,
        given_prompts(prompt or [], prompts),
        chat=chat,
        max_response_tokens=max_response_tokens,
        temperature=temperature,
        seed=seed,
    )
    for response in responses:
        print(response, flush=True)


@app.command()
def evaluate(run: RunArgument, debug: Debug = False) -> None:
    """Compare before and after on held-out prompts.

    Writes evaluation.json and report.html.
    """
    existing = _existing_run(run)
    from rlhfkit.pipeline.run import evaluate as evaluate_run

    evaluate_run(run)
    print(closing_words(existing))


@app.command()
def report(run: RunArgument, debug: Debug = False) -> None:
    """Write report.html, out of what a run holds."""
    existing = _existing_run(run)
    from rlhfkit.report.page import write_report

    print(write_report(existing))


@app.command()
def doctor(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="RECIPE", help="A shipped recipe's name, or a TOML file.", show_default=False),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="SECTION.KEY=VALUE", help="Settings that replace the recipe's.", show_default=False),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where it would run; by default runs/<name of the recipe>.")
    ] = None,
    forecast: Annotated[
        bool, typer.Option(help="Do a little of every stage, and tell what the whole takes: about a minute.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, as the last line.")] = False,
    debug: Debug = False,
) -> None:
    """Tell whether this machine is ready, and a recipe too.

    What is tried is thrown away. Exit code 0: no fault; 1: at least one.
    """
    import json

    from rich.console import Console

    from rlhfkit.doctor import as_json as json_of
    from rlhfkit.doctor import examine, table_of

    findings = []
    with Console(stderr=True).status("looking around") as status:
        for finding in examine(recipe, overrides or [], run_dir=run_dir, forecast=forecast):
            findings.append(finding)
            status.update(f"{len(findings)} things seen, the last: {finding.name}")
    if as_json:
        print(json.dumps(json_of(findings), ensure_ascii=False))
    else:
        Console().print(table_of(findings))
    if any(finding.verdict == "fault" for finding in findings):
        raise typer.Exit(1)


@app.command()
def diagnose(
    run: RunArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    debug: Debug = False,
) -> None:
    """Say what is right or wrong in a run, and what to set.

    Of a finished, a running or a dead one; it reads files and disturbs nothing.
    """
    existing = _existing_run(run)
    from rlhfkit.diagnosis.diagnose import diagnose as diagnosis_of

    diagnosis = diagnosis_of(existing)
    if as_json:
        import json

        print(json.dumps(diagnosis.as_dict(), ensure_ascii=False))
        return
    from rich.console import Console

    from rlhfkit.diagnosis.text import lines_of

    styles = {"plain": None, "title": "bold", "good": "bold green", "bad": "bold red", "faint": "dim"}
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for line in lines_of(diagnosis, width=min(console.width, 100)):
        console.print(line.text, style=styles[line.kind])


@app.command()
def bench(
    name: Annotated[
        Workload,
        typer.Argument(
            metavar="NAME",
            help="ppo: seconds of an iteration. generate: tokens per second. cartpole: seconds until it is solved.",
        ),
    ],
    size: Annotated[Size, typer.Option(help="ppo, generate: parameters of the GPT-2 shape.")] = "6m",
    like_for_like: Annotated[
        bool, typer.Option("--like-for-like", help="ppo: float32, and a value network of its own.")
    ] = False,
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="generate: rows sampled at a time.")] = 64,
    mean_tokens: Annotated[
        int | None,
        typer.Option(min=2, metavar="N", help="generate: random lengths with this mean.", show_default=False),
    ] = None,
    episodes: Annotated[
        int | None, typer.Option(min=4, metavar="N", help="ppo: per iteration; 64, or 16 of 124m.", show_default=False)
    ] = None,
    response_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="ppo, generate: of a response.")] = 48,
    dtype: Annotated[Dtype | None, typer.Option(help="ppo, generate: type of the weights.", show_default=False)] = None,
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="ppo, generate: torch.compile.")] = True,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="ppo, generate: of which the median counts.")] = 5,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="cartpole: trainings; the median counts.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    debug: Debug = False,
) -> None:
    """Measure rlhfkit on a fixed workload.

    The seconds are of training alone, after a first iteration that compiles. Nothing else should run meanwhile.
    """
    import json

    def tell(line: str) -> None:
        typer.echo(line, err=True)

    if name == "cartpole":
        from rlhfkit.bench.cartpole import bench_cartpole

        result = bench_cartpole(num_seeds=seeds, tell=tell)
    else:
        from rlhfkit.bench.language import bench_generate, bench_ppo

        if name == "ppo":
            result = bench_ppo(
                size,
                like_for_like=like_for_like,
                dtype=dtype,
                compiled=compiled,
                iterations=repeats,
                episodes=episodes,
                response_tokens=response_tokens,
                tell=tell,
            )
        else:
            result = bench_generate(
                size,
                rows=rows,
                response_tokens=response_tokens,
                mean_tokens=mean_tokens,
                dtype=dtype or "auto",
                compiled=compiled,
                repeats=repeats,
                tell=tell,
            )
    if as_json:
        print(json.dumps(result))
        return
    width = max(map(len, result))
    for key, value in result.items():
        print(f"{key:<{width}}  {value:.3f}" if isinstance(value, float) else f"{key:<{width}}  {value}")


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
    given = [name for name, value in (("RUN", run), ("--prompts", prompts), ("--pairs", pairs)) if value is not None]
    if len(given) != 1:
        raise typer.BadParameter(f"give one of RUN, --prompts and --pairs; there is {' and '.join(given) or 'none'}")
    if (prompts is None) != (model is None):
        raise typer.BadParameter("--prompts FILE and --model DIR belong together")
    from rlhfkit.config.recipe import PeopleConfig
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
        words = session.label_run(_existing_run(run).path, options, Progress())
    elif prompts is not None and model is not None:
        words = session.label_prompts(prompts, model, options, Progress())
    else:
        assert pairs is not None
        words = session.label_pairs(pairs, options, Progress())
    print(words)


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

    report = report_of(store)
    if as_json:
        import json

        print(json.dumps(report.as_dict(), ensure_ascii=False))
    else:
        print("\n".join(report.lines()))


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


def closing_words(run: "RunDir") -> str:
    """What a run has left behind, and what to do next."""
    is_control = run.is_control()
    written = {
        run.model("policy"): "the trained policy of each seed"
        if is_control
        else "the trained model, for transformers and for rlhfkit generate",
        run.episode: "an episode to watch",
        run.model("reward_model"): "the reward model",
        run.model("sft"): "the model before PPO",
        run.evaluation: "every seed's result" if is_control else "before and after, in numbers",
        run.report: "what happened, for people",
        run.metrics: "every metric of every iteration",
        run.samples: "responses from every iteration",
    }
    if is_control:
        del written[run.samples]  # there are no texts
    names = {path: path.name + ("/" if path.is_dir() else "") for path in written if path.exists()}
    width = max(map(len, names.values()), default=0)
    lines = [f"{run.path} holds", *(f"  {name:<{width}}  {written[path]}" for path, name in names.items())]
    steps = _next_steps(run, is_control=is_control)
    return "\n".join([*lines, *(f"{'     ' if at else 'next:'} {step}" for at, step in enumerate(steps))])


def _next_steps(run: "RunDir", *, is_control: bool) -> Iterator[str]:
    """What one does with what a run has made: at least one step where it has made anything."""
    where = shlex.quote(str(run.path))
    finished = run.finished_stages()
    if stopped := finished.get("ppo", {}).get("stopped"):
        yield f"{_program()} diagnose {where}   (PPO was stopped early: {str(stopped).partition(';')[0]})"
    if not is_control and run.newest_model() is not None:
        yield f"{_program()} generate {where} --prompt '…'"
    elif run.model("reward_model").exists():
        path = shlex.quote(f"reward.path={run.model('reward_model')}")
        yield f"{_program()} run RECIPE reward.type=reward_model {path}   (PPO with this reward model)"
    elif run.preferences.exists():
        path = shlex.quote(f"data.preferences.path={run.preferences}")
        yield f"{_program()} run RECIPE {path}   (a reward model of them)"
    if run.report.exists():
        yield f"open {where}/{run.report.name} in a browser"
    elif not stopped and finished and run.metrics.exists():
        yield f"{_program()} diagnose {where}"


def _program() -> str:
    """How the user has called us, for commands that can be copied."""
    called = Path(sys.argv[0])
    if called.parts[-2:] == ("rlhfkit", "__main__.py"):
        return "python -m rlhfkit"
    if called.name == "rlhfkit" and shutil.which("rlhfkit") is None:
        return shlex.quote(sys.argv[0])
    return "rlhfkit"


def _existing_run(path: Path) -> "RunDir":
    from rlhfkit.rundir.directory import RunDir

    run = RunDir(path)
    if not run.is_run():
        missing = run.recipe if run.config.exists() else run.config
        raise CheckpointError(
            f"{path} is not a run directory, as it has no {missing.name}; "
            f"make one with: rlhfkit run RECIPE --run-dir {shlex.quote(str(path))}"
        )
    return run
