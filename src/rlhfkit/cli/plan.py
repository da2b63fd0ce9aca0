"""`rlhfkit plan`: what a recipe takes on some machine."""

from typing import Annotated

import typer

from rlhfkit.cli.app import Debug, app

__all__ = ["plan"]


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name, or a TOML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="SECTION.KEY=VALUE", help="Settings that replace the recipe's.", show_default=False),
    ] = None,
    gpus: Annotated[str, typer.Option(metavar="NxKIND", help="As 8xH100 or L4; cpu is this machine.")] = "cpu",
    model: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Plan with this model: 8B, a directory, a hub id.", show_default=False),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Ranks; by default one a GPU.", show_default=False)
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0, metavar="AMOUNT", help="Of a GPU-hour.", show_default=False)
    ] = None,
    response_tokens: Annotated[
        float | None,
        typer.Option(metavar="N", help="Mean length of a response; by default the limit.", show_default=False),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Try a little of the recipe here in place of assumptions: a minute or two."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    debug: Debug = False,
) -> None:
    """Tell what PPO of a recipe takes: memory, seconds, price.

    No weights and no GPUs are needed. Where it does not fit, changes that make it fit are named. Exit code 0: it fits.
    """
    from rlhfkit.planning import lines_of
    from rlhfkit.planning import plan as plan_of

    found = plan_of(
        recipe,
        overrides or [],
        gpus=gpus,
        model=model,
        processes=processes,
        price=price,
        response_tokens=response_tokens,
        measure=measure,
    )
    if as_json:
        import json

        print(json.dumps(found.as_dict(), ensure_ascii=False))
    else:
        print("\n".join(lines_of(found)))
    if not found.fits:
        raise typer.Exit(1)
