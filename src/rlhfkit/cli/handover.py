"""`rlhfkit export`, `import` and `push`: recipes in the settings of other tools and back; models to a hub."""

from pathlib import Path
from typing import Annotated

import typer

from rlhfkit.cli.app import Debug, app, program

__all__ = ["export", "import_", "push"]


@app.command()
def export(
    source: Annotated[
        str,
        typer.Argument(metavar="RUN|RECIPE", help="Run directory, recipe (its name or TOML file), or a model."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="SECTION.KEY=VALUE", help="Settings that replace the recipe's.", show_default=False),
    ] = None,
    to: Annotated[
        str, typer.Option(metavar="TOOL", help="openrlhf, verl, nemo-rl; gguf, ollama, vllm.", show_default=False)
    ] = ...,  # type: ignore[assignment]
    directory: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to write; by default exported/NAME-TOOL.")
    ] = None,
    substitute: Annotated[
        bool, typer.Option("--substitute", help="Take what is nearest for what the tool cannot say; all is listed.")
    ] = False,
    gpus: Annotated[int, typer.Option(min=1, metavar="N", help="GPUs of the machine that it will run on.")] = 1,
    response_tokens: Annotated[
        float | None,
        typer.Option(metavar="N", help="Mean length of a response; of a run what it has seen.", show_default=False),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write a recipe's PPO, or a trained model, for another tool.

    For openrlhf, verl and nemo-rl launch files with each unit translated and a comment that says from what, prompts,
    and of a run its models; what the tool cannot say is refused, with the nearest that it can. For gguf (llama.cpp),
    ollama and vllm the trained model itself.
    """
    from rlhfkit.handover.export import export_to

    print(
        export_to(
            to,
            source,
            overrides or [],
            directory=directory,
            substitute=substitute,
            gpus=gpus,
            response_tokens=response_tokens,
        )
    )


@app.command("import")
def import_(
    tool: Annotated[str, typer.Argument(metavar="TOOL", help="verl.")],
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Its configuration.")],
    to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Recipe to write; by default it is printed.", show_default=False)
    ] = None,
    response_tokens: Annotated[
        float | None, typer.Option(metavar="N", help="Mean length of a response.", show_default=False)
    ] = None,
    debug: Debug = False,
) -> None:
    """Make a recipe of verl's configuration.

    What was not understood is listed on stderr.
    """
    from rlhfkit.handover.from_verl import import_from

    made = import_from(tool, config, response_tokens=response_tokens)
    if to is None:
        print(made.text, end="")
    else:
        from rlhfkit.rundir.atomic import write_atomically

        write_atomically(to, made.text)
    for line in made.summary():
        typer.echo(line, err=True)
    if to is not None:
        print(f"{to}; next: {program()} doctor {to}")


@app.command()
def push(
    source: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="Run directory, or a model's.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository, made where there is none.")],
    public: Annotated[bool, typer.Option("--public", help="For everybody to see; by default it is private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the files, with their sizes.")] = False,
    message: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Message of the commit.", show_default=False)
    ] = None,
    debug: Debug = False,
) -> None:
    """Upload a run's policy, with its card, to the Hugging Face hub.

    HF_ENDPOINT names another hub, HF_TOKEN who you are. Data, votes and secrets do not go out with a model.
    """
    from rlhfkit.handover.push import pushed, to_push

    planned = to_push(source, repo)
    print(planned)
    if dry_run:
        print(f"nothing was sent; to {repo} it goes without --dry-run, {'public' if public else 'private'}")
        return
    address = pushed(planned, public=public, message=message)
    print(f"{address} has it; transformers loads it by its name, {repo!r}")
