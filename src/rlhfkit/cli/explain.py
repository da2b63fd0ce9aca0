"""`rlhfkit explain`: why the policy of a run answers as it does."""

from pathlib import Path
from typing import Annotated

import typer

from rlhfkit.cli.app import Debug, RunArgument, app, existing_run

__all__ = ["explain"]


@app.command()
def explain(
    run: RunArgument,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="A prompt; may be repeated. Without any, some test prompts of the recipe."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File of prompts: lines of a .txt, or rows as of data.prompts."),
    ] = None,
    num_prompts: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many of the recipe's test prompts, where none is given.")
    ] = 3,
    chat: Annotated[bool, typer.Option("--chat", help="The prompt is a user's message, not text to continue.")] = False,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="The same seed gives the same responses.")] = 0,
    debug: Debug = False,
) -> None:
    """Say why the policy answers as it does, token by token.

    What PPO changed, what it paid for, what the reward looks at. Writes explanation.html and explanation.json.
    """
    existing = existing_run(run)
    from rlhfkit.data.given import given_prompts
    from rlhfkit.pipeline.explain import explain as explained
    from rlhfkit.report.explanation_text import lines_of

    given = list(given_prompts(prompt or [], prompts)) if prompt or prompts else []
    explanation = explained(run, given, chat=chat, num_prompts=num_prompts, seed=seed)
    for line in lines_of(explanation):
        print(line)
    print(f"open {existing.explanation_page} in a browser")
