"""Whether a run that is killed at a random moment ends with the bits that it would have had.

    python benchmarks/kill_and_resume.py [--stages sft reward_model ppo control] [--kills 20] [--seed 0]

A small run of each stage, once to the end; then, again and again, one that gets SIGKILL after a random share of that
time and is started again. Every other time the disk is slow, so that most kills come while a checkpoint is written.
Weights, metrics (without times), samples and the last checkpoint must be equal. Prints one JSON object a stage.
"""

import argparse
import itertools
import json
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.killing import RECIPES, differences, start


def finish(name, directory, *, slow_disk=False):
    """Seconds until the run in `directory` has ended."""
    begin = time.perf_counter()
    process = start(name, directory, slow_disk=slow_disk)
    process.join()
    if process.exitcode:
        raise SystemExit(f"{name}: the run in {directory} failed with exit code {process.exitcode}")
    return time.perf_counter() - begin


def try_stage(name, num_kills, rng, home):
    finish(name, home / "warm-up")  # the first process waits for the fork server
    seconds = {slow: finish(name, home / f"whole-{slow}", slow_disk=slow) for slow in (False, True)}
    found = {"kills": 0, "too_late": 0, "while_writing_a_checkpoint": 0, "before_a_checkpoint": 0, "different": []}
    for number in itertools.count():
        if found["kills"] == num_kills:
            break
        slow, directory = bool(number % 2), home / f"killed-{number}"
        process = start(name, directory, slow_disk=slow)
        moment = rng.uniform(0, seconds[slow])
        process.join(moment)
        process.kill()
        process.join()
        if process.exitcode != -9:
            found["too_late"] += 1
            continue
        found["kills"] += 1
        halves = list(directory.glob("checkpoints/**/.0*"))
        found["while_writing_a_checkpoint"] += bool(halves)
        found["before_a_checkpoint"] += not list(directory.glob("checkpoints/**/SHA256SUMS"))
        finish(name, directory)
        odd = differences(directory, home / "whole-False")
        if odd:
            found["different"].append({"moment_seconds": round(moment, 3), "slow_disk": slow, "files": odd})
    return {"stage": name, **found, "seconds_of_a_whole_run": round(seconds[False], 2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    is_right = True
    for name in options.stages:
        with tempfile.TemporaryDirectory() as home:
            result = try_stage(name, options.kills, random.Random(f"{options.seed} {name}"), Path(home))
        print(json.dumps(result), flush=True)
        is_right &= not result["different"]
    sys.exit(not is_right)


if __name__ == "__main__":
    main()
