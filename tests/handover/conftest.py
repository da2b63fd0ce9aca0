import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from rlhfkit.config.load import load_recipe, resolved_json
from rlhfkit.rundir.directory import RunDir
from tests.tiny import byte_tokenizer, save_family

MEAN, STD = 0.5, 0.8
RECIPE = """
name = "small"
stages = ["sft", "reward_model", "ppo"]

[model]
path = "MODEL"
dtype = "auto"

[data]
path = "ROWS"
max_prompt_tokens = 24
demonstrations = {}
prompts = {}
preferences = {}

[rollout]
max_response_tokens = 40
temperature = 0.7
top_p = 0.9

[ppo]
iterations = 10
rollout_episodes = 64
group_size = 4
minibatch_episodes = 16
epochs = 2
microbatch_tokens = 640
clip_range = 0.15
gamma = 0.99
gae_lambda = 0.9
entropy_coef = 0.002
clip_score = 4.0
optim = { learning_rate = 3e-6, schedule = "cosine", warmup_share = 0.1, weight_decay = 0.02, adam_betas = [0.9, 0.98] }
kl = { coef = 0.07 }

[ppo.value]
clip_range = 0.3
warmup_iterations = 3
optim = { learning_rate = 7e-6, schedule = "constant", adam_eps = 1e-7, max_grad_norm = 0.5 }
"""
"""Nothing in it is a default of another tool, so that a line that is missing shows."""

ROWS = [
    {"prompt": f"Question {number}: how much?", "chosen": " One.", "rejected": " Two.", "response": " One."}
    for number in range(12)
]


def save_reward_model(family: str, directory: Path) -> Path:
    """A tiny reward model with its normalisation."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(1)
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    settings = {"normalization": {"mean": MEAN, "std": STD}, "max_tokens": 64}
    (directory / "rlhfkit_reward.json").write_text(json.dumps(settings))
    return directory


def make_run(directory: Path, family: str, text: str = RECIPE, overrides: tuple[str, ...] = ()) -> Path:
    """What a run of `text` leaves, as far as it is handed over."""
    run = RunDir(directory)
    directory.mkdir()
    rows = directory / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    run.recipe.write_text(text.replace('"MODEL"', json.dumps(str(directory / "sft"))).replace("ROWS", str(rows)))
    save_family(family, run.model("sft"))
    save_reward_model(family, run.model("reward_model"))
    run.config.write_text(resolved_json(load_recipe(run.recipe, overrides).recipe))
    run.manifest.write_text(json.dumps({"date": "2026-11-29", "stages": {}}))
    run.stages.write_text(json.dumps({"ppo": {"iterations": 10, "kl_coef": 0.21}}))
    rows_of_metrics = [{"stage": "ppo", "iteration": n, "response_tokens/mean": 20 + 8 * n} for n in (0, 1)]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows_of_metrics))
    return directory


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run; leave it as it is."""
    return make_run(tmp_path_factory.mktemp("runs") / "small", "llama")
