"""What `rlhfkit plan` says of PPO on this machine, beside what a run of it then takes: memory and seconds.

    python benchmarks/plan.py [p1] [p2] [--processes 1 2]
    python benchmarks/plan.py sentiment model.path=MODEL data.directory=DIRECTORY [--processes 1 2]

`p1` and `p2` are the workloads of `rlhfkit bench ppo` at 6m and 124m, as recipes of a few iterations. Prints a line for
each of memory and time, by formulas alone and with `--measure`, with the ratio of plan to run; JSON last. Exits with 1
where a plan with `--measure` is off by more than 15 % in memory or 25 % in time. Nothing else should run meanwhile.
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
    """(most bytes that the first rank held, seconds of an iteration) of a run."""
    command = [sys.executable, "-m", "rlhfkit", "run", *words, "--run-dir", directory, "--processes", processes]
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run = RunDir(directory)
    rows = [row for row in read_lines(run.metrics)[0] if row["stage"] == "ppo"]
    seconds = statistics.median(row["time/iteration_seconds"] for row in rows[1:])
    return read_json(run.manifest)["stages"]["ppo"]["memory"]["measured_peak_bytes"], seconds


def compare(name, words, processes, home):
    """Plan and run, in numbers; words of the recipe are as for `rlhfkit run`."""
    recipe, overrides = words[0], [*words[1:], f"ppo.iterations={ITERATIONS}"]
    by_formulas = plan(recipe, overrides, processes=processes)
    by_trial = plan(recipe, overrides, processes=processes, measure=True)
    peak, seconds = measured([recipe, *overrides], processes, home / f"run{processes}")
    found = {
        "case": name,
        "processes": processes,
        "load": os.getloadavg()[0],
        "measured_mb": peak / 2**20,
        "measured_seconds": seconds,
        "memory by formulas": by_formulas.laid.memory.peak_bytes / peak,
        "memory": by_trial.laid.memory.peak_bytes / peak,
        "seconds by formulas": by_formulas.laid.seconds.iteration / seconds,
        "seconds": by_trial.laid.seconds.iteration / seconds,
    }
    for key in ("memory by formulas", "memory", "seconds by formulas", "seconds"):
        is_wrong = abs(found[key] - 1) > ALLOWED.get(key, float("inf"))
        print(f"  {name} x {processes}: {key:20} {found[key]:.2f} of what was measured{'  !' * is_wrong}", flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="WORD")
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    args = parser.parse_args()
    cases = [[word] for word in args.words] if set(args.words) <= set(WORKLOADS) else [args.words]
    results = []
    for case in cases:
        with tempfile.TemporaryDirectory() as home:
            words = workload(case[0], Path(home)) if case[0] in WORKLOADS else case
            results += [compare(case[0], words, processes, Path(home)) for processes in args.processes]
    print(json.dumps(results))
    sys.exit(any(abs(found[key] - 1) > allowed for found in results for key, allowed in ALLOWED.items()))


if __name__ == "__main__":
    main()
