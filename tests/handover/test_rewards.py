"""The files that score elsewhere say what PPO here would say of the same response."""

import asyncio
import sys
import types
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from rlhfkit.config.load import load_recipe
from rlhfkit.config.rewards import FunctionRewardConfig
from rlhfkit.handover.export import export_to
from rlhfkit.records import Prompt
from rlhfkit.rewards.function import FunctionReward
from rlhfkit.rewards.source import ScoredText
from rlhfkit.rollout.text_experience import _shaped
from tests.handover.conftest import MEAN, STD

EOS, LIMIT = 256, 40
RESPONSES = ["", " One.", " A rather long answer that goes on and on", " One two three"]
SHAPINGS = [
    (),
    ("ppo.missing_eos_score=-2", "ppo.clip_score=1.5"),
    ("ppo.missing_eos_penalty=0.7", "ppo.length_penalty=0.1", "ppo.length_penalty_tokens=8"),
    ("ppo.brevity_penalty=0.2", "ppo.brevity_penalty_tokens=10"),
]


def encoded(text: str, finished: bool) -> list[int]:
    ids = list(text.encode())[: LIMIT - finished]
    return [byte_ids()[byte] for byte in ids] + [EOS] * finished


def byte_ids() -> list[int]:
    from tests.tiny import byte_tokenizer

    tokenizer = byte_tokenizer()
    return [tokenizer(chr(byte))["input_ids"][0] for byte in range(128)]


def item(ids: list[int], prompt: str, asked: str = "") -> list[SimpleNamespace]:
    """What verl gives its manager, as its base class says: responses are padded at their right."""
    padded = torch.tensor(ids + [257] * (LIMIT - len(ids)))
    mask = torch.tensor([1] * 7 + [1] * len(ids) + [0] * (LIMIT - len(ids)))  # the prompt's come first
    return Rows([
        SimpleNamespace(
            batch={"responses": padded, "attention_mask": mask},
            non_tensor_batch={
                "raw_prompt": np.array([{"role": "user", "content": prompt}], dtype=object),
                "extra_info": {"index": 0, "asked": asked},
            },
        )
    ])  # fmt: skip


class Rows(list):
    def __getitem__(self, key):
        found = super().__getitem__(key)
        return Rows(found) if isinstance(key, slice) else found


@pytest.fixture
def modules(monkeypatch):
    """Stand-ins for what the files import from the tools; `texts` holds what the reward model was asked."""
    texts: list[dict] = []

    class Base:
        def __init__(self, config, tokenizer, compute_score):
            self.config, self.tokenizer = config, tokenizer

    class Answer:
        def __init__(self, body):
            texts.append(body)

        async def __aenter__(self):
            return self

        async def __aexit__(self, *error):
            return None

        def raise_for_status(self):
            return None

        async def json(self):
            return {"data": [{"probs": [raw_of(texts[-1]["input"])]}]}

    class Session(Answer):
        def __init__(self, timeout):
            self.timeout = timeout

        def post(self, url, json):
            assert url == "http://router:1/classify"
            return Answer(json)

    base = types.ModuleType("base")
    base.RewardManagerBase = Base
    aiohttp = types.ModuleType("aiohttp")
    aiohttp.ClientSession, aiohttp.ClientTimeout = Session, lambda total: total
    names = ["verl", "experimental", "reward_loop", "reward_manager", "base"]
    for end in range(1, len(names)):
        monkeypatch.setitem(sys.modules, ".".join(names[:end]), types.ModuleType(names[end - 1]))
    monkeypatch.setitem(sys.modules, ".".join(names), base)
    monkeypatch.setitem(sys.modules, "aiohttp", aiohttp)
    return texts


def raw_of(text: str) -> float:
    return len(text) / 10 - 3


def loaded(path):
    namespace: dict = {"__name__": "reward"}
    exec(compile(path.read_text(), str(path), "exec"), namespace)
    return namespace


def manager_of(directory, run):
    config = SimpleNamespace(reward=SimpleNamespace(reward_model=SimpleNamespace(model_path="model")))
    tokenizer = AutoTokenizer.from_pretrained(run / "sft")
    return loaded(directory / "reward.py")["ScoreManager"](config, tokenizer, None, "router:1")


def here(run, overrides, raw, finished, lengths):
    ppo = load_recipe(run / "recipe.toml", overrides).recipe.ppo
    return _shaped(raw, torch.tensor(finished), torch.tensor(lengths), ppo)[0].tolist()


@pytest.mark.parametrize("shaping", SHAPINGS, ids=str)
@pytest.mark.parametrize("finished", [True, False])
def test_verl_scores_a_reward_models_responses_as_here(shaping, finished, run, tmp_path, modules):
    export_to("verl", run, shaping, directory=tmp_path, gpus=2)
    manager = manager_of(tmp_path, run)
    prompt, ids = "Question 1: how much?", [encoded(text, finished) for text in RESPONSES]
    ids = [row for row in ids if row]
    found = [asyncio.run(manager.run_single(item(row, prompt))) for row in ids]
    texts = [body["input"] for body in modules]
    end = "<|endoftext|>" if finished else ""
    assert texts == [prompt + text[: LIMIT - finished] + end for text in RESPONSES if text or finished]
    raw = torch.tensor([(raw_of(text) - MEAN) / STD for text in texts])
    expected = here(run, shaping, raw, [finished] * len(ids), [len(row) for row in ids])
    assert [score["reward_score"] for score in found] == pytest.approx(expected, abs=1e-5)
    assert [score["reward_extra_info"]["raw_score"] for score in found] == [raw_of(text) for text in texts]


FUNCTION = """
def plural(prompts, responses, source):
    return [len(r) + 0.5 * (s == "a") + len(p) / 100 for p, r, s in zip(prompts, responses, source)]


def singular(prompt, completion, missing=2.0):
    return len(completion) + missing


async def later(responses):
    return [float(len(r)) for r in responses]


class Object:
    def __call__(self, response):
        return float(len(response))


instance = Object()


def everything(responses, **columns):
    return [len(r) + len(columns) for r in responses] if columns["source"][0] == "a" else None


def everything_by_name(**given):
    return (float(len(r) + len(p)) for p, r in zip(given["prompts"], given["responses"]))


def by_place(prompt, response, /):
    return len(response) - len(prompt)


def underscored(_, completions):
    return [float(len(c)) for c in completions]


def annotated(responses: str):
    return float(len(responses))
"""


@pytest.fixture
def function_run(tmp_path, monkeypatch):
    """A run whose rows have a column, and a module of functions in the working directory."""
    import json

    from tests.handover.conftest import RECIPE, make_run

    made = make_run(tmp_path / "made", "llama", RECIPE.replace("prompts = {}", "prompts = {}"))
    rows = [json.loads(line) | {"source": "a"} for line in (made / "rows.jsonl").read_text().splitlines()]
    (made / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "my_rewards_of_handover.py").write_text(FUNCTION)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield made
    sys.modules.pop("my_rewards_of_handover", None)


NAMES = ["plural", "singular", "later", "instance", "Object", "everything", "everything_by_name", "by_place",
         "underscored", "annotated"]  # fmt: skip


@pytest.mark.parametrize("tool", ["verl", "openrlhf"])
@pytest.mark.parametrize("name", NAMES)
def test_a_function_scores_as_here(tool, name, function_run, tmp_path, modules):
    import json

    path = f"my_rewards_of_handover:{name}"
    export_to(
        tool, function_run, [f"reward={{type='function', function='{path}'}}"], directory=tmp_path / "out", gpus=2
    )
    row = json.loads((tmp_path / "out" / "prompts.jsonl").read_text().splitlines()[0])
    text = row["prompt"] if tool == "openrlhf" else row["prompt"][0]["content"]
    answers = [" One.", " Two three"]
    source = FunctionReward(FunctionRewardConfig(function=path))
    prompt = Prompt(text, columns={"source": "a"})
    expected = source.score([ScoredText(prompt, text, answer, True) for answer in answers]).tolist()
    if tool == "verl":
        manager = manager_of(tmp_path / "out", function_run)
        found = [
            asyncio.run(manager.run_single(item(encoded(answer, True), text, row["extra_info"]["asked"])))
            for answer in answers
        ]
        scores = [score["reward_extra_info"]["raw_score"] for score in found]
    else:
        reward = loaded(tmp_path / "out" / "reward.py")["reward_func"]
        queries = [f"{text}{answer}<|endoftext|>" for answer in answers]
        scores = reward(queries, [text] * 2, [row["label"]] * 2)["rewards"].tolist()
    assert scores == pytest.approx(expected)


def test_openrlhf_says_where_a_text_is_not_what_it_should_be(function_run, tmp_path):
    reward = "reward={type='function', function='my_rewards_of_handover:later'}"
    export_to("openrlhf", function_run, [reward], directory=tmp_path / "out", gpus=2)
    function = loaded(tmp_path / "out" / "reward.py")["reward_func"]
    with pytest.raises(ValueError, match="does not begin with its prompt"):
        function(["Other text"], ["Question"], ["{}"])
