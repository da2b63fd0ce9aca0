"""Sums with a reward of 1 for the right number and 0 else: python examples/06_right_answers.py [DIRECTORY].

A tiny model learns from random weights what a sum looks like, from texts that are right one time in three. PPO then
finds out what is right: it is told of each answer only whether it is. Nothing is needed, and it takes a minute.

Seeds 0, 1, 2: right answers rise from 10.9, 10.2, 6.6 % to 75.0, 70.3, 67.6 %, at about 2 nats. Without target_kl the
third went 7 nats away and came to 43.4 %. The sums are a table of 100 that is learnt by heart; none is held out.
"""

import json
import random
import sys
from itertools import product
from pathlib import Path

from rlhfkit import load_recipe
from rlhfkit.pipeline.run import run

RECIPE = """
name = "right_answers"
purpose = "Sums of two digits, with a reward of 1 for the right number"
synthetic = true
stages = ["pretrain", "ppo"]

[model]
type = "scratch"
num_layers = 2
width = 64
num_heads = 4
vocabulary_tokens = 300
context_tokens = 32
dtype = "float32"

[data]
max_prompt_tokens = 16
texts = { path = "texts.jsonl" }
prompts = { path = "prompts.jsonl" }

[pretrain]
epochs = 4
minibatch_sequences = 32
max_tokens = 32

[reward]
type = "answer"   # the last number of the response, against the row's completion
kind = "number"

[rollout]
max_response_tokens = 5
slots = 256

[ppo]
iterations = 100
rollout_episodes = 256
minibatch_episodes = 128
estimator = "rloo"
group_size = 4
epochs = 2
target_kl = 0.03
optim = { learning_rate = 2e-3 }
kl = { coef = 0.01 }
"""


def write_rows(directory: Path) -> None:
    """Texts to learn the language from, and sums with their right answers."""
    draw = random.Random(0)
    pairs = list(product(range(10), range(10)))
    texts = []
    for _ in range(4000):
        a, b = draw.choice(pairs)
        texts.append({"text": f"{a} + {b} = {a + b if draw.random() < 1 / 3 else draw.randrange(19)}"})
    rows = [{"prompt": f"{a} + {b} =", "completion": f" {a + b}"} for a, b in pairs]
    for name, lines in (("texts", texts), ("prompts", rows)):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def main(directory: Path) -> None:
    """Write rows and recipe, run it, and show how many answers were right."""
    directory.mkdir(parents=True, exist_ok=True)
    write_rows(directory)
    (directory / "recipe.toml").write_text(RECIPE.lstrip())
    run(load_recipe(directory / "recipe.toml", [f"data.directory={directory}"]), directory / "run")
    rows = map(json.loads, (directory / "run" / "metrics.jsonl").read_text().splitlines())
    for row in rows:
        if row["stage"] == "ppo" and (row["iteration"] in (0, 19, 39, 59, 79, 99)):
            right, found, nats = row["score/mean"], row["score/answered"], row["ref_kl/sequence"]
            print(f"iteration {row['iteration']:2}: right {right:.1%}  answered {found:.1%}  KL {nats:.2f} nats")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "right_answers"))
