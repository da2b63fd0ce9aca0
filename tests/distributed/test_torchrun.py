"""What torchrun starts works on one run: the command line and Python alike."""

import json
import os
import subprocess
import sys

import pytest

from rlhfkit.distributed import joining
from rlhfkit.errors import ConfigError
from tests.killing import RECIPES
from tests.tiny import save_family

pytestmark = pytest.mark.thorough

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
SCRIPT = """
import json, os, sys
from rlhfkit import (
    PPOConfig, PPOTrainer, RewardModelConfig, RewardTrainer, RolloutConfig, SFTConfig, SFTTrainer, evaluate, sample,
)

model, out = sys.argv[1:3]
short = RolloutConfig(max_response_tokens=6)
prompts = [f"Prompt number {n}" for n in range(8)]

sft = SFTTrainer(model, demonstrations=[{"prompt": p, "response": " is good"} for p in prompts],
                 config=SFTConfig(minibatch_sequences=4, max_tokens=64))
found = {"sft": sft.train()}
pairs = [{"prompt": p, "chosen": " is good", "rejected": f" is bad {n}"} for n, p in enumerate(prompts)]
scorer = RewardTrainer(sft, preferences=pairs, prompts=prompts, rollout=short,
                       config=RewardModelConfig(minibatch_pairs=4, max_tokens=64, normalization_responses=8))
found["reward_model"] = scorer.train()
config = PPOConfig(iterations=2, rollout_episodes=8, minibatch_episodes=8, min_eos_rate=0.0)
ppo = PPOTrainer(sft, prompts=prompts, reward=scorer, config=config, rollout=short, run_dir=f"{out}/run")
found["ppo"] = list(ppo)
ppo.save(f"{out}/policy")
assert os.path.exists(f"{out}/policy/model.safetensors")
found["evaluation"] = evaluate(sft, ppo, prompts=prompts, reward=scorer, rollout=short).model_dump(mode="json")
found["sample"] = sample(f"{out}/policy", prompts[:2], max_response_tokens=4, seed=1)
config = PPOConfig(iterations=1, rollout_episodes=4, minibatch_episodes=4, min_eos_rate=0.0)
loop = PPOTrainer(sft, config=config, rollout=short)
responses = loop.sample(prompts[:4])
found["step"] = loop.step(prompts[:4], responses, [1.0, -1.0, 0.5, 0.0])
with open(f"{out}/{os.environ.get('RANK', 'alone')}.json", "w") as file:
    json.dump(found, file)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_family("llama", tmp_path_factory.mktemp("llama"), max_position_embeddings=256))


def start(command, *, expect=0, **environment):
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=180, env={**os.environ, **environment}, check=False
    )
    assert ended.returncode == expect, ended.stderr[-4000:]
    return ended


def without_times(found):
    if isinstance(found, dict):
        return {k: without_times(v) for k, v in found.items() if not k.startswith("time/") and "seconds" not in k}
    return [without_times(each) for each in found] if isinstance(found, list) else found


@pytest.mark.slow
def test_trainers_in_a_script_work_unchanged(model, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    arguments = [str(script), model, str(tmp_path)]
    alone = start([sys.executable, *arguments])
    (tmp_path / "run").rename(tmp_path / "run-alone")
    ended = start([*TORCHRUN, *arguments])
    found = [without_times(json.loads((tmp_path / f"{who}.json").read_text())) for who in ("alone", "0", "1")]
    assert found[1] == found[2]
    assert found[1]["sample"] and len(found[1]["ppo"]) == 2
    for name in ("sft", "reward_model", "step"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-2, abs=1e-3), name
    for line, expected in zip(found[1]["ppo"], found[0]["ppo"], strict=True):
        assert line == pytest.approx(expected, rel=1e-2, abs=1e-3)
    assert ended.stderr.count("fast paths") == alone.stderr.count("fast paths")  # one rank says it


FAILS = """
import os, sys
from rlhfkit import Progress, PPOConfig, PPOTrainer
import rlhfkit.training.ppo as ppo
if os.environ["RANK"] == "1":
    def update(*given): raise ZeroDivisionError("division by zero")
    ppo.update = update
PPOTrainer(sys.argv[1], prompts=["a", "b"], reward=lambda prompts, responses: [0.0 + len(r) for r in responses],
           config=PPOConfig(iterations=2, rollout_episodes=8, minibatch_episodes=8, min_eos_rate=0.0)).train()
"""


@pytest.mark.slow
def test_an_error_of_one_rank_ends_a_script_with_one_message(model, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(FAILS)
    said = start([*TORCHRUN, str(script), model], expect=1).stderr
    assert said.count("error: rank 1 of 2 (host ") == said.count("\nerror: ") == 1
    assert said.count("ZeroDivisionError: division by zero\n") == 2  # of the traceback, and of the message
    assert said.index("error: rank 1") < said.index("ChildFailedError")


@pytest.mark.slow
def test_a_mistake_that_all_make_is_said_once(model, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys\nfrom rlhfkit import PPOTrainer\nPPOTrainer(sys.argv[1], prompts=['a'])\n")
    said = start([*TORCHRUN, str(script), model], expect=1).stderr
    assert said.count("prompts without reward") == 2  # in the traceback, and in the message
    assert "error: prompts without reward" in said


def test_a_rank_that_makes_fewer_calls_is_named(model, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        FAILS.replace(
            '    def update(*given): raise ZeroDivisionError("division by zero")\n    ppo.update = update',
            "    from rlhfkit.distributed.joining import join_for_good; join_for_good(); sys.exit()",
        )
    )
    said = start([*TORCHRUN, str(script), model], expect=1).stderr
    assert "error: rank 1 of 2" in said and "every rank must make the same calls" in said


def test_the_command_line_works_and_says_its_error_first(tmp_path):
    recipe = tmp_path / "ppo.toml"
    recipe.write_text(RECIPES["ppo"])
    command = [*TORCHRUN, "-m", "rlhfkit", "run", str(recipe), "--run-dir", str(tmp_path / "run")]
    ended = start([*command, "ppo.iterations=2"])
    assert ended.stdout.count(f"{tmp_path}/run holds") == 1
    said = start([*command, "reward.function=tests.training.tiny:no_such"], expect=1).stderr
    assert said.count("\nerror: ") + said.startswith("error: ") == 1
    assert said.index("error: ") < said.index("ChildFailedError")


def test_a_group_that_somebody_else_has_made_is_refused(monkeypatch):
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(joining.dist, "is_initialized", lambda: True)
    with pytest.raises(ConfigError, match="leave it out"):
        joining.join_for_good()
