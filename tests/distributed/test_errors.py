"""An error on one of the ranks, as a user of `rlhfkit run --processes 2` sees it: one line with all."""

import os
import re
import subprocess
import sys

import pytest

from tests.tiny import save_family

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(900)]

CODE = """
import os
from rlhfkit.envs.text import TextStep

class Env:
    num_steps = 0

    def reset(self, seed):
        return "abc"

    def step(self, response):
        Env.num_steps += 1
        if os.environ.get("RANK") == "1" and Env.num_steps > 24:
            raise ValueError("the server of the game is gone")
        return TextStep("", float(len(response)), terminated=True)

num_calls = 0

def reward(prompts, responses):
    global num_calls
    num_calls += 1
    if num_calls > 4:
        raise KeyError("score")
    return [float(len(response) + row) for row, response in enumerate(responses)]
"""
RECIPE = """
name = "errors"
synthetic = true
stages = ["ppo"]
model = {{ path = "model", dtype = "float32" }}
{section}
[rollout]
max_response_tokens = 8
[ppo]
iterations = 1000
rollout_episodes = 8
minibatch_episodes = 8
min_eos_rate = 0.0
"""
ENV = 'env = { type = "function", function = "bad:Env" }'
REWARD = (
    'reward = { type = "function", function = "bad:reward" }\ndata = { prompts = { type = "grammar", num_rows = 8 } }'
)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        # An environment is played by every rank; a function as the reward is called by the first one, for all.
        (
            ENV,
            r"error: rank 1 of 2 \(host .*, process \d+\) in phase ppo / .*ValueError: the server of the game is gone",
        ),
        (REWARD, r"error: bad:reward raised KeyError: 'score' \(at .*bad.py:23\); correct the function"),
    ],
    ids=["environment", "reward"],
)
def test_what_the_users_code_raises_is_one_line(section, words, tmp_path):
    save_family("llama", tmp_path / "model", max_position_embeddings=128)
    (tmp_path / "bad.py").write_text(CODE)
    (tmp_path / "recipe.toml").write_text(RECIPE.format(section=section))
    ended = subprocess.run(
        [sys.executable, "-m", "rlhfkit", "run", "recipe.toml", "--run-dir", "run", "--processes", "2"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    assert ended.returncode == 1, ended.stderr
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and re.match(words, errors[0]), ended.stderr
    assert "Traceback" not in ended.stderr and "terminate" not in ended.stderr
