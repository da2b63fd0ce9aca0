"""Seconds of a PPO iteration and peak memory: rlhfkit against TRL's PPO, in turn, on the same work.

    python -m venv .peers
    .peers/bin/pip install torch==2.13.0 "trl==1.12.0" "transformers==5.23.0" datasets accelerate
    python benchmarks/ppo.py [--size 6m|124m] [--rounds 3]

Same tokens, epochs, minibatches and model shapes. "best" is the better of TRL's two types against rlhfkit's own best
settings; "like for like" is float32 with a value network as large as the policy on both sides. Prints JSON last.
"""

import argparse
import json
import sys
from pathlib import Path

from in_turn import HERE, PEER_PYTHON, PEERS, RLHFKIT, in_turn, last_json, spread

# As many episodes, and as many in a forward and backward pass, as the peer's own defaults for the size.
WORK = {"6m": ["--batch", "64", "--microbatch", "16"], "124m": ["--batch", "16", "--microbatch", "4"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=WORK, default="6m")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured, in turn")
    parser.add_argument("--peer", type=Path, default=PEERS / "trl_ppo.py")
    parser.add_argument("--peer-python", type=Path, default=PEER_PYTHON)
    parser.add_argument("--repeats", type=int, default=5, help="iterations of rlhfkit's that count, in a round")
    args = parser.parse_args()
    for path in (args.peer, args.peer_python):
        if not path.exists():
            sys.exit(f"{path} does not exist; see --help")
    ours = [*RLHFKIT, "bench", "ppo", "--json", "--size", args.size, "--repeats", args.repeats]
    theirs = [args.peer_python, args.peer, "--size", args.size, *WORK[args.size]]
    found = in_turn(
        {
            "rlhfkit": ours,
            "rlhfkit not compiled": [*ours, "--no-compile"],
            "rlhfkit like for like": [*ours, "--like-for-like"],
            "trl float32": theirs,
            "trl bfloat16": [*theirs, "--bf16"],
        },
        rounds=args.rounds,
    )
    machine = last_json([sys.executable, HERE / "machine.py"])
    seconds = {name: spread(results, "iteration_seconds") for name, results in found.items()}
    memory = {name: spread(results, "peak_rss_mb")["median"] for name, results in found.items()}
    best_peer = min(("trl float32", "trl bfloat16"), key=lambda name: seconds[name]["median"])
    best, plain = found["rlhfkit"][0], seconds["rlhfkit not compiled"]["median"]
    saved = plain - seconds["rlhfkit"]["median"]
    compile_seconds = spread(found["rlhfkit"], "first_iteration_seconds")["high"] - seconds["rlhfkit"]["median"]
    rate = best["teraflop"] / seconds["rlhfkit"]["median"]
    report = {
        "size": args.size,
        "seconds": seconds,
        "peak_rss_mb": memory,
        "ratio_best": seconds[best_peer]["median"] / seconds["rlhfkit"]["median"],
        "ratio_like_for_like": seconds["trl float32"]["median"] / seconds["rlhfkit like for like"]["median"],
        "ratio_memory": memory[best_peer] / memory["rlhfkit"],
        "teraflops": rate,
        "share_of_machine": rate / machine["bfloat16_teraflops"],
        "machine": machine,
        "compile_seconds": compile_seconds,
        "compiling_has_paid_after_iterations": compile_seconds / saved if saved > 0 else None,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
