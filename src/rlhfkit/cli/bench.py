"""`rlhfkit bench`: fixed workloads, to compare."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    pass
from rlhfkit.cli.app import Debug, app

Workload = Literal["ppo", "generate", "cartpole"]


Size = Literal["1m", "6m", "30m", "124m", "0.5b"]


Dtype = Literal["auto", "float32", "bfloat16"]


@app.command()
def bench(
    name: Annotated[
        Workload,
        typer.Argument(
            metavar="NAME",
            help="ppo: seconds of an iteration. generate: tokens per second. cartpole: seconds until it is solved.",
        ),
    ],
    size: Annotated[
        Size, typer.Option(help="ppo, generate: parameters of the GPT-2 shape; 0.5b has Qwen2.5's.")
    ] = "6m",
    like_for_like: Annotated[
        bool, typer.Option("--like-for-like", help="ppo: float32, and a value network of its own.")
    ] = False,
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="generate: rows sampled at a time.")] = 64,
    mean_tokens: Annotated[
        int | None,
        typer.Option(min=2, metavar="N", help="generate: random lengths with this mean.", show_default=False),
    ] = None,
    episodes: Annotated[
        int | None,
        typer.Option(min=4, metavar="N", help="ppo: per iteration; by default the size's.", show_default=False),
    ] = None,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="ppo, generate: of a prompt; 32, or 128 of 0.5b.", show_default=False),
    ] = None,
    response_tokens: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="ppo, generate: of a response; 48, or 256 of 0.5b.", show_default=False),
    ] = None,
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
                prompt_tokens=prompt_tokens,
                response_tokens=response_tokens,
                tell=tell,
            )
        else:
            result = bench_generate(
                size,
                rows=rows,
                prompt_tokens=prompt_tokens,
                response_tokens=response_tokens,
                mean_tokens=mean_tokens,
                dtype=dtype or "auto",
                compiled=compiled,
                repeats=repeats,
                tell=tell,
            )
    print(_shown(result, as_json=as_json))


def _shown(result: dict[str, Any], *, as_json: bool) -> str:
    """The figures as one JSON object, or a line each."""
    if as_json:
        import json

        return json.dumps(result)
    width = max(map(len, result))
    lines = (
        f"{key:<{width}}  {value:.3f}" if isinstance(value, float) else f"{key:<{width}}  {value}"
        for key, value in result.items()
    )
    return "\n".join(lines)
