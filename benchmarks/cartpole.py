"""Seconds until CartPole-v1 is solved: rlhfkit against Stable-Baselines3, seed by seed in turn, in one run.

    python benchmarks/cartpole.py [--seeds 5] [--peer ../shared/peers/sb3_cartpole.py]

Both by the same rule (mean return of the deterministic policy over 100 episodes at least 475, looked at every 8,192
steps, the looks not counted), each with its own tuned settings, one thread. Prints one JSON object at the end.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEER = HERE.parents[1] / "shared" / "peers" / "sb3_cartpole.py"


def last_json(command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return json.loads(output.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--peer", type=Path, default=PEER)
    parser.add_argument("--rounds", type=int, default=2, help="how often both are measured, in turn")
    args = parser.parse_args()
    if not args.peer.exists():
        sys.exit(f"{args.peer} does not exist; give the peer's script with --peer")
    ours, theirs = [], []
    for _ in range(args.rounds):
        ours.append(
            last_json([sys.executable, "-m", "rlhfkit", "bench", "cartpole", "--seeds", str(args.seeds), "--json"])
        )
        print(json.dumps(ours[-1]), flush=True)
        theirs.append(last_json([sys.executable, str(args.peer), "--seeds", str(args.seeds)]))
        print(json.dumps(theirs[-1]), flush=True)
    seconds = [[run["seconds_to_solve"] for run in runs] for runs in (ours, theirs)]
    print(
        json.dumps(
            {
                "rlhfkit_seconds": seconds[0],
                "peer_seconds": seconds[1],
                "ratio": statistics.median(seconds[1]) / statistics.median(seconds[0]),
                "rlhfkit_solved": [f"{run['solved']}/{run['seeds']}" for run in ours],
                "peer_solved": [f"{run['solved']}/{run['seeds']}" for run in theirs],
                "rlhfkit_env_steps_per_second": [round(run["env_steps_per_second"]) for run in ours],
                "peer_env_steps_per_second": [round(run["steps_to_solve"] / run["seconds_to_solve"]) for run in theirs],
            }
        )
    )


if __name__ == "__main__":
    main()
