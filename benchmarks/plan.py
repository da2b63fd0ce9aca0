"""What `rlhfkit plan` says of PPO on this machine, beside what a run of it then takes: memory and seconds.

    python benchmarks/plan.py p1|p2 [SECTION.KEY=VALUE …] [--processes 1 2] [--shard none fsdp] [--formulas]
    python benchmarks/plan.py sentiment model.path=MODEL data.directory=DIRECTORY [--processes 1 2]

`p1` and `p2` are the workloads of `rlhfkit bench ppo` at 6m and 124m, as recipes of a few iterations. Prints a line for
each of memory and time, by formulas alone and with `--measure` (left out with `--formulas`), with the ratio of plan to
run; JSON last. Memory is that of the fullest rank. Exits with 1 where a plan with `--measure` is off by more than 15 %
in memory or 25 % in time. Nothing else should run meanwhile.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from forecast import WORKLOADS, workload

from rlhfkit.planning import plan
from rlhfkit.rundir.atomic import read_json
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.lines import read_lines

ALLOWED = {"memory": 0.15, "seconds": 0.25}
ITERATIONS = 6


def measured(words, processes, directory):
    """(most bytes that each rank held, seconds of an iteration) of a run."""
    command = [sys.executable, "-m", "rlhfkit", "run", *words, "--run-dir", directory, "--processes", processes]
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run = RunDir(directory)
    rows = [row for row in read_lines(run.metrics)[0] if row["stage"] == "ppo"]
    seconds = statistics.median(row["time/iteration_seconds"] for row in rows[1:])
    facts = read_json(run.manifest)["stages"]["ppo"]
    return [rank["measured_peak_bytes"] for rank in facts.get("ranks", [facts["memory"]])], seconds


def compare(name, words, processes, home, *, formulas_only):
    """Plan and run, in numbers; words of the recipe are as for `rlhfkit run`."""
    recipe, overrides = words[0], [f"ppo.iterations={ITERATIONS}", *words[1:]]
    plans = {" by formulas": plan(recipe, overrides, processes=processes)}
    if not formulas_only:
        plans[""] = plan(recipe, overrides, processes=processes, measure=True)
    peaks, seconds = measured([recipe, *overrides], processes, home / f"run{processes}{len(list(home.iterdir()))}")
    found = {
        "case": name,
        "processes": processes,
        "sharding": plans[" by formulas"].laid.layout.sharding,
        "load": os.getloadavg()[0],
        "measured_mb": [peak / 2**20 for peak in peaks],
        "measured_seconds": seconds,
    }
    for how, planned in plans.items():
        for key, ratio in (
            ("memory", planned.laid.memory.peak_bytes / max(peaks)),
            ("seconds", planned.laid.seconds.iteration / seconds),
        ):
            found[key + how] = ratio
            is_wrong = abs(ratio - 1) > ALLOWED[key] and not how
            shown = f"{name} x {processes} {found['sharding']}: {key + how:20}"
            print(f"  {shown} {ratio:.2f} of what was measured{'  !' * is_wrong}", flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="WORD")
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--shard", nargs="+", choices=["auto", "none", "fsdp"], default=["auto"])
    parser.add_argument("--formulas", action="store_true", help="leave the trial out")
    args = parser.parse_args()
    names = [word for word in args.words if "=" not in word]
    overrides = [word for word in args.words if "=" in word]
    results = []
    for name in names:
        with tempfile.TemporaryDirectory() as home:
            words = workload(name, Path(home)) if name in WORKLOADS else [name]
            results += [
                compare(
                    name,
                    [*words, *overrides, f"parallel.shard={shard}"],
                    processes,
                    Path(home),
                    formulas_only=args.formulas,
                )
                for processes in args.processes
                for shard in (args.shard if processes > 1 else ["auto"])
            ]
    print(json.dumps(results))
    sys.exit(any(abs(found.get(key, 1) - 1) > allowed for found in results for key, allowed in ALLOWED.items()))


if __name__ == "__main__":
    main()
