"""How the time of a PPO iteration grows with the work: episodes, length of responses, size of the model.

    python benchmarks/scaling.py [--out docs/scaling.png]

Not compiled, so that each point costs seconds. Draws three plots, each beside the line of exact proportion, and prints
one JSON object last: seconds, and the exponent of growth between the first and the last point, 1 being proportional.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import matplotlib
from in_turn import RLHFKIT, last_json

matplotlib.use("Agg")
from matplotlib import pyplot, ticker

# What a point costs, in units that time should be proportional to: tokens, or weights.
SIZES = {"1m": 1.05e6, "6m": 5.77e6, "30m": 29.4e6, "124m": 123.7e6}


def seconds(**options):
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    result = last_json([*RLHFKIT, "bench", "ppo", "--json", "--no-compile", "--repeats", "2", *words])
    print(f"{options}: {result['iteration_seconds']:.2f} s", file=sys.stderr, flush=True)
    return result["iteration_seconds"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/scaling.png"))
    args = parser.parse_args()
    # Prompts of 32 tokens come on top of the responses, and cost as much in the trunk.
    curves = {
        "episodes": {n: (n, seconds(size="6m", episodes=n)) for n in (16, 64, 256)},
        "response tokens": {
            n: (n + 32, seconds(size="6m", episodes=16, response_tokens=n)) for n in (32, 64, 128, 256, 512)
        },
        "weights": {weights: (weights, seconds(size=name, episodes=16)) for name, weights in SIZES.items()},
    }
    print(json.dumps(draw(curves, args.out)))


def draw(curves, out):
    """Plots of {name: {what stands at the axis: (work, seconds)}} in the file `out`; the numbers to print."""
    figure, axes = pyplot.subplots(1, len(curves), figsize=(12, 3.6), constrained_layout=True)
    report = {}
    for plot, (name, points) in zip(axes, curves.items(), strict=True):
        work, times = zip(*points.values(), strict=True)
        exponent = math.log(times[-1] / times[0]) / math.log(work[-1] / work[0])
        report[name] = {
            "seconds": {str(x): round(t, 3) for x, (_, t) in points.items()},
            "exponent": round(exponent, 2),
        }
        plot.loglog(list(points), times, "o-", label="measured")
        proportional = [times[0] * each / work[0] for each in work]
        plot.loglog(list(points), proportional, "--", color="grey", label="proportional")
        plot.set_xticks(list(points), labels=[f"{x:.2g}" if x >= 1e4 else str(x) for x in points])
        plot.xaxis.set_minor_locator(ticker.NullLocator())
        plot.yaxis.set_minor_formatter(ticker.NullFormatter())
        plot.set(xlabel=name, ylabel="seconds of an iteration", title=f"growth: exponent {exponent:.2f}")
        plot.legend(frameon=False)
    figure.savefig(out, dpi=110)
    return report


if __name__ == "__main__":
    main()
