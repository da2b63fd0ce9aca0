"""Tokens per second of sampling with logprobs: rlhfkit against transformers' `generate`, in turn, on the same work.

    python benchmarks/generate.py [--size 6m|124m] [--rows 64] [--rounds 3]
    python benchmarks/generate.py --mean-tokens 64 --response-tokens 512     # responses of very different length
    python benchmarks/generate.py --vllm-python ENVIRONMENT/bin/python       # beside vLLM too, see docs/vllm.md

"best" compares the better type of each. Prints one JSON object last.
"""

import argparse
import json
import sys
from pathlib import Path

from in_turn import HERE, RLHFKIT, in_turn, last_json, spread


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["1m", "6m", "30m", "124m"], default="6m")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--response-tokens", type=int, default=48)
    parser.add_argument("--mean-tokens", type=int)
    parser.add_argument("--vllm-python", type=Path, help="python of an environment with vLLM")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured, in turn")
    args = parser.parse_args()
    if args.vllm_python and args.mean_tokens:
        sys.exit("--vllm-python goes without --mean-tokens; leave one of them out")
    work = ["--size", args.size, "--rows", args.rows, "--response-tokens", args.response_tokens]
    if args.mean_tokens:
        work += ["--mean-tokens", args.mean_tokens]
    programs = {
        "rlhfkit": [*RLHFKIT, "bench", "generate", "--json"],
        "transformers": [sys.executable, HERE / "transformers_generate.py"],
    }
    if args.vllm_python:
        programs["vllm"] = [args.vllm_python, HERE / "vllm_generate.py"]
    found = in_turn(
        {
            f"{name} {dtype}": [*program, *work, "--dtype", dtype]
            for name, program in programs.items()
            for dtype in ("float32", "bfloat16")
        },
        rounds=args.rounds,
    )
    machine = last_json([sys.executable, HERE / "machine.py"])
    rates = {name: spread(results, "tokens_per_second") for name, results in found.items()}
    best = {name: max(rates[f"{name} {dtype}"]["median"] for dtype in ("float32", "bfloat16")) for name in programs}
    ratios = {name: best["rlhfkit"] / rate for name, rate in best.items() if name != "rlhfkit"}
    settings = {name: value for name, value in vars(args).items() if name != "vllm_python"}
    report = {**settings, "tokens_per_second": rates, "ratio_best": ratios}
    if args.rows == 1:
        weights = 2 * found["rlhfkit bfloat16"][0]["num_parameters"] / 1e9
        rate = rates["rlhfkit bfloat16"]["median"] * weights
        report |= {"gigabytes_per_second": rate, "share_of_reading": rate / machine["read_gigabytes_per_second"]}
    print(json.dumps({**report, "machine": machine}))


if __name__ == "__main__":
    main()
