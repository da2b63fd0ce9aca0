"""A gallery of broken set-ups, each of which doctor names rightly, and of healthy ones, in which it names nothing.

The model is tiny, and has learnt to write the grammar's reviews, so that it is no stranger to its own texts.
"""

import json
import shutil
from pathlib import Path

from rlhfkit.data import grammar

PRETRAIN = """
name = "letters"
stages = ["pretrain"]
[model]
type = "scratch"
num_layers = 1
width = 48
num_heads = 2
vocabulary_tokens = 400
context_tokens = 128
[data]
max_prompt_tokens = 32
texts = { type = "grammar", num_rows = 600 }
[pretrain]
epochs = 2
minibatch_sequences = 16
max_tokens = 128
optim = { learning_rate = 1e-2 }
"""


RECIPE = """
name = "reviews"
stages = ["sft", "ppo", "evaluate"]
[model]
path = "model"
[data]
directory = "."
max_prompt_tokens = 32
demonstrations = { path = "demonstrations.jsonl" }
prompts = { path = "prompts.jsonl" }
test_prompts = { path = "test_prompts.jsonl" }
[sft]
max_tokens = 128
[reward]
type = "function"
function = "gallery_rewards:praise"
[rollout]
max_response_tokens = 96
[evaluation]
judge = { type = "grammar" }
"""


CHAT = """
name = "chat"
stages = ["ppo"]
[model]
path = "chat_model"
[data]
max_prompt_tokens = 48
prompts = { path = "questions.jsonl" }
[reward]
type = "function"
function = "gallery_rewards:praise"
[rollout]
max_response_tokens = 8
[ppo]
min_eos_rate = 0.0
"""


WORLD = """
name = "world"
stages = ["ppo", "evaluate"]
[model]
path = "model"
[data]
max_prompt_tokens = 32
[env]
type = "function"
function = "gallery_worlds:{world}"
[rollout]
max_response_tokens = 8
[ppo]
min_eos_rate = 0.0
"""


CONTROL = """
name = "control"
stages = ["control"]
[env]
id = "{id}"
[ppo]
env_steps = 512
num_envs = 2
rollout_steps = 32
minibatch_steps = 32
"""


REWARDS = """
import zlib

GOOD = {"superb", "tasty", "fresh", "warm", "fine", "light", "kind", "quick", "bright", "soft", "fair", "low"}

def praise(prompts, responses):
    words = [[word.strip(".,") for word in response.split()] for response in responses]
    return [sum(word in GOOD for word in each) / max(1, len(each)) for each in words]

def blame(prompts, responses):
    return [-score for score in praise(prompts, responses)]

def length(prompts, responses):
    return [float(len(response)) for response in responses]

def brevity_of_words(prompts, responses):
    return [-float(len(response.split())) for response in responses]

def always(prompts, responses):
    return [0.5] * len(responses)

def coin(prompts, responses):
    return [zlib.crc32(response.encode()) % 1000 / 250 for response in responses]

def nan(prompts, responses):
    return [float("nan")] * len(responses)

def nan_where_long(prompts, responses):
    return [float("nan") if len(response) > 30 else 1.0 for response in responses]
"""


WORLDS = """
import random
from rlhfkit.envs.text import TextStep

class Healthy:
    def reset(self, seed):
        self.place = ("Door", "Lion", "Moon")[seed % 3]
        return f"Review of the Blue {self.place}, a pizza place:"
    def step(self, response):
        return TextStep("", float(len(response) % 3), True)

class IgnoresItsSeed(Healthy):
    def reset(self, seed):
        return super().reset(0)

class Unseeded(Healthy):
    def reset(self, seed):
        super().reset(seed)
        return f"Review of the Blue {random.random()}, a pizza place:"

class Endless(Healthy):
    def step(self, response):
        return TextStep("More:", None, False)
"""


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


PLAIN_CHAT = (
    "{% for m in messages %}"
    "{{ m['role'] }}: {{ m['content'] }}{{ eos_token if m['role'] == 'assistant' }}\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


EACH, SAID, END = "{% for m in messages %}", "{{ m['content'] }}", "{% endfor %}"


QUESTIONS = [f"Review of the {adjective} Door, a pizza place" for adjective in grammar.ADJECTIVES]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_row(pair):
    return {"prompt": pair.prompt.content, "chosen": pair.chosen, "rejected": pair.rejected}


def named(found):
    """What is named: faults and warnings."""
    return {name: finding.verdict for name, finding in found.items() if finding.verdict in ("fault", "warning")}


def copy_of_model(desk, tmp_path, name="model"):
    return Path(shutil.copytree(desk / name, tmp_path / "broken"))
