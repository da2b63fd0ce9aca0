"""Whether PPO learns the same in the fast mode (bfloat16 weights, compiled) as in plain float32: curves over seeds.

    python benchmarks/alike.py DIRECTORY RECIPE [SECTION.KEY=VALUE …] [--seeds 0 1 2] [--out docs/alike.png]

Runs the recipe in DIRECTORY/fast-SEED and DIRECTORY/plain-SEED, or goes on with what is there. Draws score and KL to
the reference of both, mean over seeds and all that lies between the lowest and the highest, and prints one JSON object:
the mean of the last quarter of the iterations, seed by seed, and whether the two ranges meet.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import matplotlib
from in_turn import RLHFKIT

matplotlib.use("Agg")
from matplotlib import pyplot

MODES = {
    "fast": ["model.dtype=bfloat16", "model.compile=true"],
    "plain": ["model.dtype=float32", "model.compile=false"],
}
METRICS = {"score/mean": "score", "ref_kl/sequence": "KL to the reference, nats"}


def curves(directory, words, seed):
    """{metric: values by iteration} of a run's PPO."""
    command = [*RLHFKIT, "run", *words, f"seed={seed}", "--run-dir", str(directory)]
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"{' '.join(command)} failed")
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["stage"] == "ppo"]
    return {name: [row[name] for row in rows] for name in METRICS}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("words", nargs="+", metavar="WORD", help="the recipe, and settings of both modes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("docs/alike.png"))
    args = parser.parse_args()
    found = {
        mode: [curves(args.directory / f"{mode}-{seed}", [*args.words, *settings], seed) for seed in args.seeds]
        for mode, settings in MODES.items()
    }
    figure, axes = pyplot.subplots(1, len(METRICS), figsize=(10, 3.6), constrained_layout=True)
    report = {}
    for plot, (name, label) in zip(axes, METRICS.items(), strict=True):
        late = {}
        for mode, runs in found.items():
            by_iteration = list(zip(*(run[name] for run in runs), strict=False))
            (line,) = plot.plot([statistics.mean(values) for values in by_iteration], label=mode)
            low, high = ([choose(values) for values in by_iteration] for choose in (min, max))
            plot.fill_between(range(len(by_iteration)), low, high, alpha=0.2, color=line.get_color(), linewidth=0)
            late[mode] = [round(statistics.mean(run[name][-len(run[name]) // 4 :]), 3) for run in runs]
        plot.set(xlabel="iteration", ylabel=label)
        plot.legend(frameon=False)
        meet = min(late["fast"]) <= max(late["plain"]) and min(late["plain"]) <= max(late["fast"])
        report[name] = {**late, "ranges_meet": meet}
    figure.savefig(args.out, dpi=110)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
