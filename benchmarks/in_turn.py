"""Runs programs in turn, several rounds of them, and reads the JSON object that each prints last."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEERS = HERE.parents[1] / "shared" / "peers"
PEER_PYTHON = HERE.parent / ".peers" / "bin" / "python"
RLHFKIT = [sys.executable, "-m", "rlhfkit"]


def last_json(command, **environment):
    """The last line of the program's output, as an object."""
    try:
        output = subprocess.run(
            [str(word) for word in command],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
        ).stdout
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{error.stderr[-2000:]}")
    return json.loads(output.strip().splitlines()[-1])


def in_turn(commands, *, rounds):
    """{name: what each round printed}; one round runs every command once, so that a busy spell hits all alike."""
    found = {name: [] for name in commands}
    for number in range(rounds):
        for name, command in commands.items():
            result = last_json(command, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
            found[name].append(result)
            print(f"round {number + 1}, {name}: {json.dumps(result)}", file=sys.stderr, flush=True)
    return found


def spread(results, key):
    """(median, lowest, highest) over the rounds."""
    values = [result[key] for result in results]
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}
