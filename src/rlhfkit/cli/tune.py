"""`rlhfkit tune`: better settings than the recipe has, if there are any."""

import re
from pathlib import Path
from typing import Annotated

import typer

from rlhfkit.cli.app import Debug, app
from rlhfkit.errors import ConfigError

__all__ = ["seconds_in", "tune"]

UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}


@app.command()
def tune(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name, or a TOML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="SECTION.KEY=VALUE", help="Settings that replace the recipe's.", show_default=False),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="What it may take, as 2h or 90min: decides the number of trials."),
    ] = None,
    kl: Annotated[
        float | None,
        typer.Option(
            metavar="NATS", help="How far from the reference a score may be; sets tune.kl.", show_default=False
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Settings to try; sets tune.trials.", show_default=False)
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, metavar="N", help="Runs at a time; they share the cores.")] = 1,
    study_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to write; by default runs/tune-<name of the recipe>.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Database for what was tried, as postgresql://…; by default a file in DIR."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Runs on the machines of a Ray cluster, --jobs at a time: auto, or its head's address.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Search for better settings of PPO, and tell whether they are.

    Trials are ordinary runs, paused at rungs; the best are trained with more seeds, and the winner is compared with the
    recipe on seeds and prompts that the search did not see. The same command goes on where it stopped, or joins.
    """
    from rlhfkit.cli.run import command_to_go_on
    from rlhfkit.machine.interrupts import ends_like_interrupts
    from rlhfkit.rundir.study import StudyDir
    from rlhfkit.tuning.search import default_study_dir
    from rlhfkit.tuning.search import tune as search

    given = [*(overrides or [])]
    given += [] if kl is None else [f"tune.kl={kl}"]
    given += [] if trials is None else [f"tune.trials={trials}"]
    try:
        with ends_like_interrupts():
            results = search(
                recipe,
                given,
                budget_seconds=None if budget is None else seconds_in(budget),
                jobs=jobs,
                directory=study_dir,
                storage=storage,
                ray=ray,
            )
    except KeyboardInterrupt:
        typer.echo(f"\nstopped, and saved; to go on: {command_to_go_on()}", err=True)
        raise typer.Exit(130) from None
    study = StudyDir(study_dir or default_study_dir(results.name))
    print(results.words)
    print(f"{study.path} holds\n  study.html   what was found, for people\n  study.json   the same, for programs")
    if study.best.exists():
        print("  best.toml    the recipe with the winner's settings")
        print(f"next: {results.command}")
    else:
        print(f"next: open {study.page} in a browser")


def seconds_in(text: str) -> float:
    """As 2h, 90min, 1h30m or 45s; a number alone is of seconds. Raises: ConfigError."""
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    known = all((unit or "s") in UNITS for _, unit in parts)
    if not parts or not known or re.sub(r"[\d.a-z\s]", "", text.lower()):
        raise ConfigError(f"--budget {text!r}: expected a time, as 2h, 90min, 1h30m or 3600s")
    seconds = sum(float(number) * UNITS[unit or "s"] for number, unit in parts)
    if seconds <= 0:
        raise ConfigError(f"--budget {text!r}: expected more than nothing, as 2h")
    return seconds
