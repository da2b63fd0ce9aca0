"""A gallery of broken set-ups, each of which doctor names rightly, and of healthy ones, in which it names nothing.

The model is tiny, and has learnt to write the grammar's reviews, so that it is no stranger to its own texts.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from gymnasium.envs.registration import register, registry
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rlhfkit.config.load import load_recipe
from rlhfkit.data import grammar
from rlhfkit.doctor.first_rollout import examine_numbers, examine_temperature, try_prompts
from rlhfkit.doctor.recipe import examine_recipe
from rlhfkit.machine.progress import Progress
from rlhfkit.models.language import TextPolicy
from rlhfkit.models.policy import PolicyOutput
from rlhfkit.pipeline import run as pipeline
from rlhfkit.pipeline.build import train_tokenizer
from rlhfkit.records import Prompt
from rlhfkit.rollout.generation import generate
from tests import tiny

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


# ── the desk ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def desk(tmp_path_factory):
    """A folder with a trained tiny model, data, rewards and environments; cases take copies of what they break."""
    path = tmp_path_factory.mktemp("gallery")
    (path / "pretrain.toml").write_text(PRETRAIN)
    pipeline.run(load_recipe(path / "pretrain.toml"), path / "run", progress=Progress(quiet=True))
    shutil.copytree(path / "run" / "base", path / "model")
    shutil.copytree(path / "model", path / "chat_model")
    tokenizer = AutoTokenizer.from_pretrained(path / "model")
    tokenizer.chat_template = PLAIN_CHAT
    tokenizer.save_pretrained(path / "chat_model")
    (path / "gallery_rewards.py").write_text(REWARDS)
    (path / "gallery_worlds.py").write_text(WORLDS)
    demonstrations = [
        {"prompt": row.prompt.content, "completion": row.response} for row in grammar.demonstrations(64, 1)
    ]
    write(path / "demonstrations.jsonl", demonstrations)
    write(path / "prompts.jsonl", [{"prompt": row.content} for row in grammar.prompts(48, 2)])
    write(path / "test_prompts.jsonl", [{"prompt": row.content} for row in grammar.prompts(24, 3)])
    for name, seed in (("preferences", 4), ("test_preferences", 5)):
        write(path / f"{name}.jsonl", [as_row(pair) for pair in grammar.preferences(64, seed)])
    write(path / "questions.jsonl", [{"prompt": [{"role": "user", "content": text}]} for text in QUESTIONS])
    (path / "reviews.toml").write_text(RECIPE)
    (path / "chat.toml").write_text(CHAT)
    return path


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_row(pair):
    return {"prompt": pair.prompt.content, "chosen": pair.chosen, "rejected": pair.rejected}


@pytest.fixture
def examine(desk, monkeypatch, tmp_path):
    """Findings on a recipe, by name; of several with the same name, the gravest."""
    monkeypatch.chdir(desk)
    monkeypatch.setattr(sys, "path", [str(desk), *sys.path])

    def examine(recipe="reviews.toml", *overrides, run_dir=None):
        if "\n" in recipe:
            (tmp_path / "recipe.toml").write_text(recipe)
            recipe = tmp_path / "recipe.toml"
        gravity = ("ok", "skipped", "warning", "fault")
        found = sorted(
            examine_recipe(load_recipe(recipe, overrides), run_dir or tmp_path / "run"),
            key=lambda finding: gravity.index(finding.verdict),
        )
        return {finding.name: finding for finding in found}

    return examine


def named(found):
    """What is named: faults and warnings."""
    return {name: finding.verdict for name, finding in found.items() if finding.verdict in ("fault", "warning")}


def copy_of_model(desk, tmp_path, name="model"):
    return Path(shutil.copytree(desk / name, tmp_path / "broken"))


# ── healthy ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.thorough
def test_a_healthy_recipe_of_all_stages_is_not_accused(examine):
    found = examine()
    assert named(found) == {}
    assert found["model.temperature"].verdict == found["model.padding"].verdict == "ok"
    assert found["reward.length"].verdict == "ok"


@pytest.mark.thorough
def test_a_healthy_recipe_of_chats_is_not_accused(examine):
    found = examine("chat.toml")
    assert named(found) == {}
    assert found["model.template"].verdict == "ok"


@pytest.mark.thorough
def test_a_healthy_recipe_with_preferences_and_temperature_is_not_accused(examine):
    found = examine(
        "reviews.toml",
        "data.preferences.path=preferences.jsonl",
        "data.test_preferences.path=test_preferences.jsonl",
        'stages=["sft", "reward_model", "ppo", "evaluate"]',
        "rollout.temperature=0.7",
        "rollout.top_p=0.9",
    )
    assert named(found) == {}
    assert found["reward.accuracy"].verdict == "ok"


@pytest.mark.thorough
def test_a_healthy_environment_is_not_accused(examine):
    found = examine(WORLD.format(world="Healthy"))
    assert named(found) == {}
    assert found["environment.episodes"].verdict == "ok"


@pytest.mark.thorough
@pytest.mark.parametrize("recipe", ["demo", "guess", "cartpole"])
def test_healthy_shipped_recipes_are_not_accused(examine, recipe):
    assert named(examine(recipe)) == {}


@pytest.mark.thorough
def test_a_finished_run_is_looked_at_where_it_stands(examine, desk):
    found = examine("pretrain.toml", run_dir=desk / "run")
    assert named(found) == {}
    assert "pretrain" in found["recipe.run_directory"].seen
    assert found["model.likelihood"].verdict == "ok"


# ── broken models and tokenizers ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.thorough
def test_pad_that_is_eos_is_named(examine, desk, tmp_path):
    model = copy_of_model(desk, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(model)
    found = examine("reviews.toml", f"model.path={model}")
    assert named(found) == {"model.pad_and_eos": "warning"}
    assert "PAD equal to EOS" in found["model.pad_and_eos"].seen


@pytest.mark.thorough
def test_another_eos_than_the_models_is_named(examine, desk, tmp_path):
    model = copy_of_model(desk, tmp_path)
    for name in ("config.json", "generation_config.json"):
        config = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps(config | {"eos_token_id": 77}))
    found = examine("reviews.toml", f"model.path={model}")
    assert named(found) == {"model.vocabulary": "warning"}
    assert "config.json says 77" in found["model.vocabulary"].seen


@pytest.mark.thorough
def test_a_larger_tokenizer_of_another_model_is_named(examine, desk, tmp_path):
    model = copy_of_model(desk, tmp_path)
    texts = [f"The quick {word} fox jumps over {word}{word} lazy dogs" for word in ("brown", "grey", "white")] * 9
    train_tokenizer([*texts, *(Path(os.__file__).read_text().splitlines())], 600).save_pretrained(model)
    found = examine("reviews.toml", f"model.path={model}")
    assert named(found)["model.vocabulary"] == "fault"
    assert "600 tokens, 400 embeddings: 200 tokens have none" in found["model.vocabulary"].seen


@pytest.mark.thorough
def test_a_tokenizer_of_another_model_and_the_same_size_is_named(examine, desk, tmp_path):
    model = copy_of_model(desk, tmp_path)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    ordinary = [token for token in vocabulary if not token.startswith("<|")]
    numbers = [vocabulary[token] for token in ordinary]
    for token, number in zip(ordinary, numbers[100:] + numbers[:100], strict=True):
        vocabulary[token] = number
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = examine("reviews.toml", f"model.path={model}")
    assert named(found)["model.likelihood"] == "fault"
    assert "the tokenizer of another model" in found["model.likelihood"].seen


@pytest.mark.thorough
def test_weights_that_were_never_trained_are_named(examine, desk, tmp_path):
    model = copy_of_model(desk, tmp_path)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig.from_pretrained(model)).save_pretrained(model)
    found = examine("reviews.toml", f"model.path={model}")
    assert found["model.likelihood"].verdict in ("warning", "fault")
    assert "untrained" in found["model.likelihood"].seen


def test_weights_that_are_nan_are_named(examine, desk, tmp_path):
    model = copy_of_model(desk, tmp_path)
    weights = load_file(model / "model.safetensors")
    save_file(
        {name: weight * float("nan") for name, weight in weights.items()}, model / "model.safetensors", {"format": "pt"}
    )
    found = examine("reviews.toml", f"model.path={model}")
    assert "fault" in named(found).values()
    assert any(name.startswith("model.") for name in named(found))


def test_pickled_weights_are_named(examine, desk, tmp_path):
    model = copy_of_model(desk, tmp_path)
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    found = examine("reviews.toml", f"model.path={model}")
    assert named(found) == {"model.files": "fault"}
    assert "safetensors" in found["model.files"].seen + found["model.files"].remedy


@pytest.mark.thorough
def test_a_model_that_is_not_there_is_named(examine):
    found = examine("reviews.toml", "model.path=modell")
    assert named(found) == {"model.files": "fault"}
    assert "did you mean model?" in found["model.files"].seen + found["model.files"].remedy


def test_a_context_that_is_too_small_is_named(examine):
    found = examine("reviews.toml", "rollout.max_response_tokens=200")
    assert named(found) == {"model.files": "fault"}
    assert "leaves no room for a prompt in the model's context of 128" in found["model.files"].seen


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is one")
def test_a_device_that_is_not_there_is_named(examine):
    found = examine("reviews.toml", "model.device=mps")
    assert named(found) == {"model.device": "fault"}


@pytest.mark.thorough
def test_what_a_model_at_fault_hides_is_skipped(examine):
    found = examine("reviews.toml", "model.path=modell")
    assert "there is no such directory (did you mean model?)" in found["model.files"].seen
    assert {name for name, finding in found.items() if finding.verdict == "skipped"} >= {
        "data.lengths",
        "model.weights",
    }
    assert found["reward.scores"].verdict == "ok"  # on the responses that the data hold


@pytest.mark.thorough
def test_code_that_comes_with_a_model_is_named(examine):
    assert named(examine("reviews.toml", "model.trust_remote_code=true")) == {"model.remote_code": "warning"}


@pytest.mark.thorough
def test_a_model_that_never_ends_is_named(examine, desk, tmp_path):
    model = copy_of_model(desk, tmp_path, "chat_model")
    short = ("ppo.min_eos_rate=0.05", "rollout.max_response_tokens=2", "reward.function=gallery_rewards:coin")
    found = examine("chat.toml", f"model.path={model}", *short)
    assert named(found) == {"model.ending": "warning"}
    assert "% of 24 responses end within 2 tokens" in found["model.ending"].seen


# ── templates ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("template", "verdict", "words"),
    [
        (CHATML, "fault", "<|im_start|>, <|im_end|> are no token of this tokenizer"),
        (f"{EACH}{{{{ m['role'] }}}}:{END}assistant:", "fault", "what the user says is not in what it writes"),
        (
            f"{EACH}{{% if m['role'] == 'user' %}}{SAID}{{% endif %}}{END}\nA:",
            "fault",
            "what the assistant says is not in what it writes",
        ),
        (f"{EACH}{SAID}\n{END}", "warning", "may go on as the user"),
    ],
    ids=["another model's", "without the user", "without the assistant", "without a beginning"],
)
def test_a_wrong_template_is_named(examine, tmp_path, template, verdict, words):
    (tmp_path / "template.jinja").write_text(template)
    template_file = f"model.chat_template={tmp_path / 'template.jinja'}"
    found = examine("chat.toml", template_file, "reward.function=gallery_rewards:coin")
    assert named(found) == {"model.template": verdict}
    assert words in found["model.template"].seen


def test_a_turn_that_ends_in_another_token_than_eos_ends_a_response(examine, desk, tmp_path):
    model = copy_of_model(desk, tmp_path, "chat_model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(model)
    grown = LlamaForCausalLM.from_pretrained(model)
    grown.resize_token_embeddings(len(tokenizer))
    grown.save_pretrained(model)
    found = examine("chat.toml", f"model.path={model}", "reward.function=gallery_rewards:coin")
    assert named(found) == {}
    assert "<|im_end|> ends a response" in found["model.template"].seen


def test_a_template_that_refuses_the_data_is_named(examine, tmp_path):
    (tmp_path / "template.jinja").write_text("{{ raise_exception('no users here') }}")
    found = examine("chat.toml", f"model.chat_template={tmp_path / 'template.jinja'}")
    assert named(found).get("data.prompts") == "fault"
    assert "no users here" in found["data.prompts"].seen


def test_bos_that_stands_twice_is_named(examine, desk, tmp_path):
    model = copy_of_model(desk, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.bos_token = "a"
    number = tokenizer.convert_tokens_to_ids("a")
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="a a $A", special_tokens=[("a", number)])
    tokenizer.save_pretrained(model)
    found = examine("reviews.toml", f"model.path={model}")
    assert found["model.first_prompt"].verdict == "warning"
    assert found["model.first_prompt"].seen.startswith("BOS stands twice")


# ── sampling and training ────────────────────────────────────────────────────────────────────────────────────────────


PROMPTS = ("a", "Once upon a time", "be", "There was")


@pytest.fixture
def language_model(directory_of):
    return tiny.load(directory_of("llama"))


def trial_of(model, *, policy=None, temperature=1.0, claimed=None):
    """A trial of `model`, whose recipe says `claimed` where its policy works at `temperature`."""
    policy = policy or TextPolicy(model, None, temperature=temperature)
    settings = tiny.RolloutConfig(max_response_tokens=12, temperature=claimed or temperature)
    return try_prompts(
        policy,
        lambda sequences: model.logprobs(sequences, temperature=policy.temperature),
        [model.encoder.encode(Prompt(text), max_tokens=24) for text in PROMPTS],
        reward=None,
        rollout=settings,
        ppo=tiny.PpoConfig(),
        seed=0,
    )


def verdicts(findings):
    return {finding.name: finding.verdict for finding in findings}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_healthy_sampling_is_not_accused(language_model, temperature):
    trial = trial_of(language_model, temperature=temperature)
    assert set(verdicts([*examine_numbers(trial), *examine_temperature(trial)]).values()) == {"ok"}


def test_dropout_that_is_on_is_named(language_model):
    generator = torch.Generator().manual_seed(0)

    def drop(module, arguments, output):
        return output * (torch.rand(output.shape, generator=generator) > 0.1)

    language_model.causal_lm.model.layers[0].mlp.register_forward_hook(drop)
    found = list(examine_numbers(trial_of(language_model)))
    assert verdicts(found)["model.dropout"] == "fault"
    assert [finding.name for finding in found if finding.verdict == "fault"] == ["model.dropout"]
    assert "is dropout on?" in found[0].seen


class SeesPadding(TextPolicy):
    """A policy whose logprobs depend on how much padding stands in its rows."""

    def evaluate(self, inputs):
        output = super().evaluate(inputs)
        padding = (inputs.trimmed().ids == tiny.PAD).sum(1)[:, None]
        return PolicyOutput(output.logprobs + 0.1 * padding * inputs.mask, output.entropy, output.values)


def test_a_model_that_sees_its_padding_is_named(language_model):
    trial = trial_of(language_model, policy=SeesPadding(language_model, None, temperature=1.0))
    assert verdicts(examine_numbers(trial))["model.padding"] == "fault"


def test_a_temperature_that_training_does_not_apply_is_named(language_model):
    trial = trial_of(language_model, temperature=1.0, claimed=0.5)
    (found,) = examine_temperature(trial)
    assert found.verdict == "fault"
    assert "training's logprobs are not those of the logits divided by 0.5" in found.seen


def hot(model, prompts, rollout, *, seeds):
    """A sampler that knows no other temperature than 1."""
    return generate(model, prompts, rollout.model_copy(update={"temperature": 1.0}), seeds=seeds)


def test_a_temperature_that_sampling_does_not_apply_is_named(language_model):
    (found,) = examine_temperature(trial_of(language_model, temperature=0.5), sample=hot)
    assert found.verdict == "fault"
    assert "the sampler works at another temperature" in found.seen


# ── broken rewards ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_reward_that_the_model_seldom_reaches_is_told_from_one_that_is_constant(examine):
    found = examine("reviews.toml", "reward={type='match'}", 'stages=["ppo"]', "evaluation.num_prompts=1")
    assert found["reward.trial"].verdict == "fault"  # the rows give no right response
    rows = ("data.prompts.path=demonstrations.jsonl", "ppo.min_eos_rate=0")
    found = examine("reviews.toml", "reward={type='match'}", 'stages=["ppo"]', *rows)
    assert named(found) == {"reward.scores": "warning"}
    assert "while responses of the data score 0 to 1" in found["reward.scores"].seen


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("function", "name", "words"),
    [
        ("length", "reward.length", "the longer, the better, and hardly anything else counts"),
        ("brevity_of_words", "reward.length", "the shorter, the better, and hardly anything else counts"),
        ("always", "reward.scores", "all 16 responses of the model score 0.5, so there is nothing to learn"),
        ("nan", "reward.trial", "returned nan for response 0"),
        ("nan_where_long", "reward.scores", "scores are not finite"),
    ],
)
def test_a_broken_reward_is_named(examine, function, name, words):
    found = examine("reviews.toml", f"reward.function=gallery_rewards:{function}")
    assert named(found) == {name: "fault"}
    assert words in found[name].seen
    assert found["model.padding"].verdict == "ok"  # the model is looked at all the same


def test_a_reward_of_the_wrong_sign_is_named_by_peoples_pairs(examine):
    found = examine(
        "reviews.toml",
        "reward.function=gallery_rewards:blame",
        "data.preferences.path=preferences.jsonl",
        "data.test_preferences.path=test_preferences.jsonl",
        'stages=["sft", "reward_model", "ppo", "evaluate"]',
    )
    assert named(found) == {"reward.accuracy": "fault"}
    assert "it prefers what people rejected" in found["reward.accuracy"].seen


def test_a_reward_that_knows_no_more_than_a_coin_is_named(examine):
    found = examine(
        "reviews.toml",
        "reward.function=gallery_rewards:coin",
        "data.preferences.path=preferences.jsonl",
        "data.test_preferences.path=test_preferences.jsonl",
        'stages=["sft", "reward_model", "ppo", "evaluate"]',
    )
    assert named(found) == {"reward.accuracy": "warning"}
    assert "not clearly better than a coin" in found["reward.accuracy"].seen


def test_penalties_that_hide_the_reward_are_named(examine):
    found = examine("chat.toml", "rollout.max_response_tokens=24", "ppo.missing_eos_score=-1")
    assert named(found) == {"reward.penalties": "warning"}
    assert "after clip_score and penalties all 16 are -1" in found["reward.penalties"].seen


def test_a_reward_is_tried_on_the_datas_texts_where_no_model_can_answer(examine):
    scratch = 'model={type="scratch", context_tokens=192}'
    stages = 'stages=["pretrain", "sft", "ppo", "evaluate"]'
    texts = 'data.texts={type="grammar", num_rows=32}'
    assert named(examine("reviews.toml", scratch, stages, texts)) == {}
    found = examine("reviews.toml", scratch, stages, texts, "reward.function=gallery_rewards:length")
    assert named(found) == {"reward.length": "fault"}
    found = examine("reviews.toml", scratch, stages, texts, "reward.function=gallery_rewards:always")
    assert named(found) == {"reward.scores": "fault"}


# ── broken data ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_leaked_test_rows_are_named_in_other_letters_too(examine, desk, tmp_path):
    train = [json.loads(line)["prompt"] for line in (desk / "prompts.jsonl").read_text().splitlines()]
    test = write(tmp_path / "test.jsonl", [{"prompt": f"{text.upper()} "} for text in train[:24]])
    found = examine(
        "reviews.toml",
        f"data.test_prompts.path={test}",
        "evaluation.judge.type=bag_of_words",
        "evaluation.judge.path=x",
    )
    assert found["data.leakage"].verdict == "fault"
    assert "24 of 24 test prompts are among the prompts" in found["data.leakage"].seen


def test_leaked_pairs_are_named_the_other_way_round_too(examine, desk, tmp_path):
    pairs = [json.loads(line) for line in (desk / "preferences.jsonl").read_text().splitlines()]
    turned = [{**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in pairs[:16]]
    test = write(tmp_path / "test.jsonl", turned)
    found = examine(
        "reviews.toml",
        "data.preferences.path=preferences.jsonl",
        f"data.test_preferences.path={test}",
        'stages=["sft", "reward_model", "ppo", "evaluate"]',
    )
    assert found["data.leakage"].verdict == "fault"
    assert "16 of 16 test preferences are among the preferences" in found["data.leakage"].seen


def test_demonstrations_whose_eos_is_cut_off_are_named(examine):
    found = examine("reviews.toml", "sft.max_tokens=40")
    assert named(found) == {"data.ends": "fault"}
    assert "0.0% of the demonstrations end with EOS within 40 tokens" in found["data.ends"].seen


def test_eos_that_is_spelt_out_is_named(examine, desk, tmp_path):
    rows = [json.loads(line) for line in (desk / "demonstrations.jsonl").read_text().splitlines()]
    spelt = write(tmp_path / "spelt.jsonl", [{**row, "completion": row["completion"] + "<|eos|>"} for row in rows])
    found = examine("reviews.toml", f"data.demonstrations.path={spelt}")
    assert named(found)["data.spelt_out_eos"] == "warning"
    assert "64 of 64 demonstrations hold the letters '<|eos|>'" in found["data.spelt_out_eos"].seen


def test_responses_that_are_longer_than_ppos_are_named(examine):
    found = examine("reviews.toml", "rollout.max_response_tokens=16")
    assert named(found) == {"data.response_length": "fault"}


def test_copied_demonstrations_are_named(examine, desk, tmp_path):
    lines = (desk / "demonstrations.jsonl").read_text().splitlines()
    copied = tmp_path / "copied.jsonl"
    copied.write_text("\n".join(lines[:32] * 2) + "\n")
    found = examine("reviews.toml", f"data.demonstrations.path={copied}")
    assert named(found) == {"data.demonstrations": "warning"}
    assert "50.0% are repeated" in found["data.demonstrations"].seen


def pairs_recipe(path):
    return (
        "reviews.toml",
        f"data.preferences.path={path}",
        'stages=["sft", "reward_model", "ppo", "evaluate"]',
    )


def test_pairs_that_contradict_each_other_are_named(examine, desk, tmp_path):
    pairs = [json.loads(line) for line in (desk / "preferences.jsonl").read_text().splitlines()]
    turned = [{**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in pairs[:32]]
    found = examine(*pairs_recipe(write(tmp_path / "pairs.jsonl", pairs + turned)))
    assert found["data.preferences"].verdict == "warning"
    assert "66.7% of the pairs are there the other way round too" in found["data.preferences"].seen


def test_pairs_that_go_by_length_are_named(examine, desk, tmp_path):
    pairs = [json.loads(line) for line in (desk / "preferences.jsonl").read_text().splitlines()]
    by_length = [
        {**pair, **dict(zip(("rejected", "chosen"), sorted((pair["chosen"], pair["rejected"]), key=len), strict=True))}
        for pair in pairs
    ]
    found = examine(*pairs_recipe(write(tmp_path / "pairs.jsonl", by_length)))
    assert found["data.choice_by_length"].verdict == "warning"
    assert "so a reward model can learn length and little else" in found["data.choice_by_length"].seen


def test_a_bad_row_is_named_with_its_place(examine, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Review of the Blue Door, a pizza place:"}\n{"prompt": ""}\n')
    found = examine("reviews.toml", f"data.prompts.path={rows}")
    assert named(found)["data.prompts"] == "fault"
    assert "rows.jsonl:2" in found["data.prompts"].seen


def test_prompts_that_lose_most_of_their_text_are_named(examine):
    found = examine("reviews.toml", "data.max_prompt_tokens=4")
    assert found["data.lengths"].verdict == "warning"
    assert "data.max_prompt_tokens = 4" in found["data.lengths"].seen


# ── broken environments ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("world", "name", "verdict", "words"),
    [
        ("IgnoresItsSeed", "environment.episodes", "warning", "the environment ignores its seed"),
        ("Unseeded", "environment.contract", "fault", "gave another episode"),
        ("Endless", "environment.contract", "fault", "the reward of a step is None"),
    ],
)
def test_a_broken_text_environment_is_named(examine, world, name, verdict, words):
    found = examine(WORLD.format(world=world))
    assert named(found) == {name: verdict}
    assert words in found[name].seen


@pytest.fixture
def control_envs():
    """Environments of Gymnasium's kind, registered for one test."""
    names = ("Healthy", "IgnoresItsSeed", "Unseeded", "Huge")
    for name in names:
        register(f"Gallery{name}-v0", entry_point=f"tests.gallery_envs:{name}", max_episode_steps=20)
    yield
    for name in names:
        del registry[f"Gallery{name}-v0"]


@pytest.mark.parametrize(
    ("env", "expected", "words"),
    [
        ("Healthy", {}, "8 seeds, different episodes"),
        ("IgnoresItsSeed", {"environment.episodes": "warning"}, "the environment ignores its seed"),
        ("Unseeded", {"environment.contract": "fault"}, "gave another episode the second time"),
        ("Huge", {"environment.scale": "warning"}, "which networks read badly"),
    ],
)
def test_a_control_environment_is_judged(examine, control_envs, env, expected, words):
    found = examine(CONTROL.format(id=f"Gallery{env}-v0"))
    assert named(found) == expected
    name = next(iter(expected), "environment.episodes")
    assert words in found[name].seen


# ── run directories ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_of_other_settings_is_named(examine, desk):
    found = examine("pretrain.toml", "model.width=64", run_dir=desk / "run")
    assert named(found) == {"recipe.run_directory": "warning"}
    assert "model.width was 48, is now 64" in found["recipe.run_directory"].seen
    assert found["model.weights"].verdict == "skipped"  # those of the other run are not these


def test_a_directory_that_is_no_run_is_named(examine, desk):
    found = examine(run_dir=desk)
    assert named(found) == {"recipe.run_directory": "fault"}


def test_nothing_is_written(examine, tmp_path):
    examine()
    assert not (tmp_path / "run").exists()
