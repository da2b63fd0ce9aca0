"""`rlhfkit average`: one reward model out of several."""

from pathlib import Path
from typing import Annotated

import typer

from rlhfkit.cli.app import Debug, app

__all__ = ["average"]

FAR_HEADS = 0.5
"""Cosine of two heads below which their mean is much shorter than they are."""


@app.command()
def average(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL…", help="Directories of reward models, of an ensemble, or of a run with one."),
    ],
    to: Annotated[Path, typer.Option(metavar="DIR", help="Where to write it.", show_default=False)],
    pairs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Preferences to measure all on; by default a run's test pairs.", show_default=False
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Average the weights of reward models.

    Of one shape, and tuned from one model; the result is a reward model like any other. All are measured on held-out
    pairs, where there are some.
    """
    from rlhfkit.models.loading import quiet_transformers
    from rlhfkit.pipeline.average import average_reward_models

    with quiet_transformers():
        found = average_reward_models(models, to, pairs=pairs)
    for path, accuracy in zip(found.members, found.accuracies, strict=False):
        print(f"{accuracy:6.1%}  {path}")
    if found.accuracy is not None:
        print(f"{found.accuracy:6.1%}  {to}, the average of {len(found.members)}, on {found.num_pairs} pairs")
    else:
        print(f"{to} is the average of {len(found.members)} reward models; give --pairs FILE to measure it")
    print(f"cosine of the weights {found.similarity:.3f}, of the heads {found.head_similarity:.3f}, at the least")
    if found.head_similarity < FAR_HEADS:
        print(
            "warning: the heads point in different directions, so that their mean says little; train the members with "
            "reward_model.ensemble.same_head = true"
        )
    if found.accuracies and found.accuracy is not None and found.accuracy < min(found.accuracies):
        print("warning: the average is right less often than its worst member; use the members' scores instead")
