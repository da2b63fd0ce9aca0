"""`rlhfkit doctor` and `diagnose`: what is wrong before a run, and with one."""

import os
from pathlib import Path
from typing import Annotated

import typer

from rlhfkit.cli.app import Debug, RunArgument, app, existing_run, own_command

__all__ = [
    "diagnose",
]


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
    processes: Annotated[
        int, typer.Option(min=1, metavar="N", help="Try too whether so many processes can work together here.")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, as the last line.")] = False,
    debug: Debug = False,
) -> None:
    """Tell whether this machine is ready, and a recipe too.

    What is tried is thrown away. Exit code 0: no fault; 1: at least one.

    On several machines: torchrun --nnodes … -m rlhfkit doctor RECIPE
    """
    import json

    from rich.console import Console

    from rlhfkit.doctor import Finding, examine, table_of
    from rlhfkit.doctor import as_json as json_of

    if processes > 1 and "RANK" not in os.environ:
        from rlhfkit.distributed.launching import launch

        raise typer.Exit(launch(processes, own_command()))
    findings: list[Finding] = []
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # or torch, which may be what is broken, would be imported here
        from rlhfkit.distributed.joining import joined
        from rlhfkit.doctor.ranks import examine_ranks

        with joined() as here:
            findings += examine_ranks()
        if not here.is_first:
            return
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
    existing = existing_run(run)
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
