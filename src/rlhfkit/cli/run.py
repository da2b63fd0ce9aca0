"""`rlhfkit run`, `recipes`, `generate`, `evaluate` and `report`."""

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rlhfkit.rundir.directory import RunDir
from rlhfkit.cli.app import Debug, RunArgument, app, existing_run, own_command, program
from rlhfkit.errors import ConfigError, MissingDependencyError

__all__ = [
    "closing_words",
    "generate",
    "report",
    "run",
]


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
    until: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Pause once PPO has N iterations; the same command without it, or with a larger N, goes on exactly.",
            show_default=False,
        ),
    ] = None,
    processes: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Processes that share the work, one a GPU or a share of the CPU's cores."
        ),
    ] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="WHERE",
            help="Run on a Ray cluster, as [cluster] says: local starts one here, auto takes that of this machine, "
            "or the address of a head node.",
            show_default=False,
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Run a recipe, or go on where it stopped.

    As in: rlhfkit run demo ppo.iterations=20 data.prompts.rows=:90%

    On several machines: torchrun --nnodes … -m rlhfkit run RECIPE
    """
    from rlhfkit.config.load import load_recipe
    from rlhfkit.rundir.directory import RunDir, default_run_dir

    if ray is not None:
        if until is not None:
            raise ConfigError(f"--until {until} and --ray {ray} exclude each other; leave one of them out")
        _run_on_ray(recipe, overrides or [], run_dir, address=ray, fresh=fresh, processes=processes)
        return
    loaded = load_recipe(recipe, overrides or [])
    directory = run_dir or default_run_dir(loaded.recipe.name, loaded.recipe.seed)
    if processes > 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        refuse_several(loaded.recipe)
    if processes > 1 and "RANK" not in os.environ:
        from rlhfkit.distributed.launching import launch

        raise typer.Exit(launch(processes, own_command()))
    is_first = True
    from rlhfkit.machine.interrupts import Paused, ends_like_interrupts

    try:
        from rlhfkit.distributed.joining import joined
        from rlhfkit.machine.progress import Progress
        from rlhfkit.pipeline.rounds import run as run_recipe
        from rlhfkit.pipeline.workload import Workload

        with ends_like_interrupts(), joined() as here:
            is_first, progress = here.is_first, Progress(quiet=not here.is_first)
            run_recipe(loaded, directory, fresh=fresh, progress=progress, workload=Workload.pausing(until))
    except Paused as paused:
        if is_first:
            print(f"{paused}; to go on: {command_to_go_on(but='--until')}")
        return
    except KeyboardInterrupt:
        if is_first:
            typer.echo(f"\nstopped; to go on from the last checkpoint: {command_to_go_on()}", err=True)
        raise typer.Exit(130) from None
    if is_first:
        print(closing_words(RunDir(directory)))


def _run_on_ray(
    recipe: str, overrides: list[str], run_dir: Path | None, *, address: str, fresh: bool, processes: int
) -> None:
    from rlhfkit.config.cluster import in_chunks
    from rlhfkit.config.load import load_recipe
    from rlhfkit.rundir.directory import RunDir, default_run_dir

    if processes > 1:
        raise ConfigError(
            f"--processes {processes} and --ray {address} exclude each other; on a cluster the number of trainers is "
            f"cluster.trainers={processes}"
        )
    loaded = in_chunks(lambda more: load_recipe(recipe, [*overrides, *more]))
    refuse_several(loaded.recipe)
    require_ray()
    from rlhfkit.launch.driver import run_on_ray

    directory = run_dir or default_run_dir(loaded.recipe.name, loaded.recipe.seed)
    try:
        run_on_ray(loaded, directory, address=address, fresh=fresh)
    except KeyboardInterrupt:
        typer.echo(f"\nstopped; to go on from the last checkpoint: {command_to_go_on()}", err=True)
        raise typer.Exit(130) from None
    print(closing_words(RunDir(directory)))


def require_ray() -> None:
    """Check that Ray is installed, without importing it, which takes seconds.

    Raises: MissingDependencyError with the install line.
    """
    from importlib.util import find_spec

    if find_spec("ray") is None:
        raise MissingDependencyError(
            "--ray needs a package that is missing (ray); pip install 'rlhfkit[ray]', on every machine of the cluster"
        )


def refuse_several(recipe: object) -> None:
    """Raises: ConfigError where the recipe is of one process alone."""
    from rlhfkit.config.control import ControlRecipe

    if isinstance(recipe, ControlRecipe):
        raise ConfigError(
            f"{recipe.name} is a control task, which runs in one process: its networks are small, and its environments "
            "have processes of their own (env.asynchronous); leave --processes out"
        )


def command_to_go_on(*, but: str | None = None) -> str:
    """What starts the run again, without an option `but`, to be copied; torchrun's own arguments are not known here."""
    words = [word for word in sys.argv[1:] if word != "--fresh"]
    if but in words:
        del words[(at := words.index(but)) : at + 2]
    words = [word for word in words if not word.startswith(f"{but}=")]
    command = f"{program()} {shlex.join(words)}"
    return command if "TORCHELASTIC_RUN_ID" not in os.environ else f"torchrun … {command.removeprefix('python ')}"


RunOrStudy = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, as runs/demo, or that of a study.")]
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
    existing = existing_run(run)
    from rlhfkit.pipeline.evaluate import evaluate_again

    evaluate_again(run)
    print(closing_words(existing))


@app.command()
def report(run: RunOrStudy, debug: Debug = False) -> None:
    """Write report.html of a run, or study.html of a study."""
    from rlhfkit.rundir.study import StudyDir

    study = StudyDir(run)
    if study.is_study() or study.results.exists():
        from rlhfkit.report.study import write_study_page

        print(write_study_page(study))
        return
    existing = existing_run(run)
    from rlhfkit.report.page import write_report

    print(write_report(existing))


def closing_words(run: "RunDir") -> str:
    """What a run has left behind, and what to do next."""
    is_control = run.is_control()
    written = {
        run.model("policy"): "the trained policy of each seed"
        if is_control
        else "the trained model, for transformers and for rlhfkit generate",
        run.model("ema"): "the average of its weights (ppo.ema), a model of the same kind",
        run.episode: "an episode to watch",
        run.model("reward_model"): "the reward model",
        run.model("sft"): "the model before PPO",
        run.evaluation: "every seed's result" if is_control else "before and after, in numbers",
        run.comparison: "PPO beside its baselines, in numbers",
        run.report: "what happened, for people",
        run.metrics: "every metric of every iteration",
        run.samples: "responses from every iteration",
        run.observations: "what was looked at while PPO ran",
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
        yield f"{program()} diagnose {where}   (PPO was stopped early: {str(stopped).partition(';')[0]})"
    if not is_control and run.newest_model() is not None:
        yield f"{program()} generate {where} --prompt '…'"
    elif run.model("reward_model").exists():
        path = shlex.quote(f"reward.path={run.model('reward_model')}")
        yield f"{program()} run RECIPE reward.type=reward_model {path}   (PPO with this reward model)"
    elif run.preferences.exists():
        path = shlex.quote(f"data.preferences.path={run.preferences}")
        yield f"{program()} run RECIPE {path}   (a reward model of them)"
    if run.report.exists():
        yield f"open {where}/{run.report.name} in a browser"
    elif not stopped and finished and run.metrics.exists():
        yield f"{program()} diagnose {where}"
