"""Runs in processes that are killed with SIGKILL, and what they must come to all the same.

The processes come from a fork server that has torch loaded, so that each starts in a fraction of a second.
"""

import json
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.small_recipe import small_recipe

PRETRAIN = """
[pretrain]
minibatch_sequences = 16
max_tokens = 64
checkpoint_minutes = 1e-9
"""
RECIPES = {
    "sft": small_recipe(
        "sft",
        ["pretrain", "sft"],
        PRETRAIN
        + """
[data]
max_prompt_tokens = 40
texts = { type = "grammar", num_rows = 24 }
demonstrations = { type = "grammar", num_rows = 32, seed_offset = 1 }
[sft]
minibatch_sequences = 4
max_tokens = 64
epochs = 2
checkpoint_minutes = 1e-9
""",
    ),
    "reward_model": small_recipe(
        "reward_model",
        ["pretrain", "reward_model"],
        PRETRAIN
        + """
[data]
max_prompt_tokens = 40
texts = { type = "grammar", num_rows = 24 }
preferences = { type = "grammar", num_rows = 24, seed_offset = 4 }
test_preferences = { type = "grammar", num_rows = 8, seed_offset = 5 }
prompts = { type = "grammar", num_rows = 8, seed_offset = 2 }
[reward_model]
minibatch_pairs = 2
normalization_responses = 8
checkpoint_minutes = 1e-9
""",
    ),
    "dpo": small_recipe(
        "dpo",
        ["pretrain", "dpo"],
        PRETRAIN
        + """
[data]
max_prompt_tokens = 40
texts = { type = "grammar", num_rows = 24 }
preferences = { type = "grammar", num_rows = 24, seed_offset = 4 }
test_prompts = { type = "grammar", num_rows = 4, seed_offset = 2 }
[dpo]
minibatch_pairs = 2
checkpoint_minutes = 1e-9
[evaluation]
judge = { type = "grammar" }
""",
    ),
    "raft": small_recipe(
        "raft",
        ["pretrain", "raft"],
        PRETRAIN
        + """
[data]
max_prompt_tokens = 40
texts = { type = "grammar", num_rows = 24 }
prompts = { type = "grammar", num_rows = 12, seed_offset = 2 }
[reward]
type = "function"
function = "tests.training.tiny:count_vowels"
[raft]
num_responses = 2
minibatch_prompts = 4
checkpoint_minutes = 1e-9
""",
    ),
    "ppo": small_recipe(
        "ppo",
        ["pretrain", "ppo"],
        PRETRAIN
        + """
[data]
max_prompt_tokens = 40
texts = { type = "grammar", num_rows = 24 }
prompts = { type = "grammar", num_rows = 12, seed_offset = 2 }
[reward]
type = "function"
function = "tests.training.tiny:count_vowels"
[ppo]
iterations = 6
rollout_episodes = 8
minibatch_episodes = 4
epochs = 2
min_eos_rate = 0.0
checkpoint_minutes = 1e-9
optim = { learning_rate = 1e-3 }
kl = { type = "adaptive", target = 1.0, horizon_episodes = 100 }
""",
    ),
    "control": """
name = "control"
stages = ["control"]
seed = 3
num_seeds = 2
[env]
id = "CartPole-v1"
normalize_observations = true
normalize_rewards = true
[ppo]
env_steps = 512
num_envs = 4
rollout_steps = 32
minibatch_steps = 64
epochs = 2
checkpoint_minutes = 1e-9
[evaluation]
num_episodes = 2
record = false
""",
}
"""A run of every stage that trains, each in a few seconds, with a checkpoint after every iteration."""

WRITES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["rlhfkit.pipeline.run", "rlhfkit.config.load", "tests.killing"])


def start(
    name: str,
    directory: Path,
    *,
    die_at: tuple[str, int] | None = None,
    by: int = signal.SIGKILL,
    slow_disk: bool = False,
) -> multiprocessing.context.ForkServerProcess:
    """A process that runs the recipe `name` in `directory`, from where it stopped.

    `die_at` (pattern, number): gets the signal `by` before the operation of that number on a file of the run that the
    pattern fits, as `os.rename .*SHA256SUMS`, or where HALF_LINE and HALF_TENSORS say. `slow_disk`: writing the tensors
    of a checkpoint takes a tenth of a second.
    """
    process = processes.Process(target=_run, args=(name, str(directory), die_at, by, slow_disk))
    process.start()
    return process


HALF_LINE, HALF_TENSORS = "half a line", "half the tensors"


def _run(name: str, directory: str, die_at: tuple[str, int] | None, by: int, slow_disk: bool) -> None:
    import torch

    from rlhfkit.cli import app as cli
    from rlhfkit.config.load import load_recipe
    from rlhfkit.machine.progress import Progress
    from rlhfkit.pipeline import run as pipeline
    from rlhfkit.rundir import log
    from rlhfkit.training import checkpoint

    torch.set_num_threads(1)
    recipe = Path(f"{directory}.toml")
    recipe.write_text(RECIPES[name])
    if slow_disk:
        _replace(checkpoint, "save_file", lambda write, *given: (time.sleep(0.1), write(*given)))
    if die_at is not None:
        pattern, number = die_at
        if pattern == HALF_LINE:
            _replace(log, "_append", _Countdown(number, _half_a_line))
        elif pattern == HALF_TENSORS:
            _replace(checkpoint, "save_file", _Countdown(number, _half_the_tensors))
        else:
            _die_at_operation(directory, pattern, number, by)
    pipeline.report_or_warn = lambda run_dir, warn: run_dir.report.touch()  # drawing takes longer than such a training
    if by != signal.SIGKILL:
        sys.argv = ["rlhfkit", "run", str(recipe), "--run-dir", directory]
        cli.main()
    pipeline.run(load_recipe(recipe, []), Path(directory), progress=Progress(quiet=True))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _replace(module: Any, name: str, wrapper: Callable[..., Any]) -> None:
    original = getattr(module, name)
    setattr(module, name, lambda *given: wrapper(original, *given))


class _Countdown:
    """Does as it would have been done, but the last time dies in the middle of it."""

    def __init__(self, number: int, last: Callable[..., None]) -> None:
        self.left, self.last = number, last

    def __call__(self, original: Callable[..., Any], *given: Any) -> None:
        self.left -= 1
        if self.left == 0:
            self.last(*given)
        original(*given)


def _half_a_line(file: Any, row: Any) -> None:
    file.write(json.dumps(row).encode()[:20])
    file.flush()
    die()


def _half_the_tensors(tensors: Any, path: Path) -> None:
    from safetensors.torch import save

    whole = save(tensors)
    path.write_bytes(whole[: len(whole) // 2])
    die()


def _die_at_operation(directory: str, pattern: str, number: int, by: int) -> None:
    left = number

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event not in WRITES:
            return
        operation = " ".join([event, *(str(argument) for argument in arguments[:2])])
        if directory in operation and re.fullmatch(pattern, operation):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), by)

    sys.addaudithook(hook)


TIMES = re.compile(r'"training_seconds": [\d.]+|"log": {[^}]*}')
"""What differs from one process to the next, and so does the length of lines with times in the log."""

OF_ONE_START = ("time/", "score/judge_")
"""Metrics of what a process did, not of the run: how long it took, and whom it had to ask."""


def results(directory: Path) -> dict[str, Any]:
    """All that a run makes and that must not depend on how often it was killed: models, samples, metrics."""
    found: dict[str, Any] = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_dir() or name.startswith(("tensorboard", "checkpoints", "judgements")):
            continue
        if name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{key: row[key] for key in row if not key.startswith(OF_ONE_START)} for row in rows]
        elif name in ("evaluation.json", "reward_model.json") or path.name == "training.json":
            found[name] = TIMES.sub("", path.read_text())
        elif path.suffix in (".safetensors", ".jsonl") or path.name == "policy.json":
            found[name] = path.read_bytes()
        elif path.name.startswith("."):
            found[name] = "left by a kill"
    return found


def differences(found: Path, expected: Path) -> list[str]:
    """Names of what differs between two runs; the last checkpoint of a stage counts too."""
    left, right = results(found), results(expected)
    odd = [name for name in sorted(left.keys() | right.keys()) if left.get(name) != right.get(name)]
    for path in sorted((expected / "checkpoints").rglob("tensors*.safetensors")):
        twin = found / path.relative_to(expected)
        if not twin.exists() or twin.read_bytes() != path.read_bytes():
            odd.append(str(path.relative_to(expected)))
    return odd
