"""Whether two samplers on a cluster sample twice as much as one in the same time: weak scaling of PPO's rollout.

    python benchmarks/cluster_scaling.py [--samplers 1 2] [--rows 32] [--iterations 6] [--repeats 2]

Runs PPO on a random model of 6M weights by `rlhfkit run --ray local`, with `--rows` responses of 64 tokens for each
sampler, and one thread in each process. The time is that which the trainer waits for responses: weights published,
pulled by each sampler, chunks sampled, answers back. Nothing else should run meanwhile, and each sampler needs a core.
Prints one JSON object last: seconds by number of samplers, and the efficiency, 1 being perfect.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.lines import read_lines

RECIPE = """
name = "cluster-scaling"
synthetic = true
stages = ["pretrain", "ppo"]

[model]
type = "scratch"
num_layers = 6
width = 256
num_heads = 8
vocabulary_tokens = 4096
context_tokens = 160

[data]
texts = { type = "grammar", num_rows = 64 }
prompts = { type = "grammar", num_rows = 256, seed_offset = 2 }

[rollout]
max_response_tokens = 64

[reward]
type = "grammar"

[ppo]
epochs = 1
min_eos_rate = 0.0
value = { network = "shared" }   # the update is not what is measured
"""


def waiting_seconds(samplers, args, directory):
    """Median seconds for which the trainer waits for the responses of an iteration; the first ones, which build
    models, left out."""
    (directory / "recipe.toml").write_text(RECIPE)
    rows = args.rows * samplers
    words = [
        f"cluster.samplers={samplers}",
        f"rollout.chunk_rows={args.rows // 4}",
        f"ppo.rollout_episodes={rows}",
        f"ppo.minibatch_episodes={rows}",
        f"ppo.iterations={args.iterations}",
    ]
    run = RunDir(directory / "run")
    command = [sys.executable, "-m", "rlhfkit", "run", str(directory / "recipe.toml"), "--run-dir", str(run.path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--ray", "local", *words], check=True, env=environment, stdout=subprocess.DEVNULL)
    times = [row["time/generation_seconds"] for row in read_lines(run.metrics)[0] if row["stage"] == "ppo"]
    return statistics.median(times[2:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samplers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    seconds = {samplers: [] for samplers in args.samplers}
    for _ in range(args.repeats):
        for samplers in args.samplers:
            with tempfile.TemporaryDirectory() as directory:
                seconds[samplers].append(waiting_seconds(samplers, args, Path(directory)))
            print(f"{samplers} samplers: {seconds[samplers][-1]:.2f} s", file=sys.stderr, flush=True)
    first = min(seconds[args.samplers[0]])
    efficiency = {samplers: round(first / min(times), 3) for samplers, times in seconds.items()}
    print(json.dumps({"seconds": seconds, "efficiency": efficiency, "load": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
