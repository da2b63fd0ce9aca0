"""Killed with SIGKILL at any moment, a run ends with the bits that it would have had."""

import signal

import pytest

from tests.killing import HALF_LINE, HALF_TENSORS, RECIPES, differences, results, start

pytestmark = pytest.mark.thorough

CHECKPOINT = r".*/checkpoints.*"
MOMENTS = {
    "sft": [
        (r"os.mkdir .*/checkpoints/pretrain.*", 1),
        (HALF_LINE, 3),
        (HALF_TENSORS, 2),
        (rf"open {CHECKPOINT}/sft/\.0.*/\.SHA256SUMS.*", 3),
        (rf"os.rename {CHECKPOINT}/sft/\.0\w+\.\w+ .*", 2),
        (r"os.rename .*/\.sft\.\w+ .*", 1),
        (r"os.rename .*stages.json.* .*stages.json", 1),
    ],
    "reward_model": [
        (rf"os.rename {CHECKPOINT}/reward_model/\.0.*/\.state.json.*", 4),
        (HALF_TENSORS, 3),
        (rf"os.rmdir {CHECKPOINT}/reward_model/0.*", 2),
        (HALF_LINE, 4),
        (r"open .*/\.reward_model\..*json.*", 1),
        (r"open .*/\.reward_model.json.*", 1),
    ],
    "dpo": [
        (HALF_LINE, 8),
        (HALF_TENSORS, 3),
        (r"os.rename .*/\.dpo\.\w+ .*", 1),
        (r"os.rename .*stages.json.* .*stages.json", 1),
    ],
    "raft": [
        (HALF_LINE, 6),
        (HALF_TENSORS, 3),
        (r"os.rename .*/\.raft\.\w+ .*", 1),
    ],
    "ppo": [
        (r"os.rename .*/\.config\.json.*", 1),
        (r"os.rename .*/\.recipe\.toml.*", 1),
        (HALF_LINE, 2),
        (rf"os.mkdir {CHECKPOINT}/ppo/\.0.*", 1),
        (HALF_TENSORS, 2),
        (rf"os.rename {CHECKPOINT}/ppo/\.0.*/\.SHA256SUMS.*", 2),
        (rf"os.rmdir {CHECKPOINT}/ppo/0.*", 1),
        (r"os.mkdir .*/\.policy\..*", 1),
        (r"os.rename .*/\.policy\.\w+ .*", 1),
        (r"os.rename .*stages.json.* .*stages.json", 1),
    ],
    "control": [
        (HALF_LINE, 2),
        (HALF_TENSORS, 3),
        (rf"os.rename {CHECKPOINT}/seed-3/\.0\w+\.\w+ .*", 1),
        (r"os.mkdir .*/policy/\.seed-3.*", 1),
        (rf"os.mkdir {CHECKPOINT}/seed-4/\.0.*", 2),
        (r"os.rename .*/policy/\.seed-4.*", 1),
        (r"os.rename .*/\.evaluation.json.*", 1),
    ],
}
"""Where the first process dies, where the one that resumes it dies, and so on; the last one ends."""


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(name, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(name, whole)
    process.join()
    assert process.exitcode == 0
    for moment in MOMENTS[name]:
        process = start(name, killed, die_at=moment)
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"never came to {moment}"
    process = start(name, killed)
    process.join()
    assert process.exitcode == 0
    assert results(whole)["metrics.jsonl"]
    assert differences(killed, whole) == []
