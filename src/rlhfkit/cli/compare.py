"""`rlhfkit compare`."""

from pathlib import Path
from typing import Annotated

import typer

from rlhfkit.cli.app import Debug, app

__all__ = ["compare"]


@app.command()
def compare(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE_OR_RUN", help="A recipe, as for run, or the directory of a run of one.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="SECTION.KEY=VALUE", help="Settings that replace the recipe's.", show_default=False),
    ] = None,
    kl: Annotated[
        float | None,
        typer.Option(
            metavar="NATS",
            help="Where to compare; by default as far from the SFT model as PPO comes.",
            show_default=False,
        ),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to write; by default runs/<name of the recipe>.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Is PPO worth it? Run DPO, RAFT and best-of-n beside it.

    All from the same SFT model, preferences and reward; score against KL, with seconds, is in report.html. What a run
    has finished is not done again: rlhfkit compare runs/demo
    """
    from rlhfkit.rundir.comparable import comparable, directory_for

    loaded = comparable(recipe, [*(overrides or []), *([] if kl is None else [f"compare.kl={kl}"])])
    directory = directory_for(recipe, loaded, run_dir)
    from rlhfkit.cli.run import closing_words, command_to_go_on
    from rlhfkit.machine.interrupts import ends_like_interrupts
    from rlhfkit.machine.progress import Progress
    from rlhfkit.pipeline.rounds import run as run_recipe
    from rlhfkit.rundir.directory import RunDir

    try:
        with ends_like_interrupts():
            run_recipe(loaded, directory, progress=Progress())
    except KeyboardInterrupt:
        typer.echo(f"\nstopped; to go on from the last checkpoint: {command_to_go_on()}", err=True)
        raise typer.Exit(130) from None
    print(closing_words(RunDir(directory)))
