"""Memory of each rank: what was planned, what is said where it is short, and weights that are parted by themselves."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from rlhfkit.planning import plan
from tests.tiny import save_family

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="other systems do not heed the limit"),
]

SIZES = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1408}
"""26 million weights of 4 bytes: all of them, with what learning takes, are 2,170 MiB of a process; half are 1,700."""
LIMIT_BYTES = 1750 * 2**20
"""Of what a process may write to of its own (`ulimit -d`)."""
RECIPE = """
name = "fit"
synthetic = true
stages = ["ppo"]
model = {{ path = "{model}", dtype = "float32", gradient_checkpointing = false }}
[data]
max_prompt_tokens = 24
prompts = {{ type = "grammar", num_rows = 8 }}
[reward]
type = "function"
function = "tests.distributed.test_memory_of_ranks:lengths"
[rollout]
max_response_tokens = 8
[ppo]
iterations = 2
rollout_episodes = 4
minibatch_episodes = 4
epochs = 1
min_eos_rate = 0.0
checkpoint_minutes = 1e-9
"""


if os.environ.get("RANK") == "1" and "MIB_FOR_RANK_1" in os.environ:  # where a rank loads the reward of the recipe
    in_use = int(Path("/proc/self/status").read_text().partition("VmSize:")[2].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (in_use + int(os.environ["MIB_FOR_RANK_1"]) * 2**20,) * 2)


def lengths(prompts, responses):
    return [float(len(response) + row) for row, response in enumerate(responses)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    directory = tmp_path_factory.mktemp("fit")
    model = save_family("llama", directory / "model", max_position_embeddings=64, **SIZES)
    path = directory / "recipe.toml"
    path.write_text(RECIPE.format(model=model))
    return path


def run(recipe, directory, *overrides, num=2, limit=LIMIT_BYTES, **environment):
    """How a run of the recipe has ended whose processes have `limit` each."""
    command = [sys.executable, "-m", "rlhfkit", "run", recipe, *overrides, "--run-dir", directory, "--processes", num]
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        preexec_fn=None if limit is None else lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )


def facts(directory: Path):
    return json.loads((directory / "manifest.json").read_text())


def test_a_rank_that_has_no_memory_left_is_named_with_what_it_did(recipe, tmp_path):
    """What another program takes on one of the machines: the other ranks have enough."""
    ended = run(recipe, tmp_path / "run", "parallel.shard=none", limit=None, MIB_FOR_RANK_1="700")
    assert ended.returncode == 1, ended.stderr
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, ended.stderr
    assert re.match(r"error: rank 1 of 2 \(host .*, process \d+\) in phase ppo", errors[0])
    assert "out of memory in " in errors[0] and "parallel.shard=fsdp" in errors[0]
    assert "Traceback" not in ended.stderr


def test_two_ranks_part_what_fits_into_neither_and_finish(recipe, tmp_path):
    whole = run(recipe, tmp_path / "whole", "parallel.shard=none")
    assert whole.returncode == 1 and "out of memory" in whole.stderr, whole.stderr
    ended = run(recipe, tmp_path / "run")
    assert ended.returncode == 0, ended.stderr
    assert facts(tmp_path / "run")["parallel"]["taken"] == "fsdp"
    assert "parted among the processes (FSDP): whole, they need about" in " ".join(ended.stderr.split())


@pytest.mark.parametrize(("num", "shard"), [(1, "none"), (2, "none"), (2, "fsdp")])
def test_a_rank_holds_what_was_planned(num, shard, recipe, tmp_path):
    """Within 15 %, of the fullest rank."""
    ended = run(recipe, tmp_path / "run", f"parallel.shard={shard}", num=num, limit=None)
    assert ended.returncode == 0, ended.stderr
    stage = facts(tmp_path / "run")["stages"]["ppo"]
    taken = max(each["measured_peak_bytes"] for each in stage.get("ranks", [stage["memory"]]))
    planned = plan(str(recipe), [f"parallel.shard={shard}"], processes=num).laid.memory.peak_bytes
    print(f"{num} x {shard}: {planned / 2**20:.0f} MiB planned, {taken / 2**20:.0f} MiB taken")
    assert planned == pytest.approx(taken, rel=0.15)
