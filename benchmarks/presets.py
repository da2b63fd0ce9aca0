"""The presets of PPO side by side on one recipe: the best held-out score within a KL budget, and the seconds it took.

    python benchmarks/presets.py demo --kl 6 [--presets ppo grpo …] [--seeds 0 1 2] [--jobs 2] [SECTION.KEY=VALUE …]

Each preset has a learning rate of its own, the best of `--rates` times the recipe's on a seed that counts no further
(`--rate-seed`): a rate that suits one estimator says nothing about another. What comes before PPO is made once for each
seed. The score is the judge's where the recipe has one, on the prompts of the evaluations on the way. A run that is
there is not made again. Writes `presets.json` into `--directory` and prints a table.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rlhfkit.config.load import load_recipe
from rlhfkit.config.presets import PRESETS
from rlhfkit.pipeline.fork import fork
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.lines import read_lines
from rlhfkit.tuning.objective import points_of, score_within


class Comparison:
    """Runs of one recipe that differ in preset, learning rate and seed alone."""

    def __init__(self, recipe, overrides, directory):
        self.recipe, self.directory = recipe, directory
        loaded = load_recipe(recipe, overrides).recipe
        self.stages = list(loaded.stages[: loaded.stages.index("ppo")])
        self.rate = loaded.ppo.optim.learning_rate
        self.metric = "score" if loaded.evaluation.judge is None else "judge"
        self.overrides = list(overrides)

    def prepare(self, seed):
        """Run what comes before PPO."""
        if self.stages:
            self._run(self._base(seed), [*self.overrides, f"seed={seed}", f"stages={json.dumps(self.stages)}"])

    def _base(self, seed):
        return RunDir(self.directory / f"base-{seed}")

    def score(self, preset, factor, seed, kl):
        """(score, KL, seconds of PPO) of one run; the score is None where nothing was within the budget."""
        run = RunDir(self.directory / f"{preset}-{factor:g}-{seed}")
        words = [*self.overrides, f"seed={seed}", f"stages={json.dumps([*self.stages, 'ppo'])}"]
        words += [f"ppo.preset={preset}", f"ppo.optim.learning_rate={self.rate * factor:g}"]
        if self.stages:
            fork(self._base(seed), run, load_recipe(self.recipe, words))
        self._run(run, words)
        rows = [row for row in read_lines(run.metrics)[0] if row.get("stage") == "ppo"]
        best = score_within(points_of(rows, self.metric), kl)
        seconds = run.finished_stages()["ppo"]["seconds"]
        return (None, None, seconds) if best is None else (best.score, best.kl, seconds)

    def _run(self, run, words):
        command = [sys.executable, "-m", "rlhfkit", "run", self.recipe, *words, "--run-dir", str(run.path)]
        log = run.path.parent / f"{run.path.name}.txt"
        with log.open("w") as file:
            ended = subprocess.run(command, stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if ended.returncode:
            sys.exit(f"{' '.join(command)} failed; see {log}")


def compare(comparison, presets, *, rates, rate_seed, seeds, kl, jobs):
    """{preset: {"rate": factor, "tries": …, "scores": …, "kls": …, "seconds": …}}"""
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(comparison.prepare, [rate_seed, *seeds]))
        tries = {(preset, rate): (preset, rate, rate_seed, kl) for preset in presets for rate in rates}
        tried = dict(zip(tries, pool.map(lambda words: comparison.score(*words), tries.values()), strict=True))
        factors = {preset: max(rates, key=lambda rate: _worth(tried[preset, rate])) for preset in presets}
        runs = [(preset, factors[preset], seed, kl) for seed in seeds for preset in presets]
        found = dict(zip(runs, pool.map(lambda words: comparison.score(*words), runs), strict=True))
    return {
        preset: {
            "rate": factors[preset],
            "tries": {f"{rate:g}": tried[preset, rate][0] for rate in rates},
            "scores": [found[preset, factors[preset], seed, kl][0] for seed in seeds],
            "kls": [found[preset, factors[preset], seed, kl][1] for seed in seeds],
            "seconds": [found[preset, factors[preset], seed, kl][2] for seed in seeds],
        }
        for preset in presets
    }


def _worth(result):
    return float("-inf") if result[0] is None else result[0]


def table(results, seeds):
    """Markdown, the best mean first; a preset without a score within the budget on some seed comes last."""
    lines = ["| preset | learning rate, times the recipe's | " + " | ".join(f"seed {seed}" for seed in seeds)]
    lines[0] += " | mean | seconds of PPO |"
    lines.append("|---" * (len(seeds) + 4) + "|")
    for preset, found in sorted(results.items(), key=lambda item: -_mean(item[1]["scores"])):
        cells = [
            "none" if score is None else f"{score:.2f} at {kl:.1f}"
            for score, kl in zip(found["scores"], found["kls"], strict=True)
        ]
        mean = _mean(found["scores"])
        cells.append("none" if mean == float("-inf") else f"{mean:.2f}")
        cells.append(f"{statistics.mean(found['seconds']):.0f}")
        lines.append(f"| `{preset}` | {found['rate']:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(scores):
    return float("-inf") if None in scores else statistics.mean(scores)


def main():
    """Compare, write and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--kl", type=float, required=True, help="nats to the reference that a score may cost")
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=list(PRESETS))
    parser.add_argument("--rates", nargs="+", type=float, default=[0.3, 1.0, 3.0])
    parser.add_argument("--rate-seed", type=int, default=3)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--directory", type=Path, default=Path("runs/presets"))
    given = parser.parse_intermixed_args()
    given.directory.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(given.recipe, given.overrides, given.directory)
    results = compare(
        comparison,
        given.presets,
        rates=given.rates,
        rate_seed=given.rate_seed,
        seeds=given.seeds,
        kl=given.kl,
        jobs=given.jobs,
    )
    facts = {"command": sys.argv, "kl": given.kl, "seeds": given.seeds, "presets": results}
    (given.directory / "presets.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(table(results, given.seeds))


if __name__ == "__main__":
    main()
