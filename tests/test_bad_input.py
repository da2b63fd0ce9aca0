"""The user who makes mistakes, at the real command line.

A mistake ends with exit code 1 and one line that says what is wrong and what to do. What can be known beforehand is
known before anything is written; what comes to light in a stage leaves a run that goes on once it is mended.
"""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch

from rlhfkit.cli import app as cli
from tests.tiny import Directory

RECIPE = """\
name = "mine"
stages = ["sft", "reward_model", "judge", "ppo", "evaluate"]
reward = { type = "function", function = "rewarding:letters" }

[model]
path = "model"
device = "cpu"

[data]
max_prompt_tokens = 24
demonstrations = { path = "demonstrations.jsonl" }
prompts = { path = "prompts.jsonl" }
test_prompts = { path = "test_prompts.jsonl" }
preferences = { path = "preferences.jsonl" }
judge_preferences = { path = "judge_preferences.jsonl" }

[sft]
max_tokens = 48

[rollout]
max_response_tokens = 8

[ppo]
iterations = 3
rollout_episodes = 4
minibatch_episodes = 4
epochs = 1
min_eos_rate = 0
checkpoint_minutes = 1e-9

[evaluation]
num_prompts = 2
"""
LETTERS = "def letters(prompts, responses):\n    return [float(len(response)) for response in responses]\n"
ONLY_PPO = 'stages=["ppo"]'
SFT_AND_PPO = 'stages=["sft", "ppo"]'


def jsonl(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def pairs(*words: str) -> str:
    return jsonl(*({"prompt": "Say it:", "chosen": f" good {word}", "rejected": f" bad {word}"} for word in words))


FILES = {
    "recipe.toml": RECIPE,
    "rewarding.py": LETTERS,
    "demonstrations.jsonl": jsonl(*({"prompt": f"Say {word}:", "completion": f" {word}"} for word in ("one", "two"))),
    "prompts.jsonl": jsonl({"prompt": "Say one:"}, {"prompt": "Say two:"}),
    "test_prompts.jsonl": jsonl({"prompt": "Say nine:"}, {"prompt": "Say ten:"}),
    "preferences.jsonl": pairs("one", "two"),
    "judge_preferences.jsonl": pairs("three", "four"),
}


class Desk:
    """A directory with a recipe that works, until a test spoils something in it."""

    def __init__(self, path: Path, model: Path, call: Callable[..., tuple[int, str, str]]) -> None:
        self.path, self.model, self.call = path, path / "model", call
        self.model.symlink_to(model)
        self.run_dir = path / "run"
        for name, content in FILES.items():
            self.write(name, content)

    def write(self, name: str, content: str | bytes) -> None:
        (self.path / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    def own_model(self) -> Path:
        """A copy of the model, to be spoilt."""
        original = self.model.resolve()
        self.model.unlink()
        copytree(original, self.model)
        return self.model

    def run(self, *overrides: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr; a process of its own would import the reward anew."""
        sys.modules.pop("rewarding", None)
        return self.call("run", "recipe.toml", "--run-dir", "run", *overrides)

    def refused(self, *overrides: str) -> str:
        """What the user reads of a mistake that is known before anything is written."""
        code, output, errors = self.run(*overrides)
        assert (code, output) == (1, ""), errors
        assert not self.run_dir.exists()
        return the_error(errors)

    def stopped(self, *overrides: str) -> str:
        """What the user reads of a mistake that comes to light in a stage."""
        code, output, errors = self.run(*overrides)
        assert (code, output) == (1, ""), errors
        assert half_written(self.run_dir) == []
        return the_error(errors.splitlines(keepends=True)[-1])

    def iterations(self) -> list[int]:
        """Of PPO, as logged."""
        rows = map(json.loads, (self.run_dir / "metrics.jsonl").read_text().splitlines())
        return [row["iteration"] for row in rows if row["stage"] == "ppo"]


def the_error(text: str) -> str:
    """The one line of an error, without its label."""
    assert text.startswith("error: ")
    assert text.endswith("\n")
    assert text.count("\n") == 1, text
    assert "Traceback" not in text
    assert "this is a bug" not in text
    return text.removeprefix("error: ").rstrip()


def half_written(run: Path) -> list[Path]:
    """Files and directories that are written aside before they take their names."""
    return [path for path in run.rglob("*") if path.name.startswith(".")]


@pytest.fixture
def desk(
    tmp_path: Path,
    directory_of: Directory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Desk]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a mended module may have the size and second of the old one
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rlhfkit", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert isinstance(end.value.code, int)
        return end.value.code, *capsys.readouterr()

    desk = Desk(tmp_path, directory_of("llama"), call)
    capsys.readouterr()  # what making the model said
    yield desk
    sys.modules.pop("rewarding", None)


# ── data ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

ROLE = {"prompt": [{"role": "robot", "content": "hi"}]}


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("demonstrations.jsonl", "", "data.demonstrations: demonstrations.jsonl is empty; expected at least one row"),
        ("test_prompts.jsonl", "\n \n", "data.test_prompts: test_prompts.jsonl is empty"),
        (
            "prompts.jsonl",
            jsonl({"prompt": "a"}, {"question": "b"}),
            'data.prompts: prompts.jsonl:2: no column "prompt"; the row has question; if it has another name, say so '
            'as in columns = {prompt = "question"} (1 bad row of 2; correct it, or leave it out with data.on_bad_row = '
            '"skip")',
        ),
        ("demonstrations.jsonl", jsonl({"prompt": "a"}), "demonstrations.jsonl:1: no response; the row has prompt"),
        ("preferences.jsonl", jsonl({"prompt": "a", "chosen": "b"}), 'preferences.jsonl:1: no column "rejected"'),
        (
            "test_prompts.jsonl",
            jsonl({"prompt": "a"}, {"prompt": True}),
            'test_prompts.jsonl:2: column "prompt" is true; expected text or a list of messages',
        ),
        (
            "demonstrations.jsonl",
            jsonl({"prompt": "a", "completion": {"text": "b"}}),
            "column \"completion\" is an object, {'text': 'b'}; expected text",
        ),
        (
            "test_prompts.jsonl",
            '{"prompt": "a"}\n\n{"prompt": "b\n{"prompt": "c"}\n',
            'test_prompts.jsonl:3: not JSON (character 12: Unterminated string starting at) in \'{"prompt": "b\'; ',
        ),
        ("prompts.jsonl", '[{"prompt": "a"},\n{"prompt": }]', "prompts.jsonl is not JSON: Expecting value: line 2 col"),
        (
            "judge_preferences.jsonl",
            '{"prompt": "a"}\n{"prompt": "café"}\n'.encode("latin-1"),
            "judge_preferences.jsonl:2: byte 31 (0xe9) is not utf-8; save the file as UTF-8, or say in its "
            "table, or by data.encoding for all, how it is written, perhaps encoding =",
        ),
        (
            "prompts.jsonl",
            jsonl({"prompt": "é"}).encode("utf-16-le"),
            'prompts.jsonl is full of zero bytes; expected UTF-8; if it is text, encoding = "utf-16-le" may read it',
        ),
        (
            "preferences.jsonl",
            pairs("one") + jsonl({"prompt": "a", "chosen": "b", "rejected": "b"}),
            "preferences.jsonl:2: chosen and rejected are equal; expected two responses of which one is better",
        ),
        (
            "prompts.jsonl",
            jsonl(ROLE),
            "prompt[1] has the role 'robot'; expected system, user or assistant; rename it",
        ),
        (
            "prompts.jsonl",
            jsonl({"prompt": ""}),
            "none of the 1 rows can be used; the first: prompts.jsonl:1: the prom",
        ),
    ],
    ids=[
        "empty file",
        "blank lines",
        "missing column",
        "missing response",
        "missing half of a pair",
        "true for text",
        "object for text",
        "broken JSON line",
        "broken JSON list",
        "Latin-1",
        "UTF-16",
        "chosen equal to rejected",
        "unknown role",
        "empty prompt",
    ],
)
def test_a_bad_data_file_is_named_with_its_line(desk: Desk, file: str, content: str | bytes, words: str):
    desk.write(file, content)
    assert words in desk.refused()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "data.test_prompts.path=test_promts.jsonl",
            "data.test_prompts: test_promts.jsonl is not in {here}; did you mean test_prompts.jsonl or",
        ),
        ("data.test_prompts.path=prompts", "prompts is not in {here}; did you mean prompts.jsonl"),
        ("data.prompts.path=else/where.jsonl", "else/where.jsonl is not there: no directory else; correct the path"),
        ("data.prompts.path=some/dataset", "some/dataset is not a file here and cannot be loaded from the hub"),
        ("data.prompts.path=recipe.toml", "recipe.toml is of unknown format; expected one of the endings .jsonl,"),
        ("data.prompts.path=model", "model is no directory of `datasets`"),
        ("data.test_prompts.rows=50:", 'rows = "50:" leaves none of the 2 rows of test_prompts.jsonl; widen the slice'),
        (
            "data.test_prompts.columns.prompt=ask",
            'test_prompts.jsonl:1: no column "ask"; the row has prompt; correct columns.prompt in the recipe',
        ),
        ("data.prompts.encoding=latin0", 'prompts.jsonl: encoding = "latin0" is unknown'),
    ],
)
def test_data_that_cannot_be_had_are_named_with_what_there_is(desk: Desk, override: str, words: str):
    assert words.format(here=desk.path) in desk.refused(override)


def test_whole_texts_need_the_number_of_words_that_are_the_prompt(desk: Desk):
    desk.write("texts.txt", "one two three four five\n")
    message = desk.refused("data.demonstrations.path=texts.txt")
    assert (
        "texts.txt:1: a whole text, of which nothing says where the prompt ends; to make its first 4 to 8 words the "
        "prompt, set beginning_words = [4, 8]" in message
    )


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        (
            '{type="labelled", classes={good={path="prompts.jsonl"}, bad={path="demonstrations.jsonl"}}}',
            'data.prompts: classes.good: none of the 2 rows can be used; the first: prompts.jsonl:1: no column "text"; '
            'the row has prompt; if it has another name, say so as in columns = {text = "prompt"}',
        ),
        (
            '{type="labelled", classes={good={path="prompts.jsonl", columns={text="prompt"}}, bad={path="no.txt"}}}',
            "data.prompts: classes.bad: no.txt is not in ",
        ),
        (
            '{type="labelled", classes={good={path="a.txt", rowz=":"}, bad={path="b.txt"}}}',
            "data.prompts.classes.good.rowz (from the command line): no such setting; did you mean data.prompts.c",
        ),
        (
            '{type="labelled", classes={good={path="a.txt"}}}',
            'data.prompts.classes = {"good": {"path": "a.txt"}} (from the command line): expected at least 2 of them',
        ),
        (
            '{path="prompts.jsonl", prompt_format="Say it"}',
            'data.prompts.prompt_format = "Say it" (from the command line): expected a text that matches \\{prompt\\}',
        ),
    ],
)
def test_prompts_that_cannot_be_made_are_named(desk: Desk, prompts: str, words: str):
    assert words in desk.refused(f"data.prompts={prompts}")


def test_skipping_bad_rows_needs_a_good_one(desk: Desk):
    desk.write("test_prompts.jsonl", jsonl({"prompt": ""}, {"prompt": None}))
    message = desk.refused("data.on_bad_row=skip")
    assert (
        "data.test_prompts: none of the 2 rows can be used; the first: test_prompts.jsonl:1: the prompt is" in message
    )


def test_every_fault_is_named_at_once(desk: Desk):
    desk.write("prompts.jsonl", "")
    code, output, errors = desk.run(
        "data.demonstrations.path=demos.jsonl", "model.path=./modle", "reward.function=rewarding:leters"
    )
    assert (code, output) == (1, "")
    heading, *faults = errors.splitlines()
    assert heading == "error: 4 faults, so nothing was started:"
    assert [fault.split(":")[0] for fault in faults] == [
        '  model.path = "./modle"',
        "  data.demonstrations",
        "  data.prompts",
        "  reward.function 'rewarding",
    ]
    assert not desk.run_dir.exists()


# ── prompts and the model's context ──────────────────────────────────────────────────────────────────────────────────


def test_prompt_and_response_must_fit_the_context(desk: Desk):
    assert desk.refused("data.max_prompt_tokens=60") == (
        "data.max_prompt_tokens = 60 and rollout.max_response_tokens = 8 add up to 68, more than the model's context "
        "of 64 tokens; lower one of them"
    )


def test_prompt_and_response_must_fit_the_context_of_a_model_that_the_run_makes(desk: Desk):
    desk.write("texts.txt", "one two\nthree four\n")
    overrides = ('stages=["pretrain", "sft"]', 'model={type="scratch", context_tokens=30}', "data.texts.path=texts.txt")
    assert "add up to 32, more than the model's context of 30 tokens" in desk.refused(*overrides)


ASKED = {"prompt": [{"role": "user", "content": "hi"}]}
LONG_TEMPLATE = "Be kind to whoever asks you anything. {% for m in messages %}{{ m.content }}{% endfor %}"


def test_a_prompt_that_cannot_be_cut_is_named(desk: Desk):
    desk.write("prompts.jsonl", jsonl({"prompt": "a"}, ASKED))
    desk.write("long.jinja", LONG_TEMPLATE)
    message = desk.refused("model.chat_template=long.jinja")
    assert "data.prompts: prompts.jsonl:2 needs " in message
    assert "tokens even when cut, and data.max_prompt_tokens is 24; raise it, or" in message


def test_prompts_that_cannot_be_cut_are_bad_rows_and_may_be_skipped(desk: Desk):
    desk.write("prompts.jsonl", jsonl(ASKED, {"prompt": "a"}, {"prompt": "b"}))
    desk.write("long.jinja", LONG_TEMPLATE)
    code, _, errors = desk.run(ONLY_PPO, "data.on_bad_row=skip", "ppo.iterations=1", "model.chat_template=long.jinja")
    assert code == 0
    assert errors.count("data.prompts: 1 bad rows left out, the first: prompts.jsonl:1 needs ") == 1


@pytest.mark.parametrize("table", ["demonstrations", "prompts", "preferences"])
def test_conversations_that_the_chat_template_refuses_are_named(desk: Desk, table: str):
    desk.write("strict.jinja", "{{ raise_exception('roles must alternate') if messages[1:] else messages[0].content }}")
    turns = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    desk.write(f"{table}.jsonl", jsonl({"prompt": turns, "completion": "c", "chosen": "c", "rejected": "d"}))
    message = desk.refused("model.chat_template=strict.jinja")
    assert (
        f"data.{table}: none of the 1 rows can be used; the first: {table}.jsonl:1 does not fit the chat t" in message
    )
    assert "roles must alternate" in message


@pytest.mark.parametrize("content", [None, "{% for", "é".encode("latin-1")], ids=["missing", "broken", "not UTF-8"])
def test_a_chat_template_that_cannot_be_read_is_named(desk: Desk, content: str | bytes | None):
    if content is not None:
        desk.write("my.jinja", content)
    assert "my.jinja" in desk.refused("model.chat_template=my.jinja")


def test_a_stop_token_that_is_several_tokens_is_named(desk: Desk):
    assert desk.refused('rollout.stop_tokens=["###"]') == (
        "rollout.stop_tokens: '###' is 3 tokens for this tokenizer; expected a single one"
    )


def test_pairs_longer_than_the_context_are_cut(desk: Desk, directory_of: Directory):
    """GPT-2 looks its positions up in a table, which ends where its context does."""
    desk.write("preferences.jsonl", pairs("long " * 30, "longer " * 30))
    stages = 'stages=["reward_model", "judge"]'
    code, _, errors = desk.run(
        f"model.path={directory_of('gpt2')}",
        stages,
        "data.judge_preferences.path=preferences.jsonl",
        "judge.type=reward_model",
        "reward_model.normalization_responses=0",
    )
    assert code == 0, errors


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def remove(*patterns: str) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        for path in [path for pattern in patterns for path in model.glob(pattern)]:
            path.unlink()

    return spoil


def overwrite(name: str, content: bytes) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        (model / name).write_bytes(content)

    return spoil


def truncate(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


MISSING_SHARD = json.dumps({"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}).encode()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            remove("tokenizer*"),
            "'model' has no tokenizer; the directory needs the model's tokenizer.json and tokenizer_",
        ),
        (
            remove("*.safetensors"),
            'model.path = "model" has no *.safetensors; pickled weights, as in pytorch_model.bin',
        ),
        (remove("config.json"), 'model.path = "model" has no config.json; give the directory of a model in Hugging Fa'),
        (truncate, 'model.path = "model": model.safetensors is missing or not whole ('),
        (
            overwrite("model.safetensors.index.json", MISSING_SHARD),
            "model-00002-of-00002.safetensors is missing or not whole",
        ),
        (
            overwrite("model.safetensors.index.json", b"{}"),
            "model.safetensors.index.json cannot be read ('weight_map')",
        ),
        (overwrite("config.json", b"{"), 'model.path = "model": its config.json cannot be used ('),
        (overwrite("tokenizer.json", b"{"), "cannot load the tokenizer from 'model': "),
    ],
    ids=["tokenizer", "weights", "config", "truncated", "shard", "index", "broken config", "broken tokenizer"],
)
def test_a_model_directory_that_is_not_whole_is_named_with_what_it_lacks(
    desk: Desk, spoil: Callable[[Path], None], words: str
):
    spoil(desk.own_model())
    assert words in desk.refused()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/no/such/model", 'model.path = "/no/such/model": there is no such directory; mend the path'),
        ("./modle", 'model.path = "./modle": there is no such directory (did you mean model?); mend the path'),
        ("", 'model.path = "": there is no such directory; mend the path'),
        ("recipe.toml", 'model.path = "recipe.toml" is a file; give the directory of a model in Hugging Face format'),
        ("modle", 'model.path = "modle": there is no such directory (did you mean model?), and the hub does not give'),
        ("someone/model", "and the hub does not give such a model ("),
    ],
)
def test_a_model_that_is_not_there_is_looked_for_no_further(desk: Desk, path: str, words: str):
    assert words in desk.refused(f"model.path={path}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_a_device_that_is_not_there_is_named(desk: Desk):
    message = desk.refused("model.device=cuda")
    assert message.startswith('model.device = "cuda" is not available here (there is: ')
    assert message.endswith('or set model.device = "auto"')


# ── recipes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("ppo.clip_rang=0.1", "ppo.clip_rang (from the command line): no such setting; did you mean ppo.clip_range?"),
        ('stages=["ppo", "sft"]', "stages ['ppo', 'sft'] are not in order; write ['sft', 'ppo']"),
        ("ppo.minibatch_episodes=3", "ppo: minibatch_episodes 3 does not divide rollout_episodes 4; choose a divisor"),
        ("ppo.estimator=rloo", "ppo: estimator 'rloo' compares responses to one prompt; set group_size to 2 or more"),
        (
            "ppo={missing_eos_score=-1, missing_eos_penalty=0.5}",
            "ppo: missing_eos_score -1 replaces the score from which missing_eos_penalty 0.5 would be subtracted; set",
        ),
        ('stages=["sft", "evaluate"]', 'the stage "evaluate" compares the model before PPO with the one after; add th'),
        ('reward={type="reward"}', 'reward.type = "reward" (from the command line): expected "reward_model", "functi'),
        ("ppo.iterations", "override 'ppo.iterations': expected section.key=value, as in ppo.iterations=2"),
    ],
)
def test_a_setting_that_will_not_do_is_named(desk: Desk, override: str, words: str):
    message = desk.refused(override)
    assert message.startswith("recipe recipe.toml: ")
    assert words in message


def test_all_faults_of_a_recipe_are_named_each_on_a_line(desk: Desk):
    code, output, errors = desk.run("ppo.epochs=0", "ppo.clip_rang=1", "model.device=gpu")
    assert (code, output) == (1, "")
    assert errors.splitlines() == [
        "error: recipe recipe.toml has 3 faults:",
        '  model.device = "gpu" (from the command line): expected "auto", "cpu", "cuda" or "mps"',
        "  ppo.epochs = 0 (from the command line): expected a number above 0",
        "  ppo.clip_rang (from the command line): no such setting; did you mean ppo.clip_range?",
    ]
    assert not desk.run_dir.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            'name = "mine"\nstages = [sft]\n',
            "recipe.toml is not valid TOML: Invalid value (at line 2, column 11); mend it",
        ),
        ('# \nname = "é"\n'.encode("latin-1"), "recipe.toml:2: byte 11 (0xe9) is not UTF-8; save the file as UTF-8"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_named_with_its_line(desk: Desk, content: str | bytes, words: str):
    desk.write("recipe.toml", content)
    assert words in desk.refused()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("demmo", "there is neither a recipe nor a file 'demmo'; did you mean demo?; the shipped recipes are "),
        ("no/where.toml", "there is neither a recipe nor a file 'no/where.toml'; the shipped recipes are "),
        (".", ". is a directory; give a recipe's name or a TOML file"),
    ],
)
def test_an_unknown_recipe_is_answered_with_those_that_there_are(desk: Desk, name: str, words: str):
    code, output, errors = desk.call("run", name)
    assert (code, output) == (1, "")
    assert the_error(errors).startswith(words)
    assert not (desk.path / "runs").exists()


def test_wrong_usage_exits_with_2(desk: Desk):
    code, _, errors = desk.call("run", "recipe.toml", "--run_dir", "run")
    assert code == 2
    assert "No such option: --run_dir" in errors


# ── rewards ──────────────────────────────────────────────────────────────────────────────────────────────────────────

TRIED = 'reward, tried on an empty response and on "Yes, that is fine.": '


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "raise ValueError('no\\nlines')",
            "rewarding:letters raised ValueError: no lines (at {here}/rewarding.py:2); c",
        ),
        ("return [1 / len(r) for r in responses]", "rewarding:letters raised ZeroDivisionError: division by zero (at"),
        ("return [float('nan')] * len(responses)", "rewarding:letters returned nan for response 0 ('') and 2 of 2 s"),
        ("return [1.0]", "rewarding:letters returned 1 score for 2 responses; return one float per response, in order"),
        (
            "return None",
            "rewarding:letters returned None, not a list of numbers (but NoneType); return one float per response",
        ),
        (
            "return sum(map(len, responses))",
            "rewarding:letters returned 18, not a list of numbers: one score for 2 resp",
        ),
        (
            "return ['good'] * len(responses)",
            "rewarding:letters returned ['good', 'good'], not a list of numbers ('goo",
        ),
        ("raise SystemExit(0)", "rewarding:letters raised SystemExit: 0 (at {here}/rewarding.py:2); correct the func"),
    ],
)
def test_a_reward_function_is_tried_before_anything_is_trained(desk: Desk, body: str, words: str):
    desk.write("rewarding.py", f"def letters(prompts, responses):\n    {body}\n")
    assert desk.refused().startswith(TRIED + words.format(here=desk.path))


@pytest.mark.parametrize(
    ("function", "module", "words"),
    [
        (
            "rewardin:letters",
            "",
            "there is no module 'rewardin'; write `package.module:name`, importable from the w",
        ),
        ("rewarding:leters", LETTERS, "rewarding has no function 'leters'; did you mean 'letters'?"),
        ("rewarding:letters", "def letters(:\n", "importing its module raised SyntaxError"),
        (
            "rewarding:letters",
            "import nowhere_at_all\n",
            "raised ModuleNotFoundError: No module named 'nowhere_at_all' (",
        ),
        (
            "rewarding:letters",
            "import sys\nsys.exit()\n",
            "raised SystemExit (at {here}/rewarding.py:2); correct the module",
        ),
        ("rewarding:letters", "def letters(texts): ...\n", "takes (texts); expected (prompts, responses, …)"),
    ],
)
def test_a_reward_function_that_cannot_be_imported_is_named(desk: Desk, function: str, module: str, words: str):
    desk.write("rewarding.py", module)
    message = desk.refused(f"reward.function={function}")
    assert message.startswith(f"reward.function '{function}'")
    assert words.format(here=desk.path) in message


def test_a_column_that_a_reward_function_asks_for_must_be_in_all_rows(desk: Desk):
    desk.write("rewarding.py", "def letters(prompts, responses, label): return [1.0 for _ in label]\n")
    rows = [{"prompt": str(number), "label": "x"} for number in range(5)]
    desk.write("prompts.jsonl", jsonl(*rows, {"prompt": "5", "lable": "x"}))
    assert desk.refused(ONLY_PPO) == (
        "rewarding:letters asks for the column 'label', which the row prompts.jsonl:6 does not have; its columns: "
        "'lable'. Rename the parameter (prompts and responses are the lists of text), give it a default, or add the "
        "column"
    )
    desk.write("prompts.jsonl", jsonl(*rows))
    assert "the row test_prompts.jsonl:1 does not have" in desk.refused()


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (
            '{type="reward_model", path="./nowhere"}',
            'reward.path = "./nowhere": there is no such directory; mend the p',
        ),
        ('{type="reward_model", path="model"}', "'model' is a language model (LlamaForCausalLM), which scores nothing"),
        (
            '{type="mix", parts=[{source={type="function", function="rewarding:letters"}}, '
            '{source={type="reward_model", path="./nowhere"}}]}',
            'reward.parts[1].source.path = "./nowhere": there is no such directory; mend the path',
        ),
        (
            '{type="lexicon", path="words.txt"}',
            "words.txt:2: 'bad -1' is not `word TAB weight` with a finite weight; m",
        ),
        ('{type="lexicon", path="nowhere.txt"}', "cannot read the lexicon nowhere.txt (No such file or directory); se"),
        (
            '{type="bag_of_words", path="nowhere"}',
            "nowhere holds no bag of words (no bag_of_words.json with bag_of_wor",
        ),
        (
            '{type="grammar"}',
            "'Say one:' does not ask for a review; expected a prompt such as \"Review of the Blue Door",
        ),
        ('{type="http", url="http://"}', "reward.url = 'http://' names no host; expected https://host/path"),
        (
            '{type="http", url="http://x/", token_env="NOWHERE"}',
            "names the environment variable 'NOWHERE', which is no",
        ),
    ],
)
def test_a_reward_that_cannot_be_had_is_named(desk: Desk, reward: str, words: str):
    desk.write("words.txt", "good\t1\nbad -1\n")
    assert words in desk.refused(f"reward={reward}")


ANSWERED = jsonl({"prompt": "Say one:", "completion": " one"}, {"prompt": "Say two:", "completion": " two"})


@pytest.mark.parametrize("kind", ["match", "chrf"])
def test_a_reward_that_compares_needs_something_to_compare_with(desk: Desk, kind: str):
    assert desk.refused(ONLY_PPO, f'reward={{type="{kind}"}}') == (
        f'reward.type = "{kind}" compares with the right response, and the row prompts.jsonl:1 gives none (2 of 2 '
        'rows); add a column "completion", or name yours as in columns = {completion = "label"}'
    )
    mixed = f'reward={{type="mix", parts=[{{source={{type="{kind}"}}}}]}}'
    assert f'reward.type = "{kind}" compares with the right response' in desk.refused(ONLY_PPO, mixed)
    desk.write("prompts.jsonl", ANSWERED)
    assert "the row test_prompts.jsonl:1 gives none (2 of 4 rows)" in desk.refused(f'reward={{type="{kind}"}}')


@pytest.mark.parametrize("metric", ["classification", "translation"])
def test_a_metric_needs_something_to_compare_with(desk: Desk, metric: str):
    assert desk.refused(f"evaluation.metric={metric}") == (
        f'evaluation.metric = "{metric}" compares with the right response, and the row test_prompts.jsonl:1 gives none '
        '(2 of 2 rows); add a column "completion", or name yours as in columns = {completion = "label"}'
    )


@pytest.mark.parametrize(
    ("overrides", "wanted_by"),
    [
        ((ONLY_PPO, 'reward={type="chrf"}'), 'reward.type = "chrf"'),
        (("evaluation.metric=translation",), 'evaluation.metric = "translation"'),
    ],
)
def test_without_sacrebleu_the_install_line_is_shown(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], wanted_by: str
):
    desk.write("prompts.jsonl", ANSWERED)
    desk.write("test_prompts.jsonl", ANSWERED)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    assert desk.refused(*overrides) == (
        f"{wanted_by} needs sacrebleu, which is not installed; pip install 'rlhfkit[translation]'"
    )


@pytest.mark.parametrize("place", ["run/reward_model", "./run/../run/reward_model", "link/reward_model"])
def test_the_reward_model_that_the_run_will_make_is_no_independent_judge_of_it(desk: Desk, place: str):
    (desk.path / "link").symlink_to(desk.run_dir)
    stages = 'stages=["sft", "reward_model", "ppo", "evaluate"]'
    judge = f'evaluation.judge={{type="reward_model", path="{place}"}}'
    message = desk.refused(stages, 'reward={type="reward_model"}', judge)
    assert message.endswith(
        "evaluation.judge is what PPO maximises (reward), so it cannot be independent; name another judge"
    )


def test_the_judge_that_the_run_will_make_is_no_judge_where_ppo_maximises_it(desk: Desk):
    code, _, message = desk.run(
        'stages=["sft", "judge", "ppo", "evaluate"]',
        'judge.type="reward_model"',
        'reward={type="mix", parts=[{weight=1.0, source={type="reward_model", path="run/judge"}}]}',
    )
    assert code == 1 and "evaluation.judge is what PPO maximises (reward.parts[0].source)" in message
    assert not desk.run_dir.exists()


def test_the_judge_is_checked_too(desk: Desk):
    judge = 'evaluation.judge={type="reward_model", path="./nowhere"}'
    assert 'evaluation.judge.path = "./nowhere": there is no such directory' in desk.refused(judge)
    desk.write("judging.py", LETTERS.replace("float", "str"))
    judge = 'evaluation.judge={type="function", function="judging:letters"}'
    assert desk.refused(judge).startswith("evaluation.judge, tried on an empty response")
    judge = 'evaluation.judge={type="lexicon", path="nowhere.txt"}'
    assert desk.refused(judge).startswith("evaluation.judge: cannot read the lexicon nowhere.txt")


def test_simulated_people_judge_synthetic_reviews_only(desk: Desk):
    stages = 'stages=["sft", "preferences", "reward_model", "judge", "ppo", "evaluate"]'
    assert 'the stage "preferences" makes what data.preferences would read; leave one of the two' in desk.refused(
        stages
    )
    desk.write("recipe.toml", RECIPE.replace('\npreferences = { path = "preferences.jsonl" }', ""))
    message = desk.refused(stages)
    assert message.startswith("preferences, tried on")
    assert "does not ask for a review" in message


class Endpoint:
    """A reward server in this process that answers with `status` and `content`, where there is one the scores."""

    def __init__(self) -> None:
        self.status, self.content, self.seconds = 200, b"", 0.0
        self.fails_from = 0
        self.num_requests = 0
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                endpoint.num_requests += 1
                fails = endpoint.num_requests > endpoint.fails_from
                scores = json.dumps({"scores": [len(response) for response in body["responses"]]}).encode()
                content = endpoint.content if fails else scores
                time.sleep(endpoint.seconds)
                self.send_response(endpoint.status if fails else 200)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a client that left after its timeout

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/score"

    def reward(self, **settings: float) -> str:
        quick = {"timeout_seconds": 5, "retries": 1, "retry_wait_seconds": 0.01} | settings
        return f'reward={{type="http", url="{self.url}", {", ".join(f"{k} = {v}" for k, v in quick.items())}}}'


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    thread = threading.Thread(target=endpoint.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()


@pytest.mark.parametrize(
    ("status", "content", "words"),
    [
        (
            500,
            b"oops",
            "answered 500 Internal Server Error: 'oops' at the last of 2 attempts in 0 s; see that the endpoint runs",
        ),
        (404, b"what?", "answered 404 Not Found: 'what?'; mend the request or the endpoint"),
        (200, b"<html>", "answered something that is not JSON: '<html>'; expected {\"scores\": […]}"),
        (200, b'{"scores": [1.0]}', "returned 1 score for 2 responses; return one float per response, in order"),
    ],
)
def test_an_endpoint_is_asked_before_anything_is_trained(
    desk: Desk, endpoint: Endpoint, status: int, content: bytes, words: str
):
    endpoint.status, endpoint.content = status, content
    assert desk.refused(endpoint.reward()).startswith(f"{TRIED}{endpoint.url} {words}")


def test_an_endpoint_that_hangs_is_left(desk: Desk, endpoint: Endpoint):
    endpoint.seconds = 0.5
    message = desk.refused(endpoint.reward(timeout_seconds=0.1, retries=0))
    assert (
        "gave no answer (ReadTimeout: timed out) at the last of 1 attempts in 0 s; see that the endpoint runs"
        in message
    )


def test_an_endpoint_that_refuses_connections_is_named(desk: Desk, endpoint: Endpoint):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    message = desk.refused(endpoint.reward(retries=0).replace(endpoint.url, f"http://127.0.0.1:{port}/"))
    assert f"http://127.0.0.1:{port}/ gave no answer (ConnectError: " in message


# ── run directories ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fresh", [[], ["--fresh"]])
def test_files_that_are_no_runs_are_left_alone(desk: Desk, fresh: list[str]):
    desk.run_dir.mkdir()
    (desk.run_dir / "thesis.txt").write_text("years of work")
    code, _, errors = desk.run(*fresh)
    assert code == 1
    assert the_error(errors) == "run exists and is not a run directory; choose another --run-dir"
    assert [path.name for path in desk.run_dir.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("directory", "words"),
    [
        ("recipe.toml", "recipe.toml exists and is not a run directory; choose another --run-dir"),
        ("model", "model exists and is not a run directory; choose another --run-dir"),
        ("recipe.toml/run", "cannot write to recipe.toml/run (Not a directory); choose another --run-dir"),
        ("/proc/run", "cannot write to /proc/run (No such file or directory); choose another --run-dir"),
    ],
)
def test_a_place_where_no_run_can_be_is_named(desk: Desk, directory: str, words: str):
    code, _, errors = desk.call("run", "recipe.toml", "--run-dir", directory)
    assert (code, the_error(errors)) == (1, words)


@pytest.mark.thorough
def test_a_mistake_spares_the_run_that_would_have_been_replaced(desk: Desk):
    assert desk.run(ONLY_PPO, "ppo.iterations=1")[0] == 0
    before = sorted(desk.run_dir.rglob("*"))
    desk.write("prompts.jsonl", "")
    code, _, errors = desk.run(ONLY_PPO, "ppo.iterations=1", "--fresh")
    assert code == 1
    assert the_error(errors).startswith("data.prompts: prompts.jsonl is empty")
    assert sorted(desk.run_dir.rglob("*")) == before
    code, _, errors = desk.run(ONLY_PPO, "ppo.iterations=2")
    assert code == 1
    assert the_error(errors) == (
        "run holds a run of other settings (ppo.iterations was 1, is now 2); choose another --run-dir, or start over "
        "here with --fresh"
    )


@pytest.mark.parametrize("directory", ["nowhere", "recipe.toml", "model", "."])
@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_what_is_no_run_is_neither_evaluated_nor_reported(desk: Desk, command: str, directory: str):
    before = sorted(desk.path.rglob("*"))
    code, output, errors = desk.call(command, directory)
    assert (code, output) == (1, "")
    assert the_error(errors).startswith(f"{directory} is not a run directory, as it has no ")
    assert sorted(desk.path.rglob("*")) == before


@pytest.mark.parametrize(
    ("directory", "words"),
    [
        ("./nowhere", "nowhere (no run directory): there is no such directory, and the hub does not give such a model"),
        ("recipe.toml", "recipe.toml (no run directory) is a file; give the directory of a model in Hugging Face form"),
        (".", ". (no run directory) has no config.json; it holds model, which has one: give model"),
    ],
)
def test_what_is_neither_run_nor_model_generates_nothing(desk: Desk, directory: str, words: str):
    code, output, errors = desk.call("generate", directory, "--prompt", "a")
    assert (code, output) == (1, "")
    assert the_error(errors).startswith(words)


def test_generate_fits_its_length_to_a_small_model_but_refuses_what_was_asked_for(desk: Desk):
    assert desk.call("generate", "model", "--prompt", "a")[0] == 0
    code, _, errors = desk.call("generate", "model", "--prompt", "a", "--max-response-tokens", "64")
    assert code == 1
    assert the_error(errors).startswith("--max-response-tokens 64 leaves no room for a prompt in the model's context")


def test_an_empty_prompt_is_named(desk: Desk):
    code, _, errors = desk.call("generate", "model", "--prompt", "")
    assert (code, the_error(errors)) == (1, "prompt 1 has no tokens; remove it or give it text")


# ── what comes to light in a stage ───────────────────────────────────────────────────────────────────────────────────

FAILS_LATER = """\
calls = 0


def letters(prompts, responses):
    global calls
    calls += 1
    if calls == 4:  # the trial, two iterations, and then
        {}
    return [float(len(response)) for response in responses]
"""


@pytest.mark.thorough
def test_a_run_goes_on_once_its_reward_is_mended(desk: Desk):
    desk.write("rewarding.py", FAILS_LATER.format("return [0.0]"))
    assert desk.stopped(SFT_AND_PPO) == (
        "rewarding:letters returned 1 score for 4 responses; return one float per response, in order"
    )
    assert desk.iterations() == [0, 1]
    assert not (desk.run_dir / "policy").exists()
    desk.write("rewarding.py", LETTERS)
    (desk.path / "demonstrations.jsonl").unlink()  # which a finished stage read
    code, _, errors = desk.run(SFT_AND_PPO)
    assert code == 0
    changed, finished, *_ = errors.splitlines()
    assert changed.startswith("warning: reward.function: ")
    assert finished == "sft: finished before"
    assert desk.iterations() == [0, 1, 2]
    assert (desk.run_dir / "policy" / "model.safetensors").exists()
    assert half_written(desk.run_dir) == []


@pytest.mark.thorough
def test_a_run_goes_on_once_its_endpoint_is_back(desk: Desk, endpoint: Endpoint):
    endpoint.status, endpoint.content, endpoint.fails_from = 503, b"busy", 2
    assert "answered 503 Service Unavailable: 'busy' at the last of 2 attempts" in desk.stopped(
        ONLY_PPO, endpoint.reward()
    )
    endpoint.fails_from = 100
    assert desk.run(ONLY_PPO, endpoint.reward())[0] == 0
    assert desk.iterations() == [0, 1, 2]


def test_scores_that_never_differ_stop_the_run_before_its_first_update(desk: Desk):
    desk.write("rewarding.py", "def letters(prompts, responses): return [1.0 for _ in responses]\n")
    code, _, errors = desk.run(ONLY_PPO)
    assert code == 1
    assert "before the first update: all 4 scores are 1, so there is nothing to learn" in errors
    assert errors.count("→ score 1\n") == 3  # with what was scored


# ── Ctrl-C ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.thorough
def test_an_interrupted_run_says_how_to_go_on_and_does(desk: Desk):
    desk.write("rewarding.py", FAILS_LATER.format("raise KeyboardInterrupt"))
    code, output, errors = desk.run(ONLY_PPO)
    assert (code, output) == (130, "")
    assert errors.splitlines()[-1] == (
        "stopped; to go on from the last checkpoint: rlhfkit run recipe.toml --run-dir run 'stages=[\"ppo\"]'"
    )
    assert half_written(desk.run_dir) == []
    desk.write("rewarding.py", LETTERS)
    assert desk.run(ONLY_PPO)[0] == 0
    assert desk.iterations() == [0, 1, 2]


def test_other_commands_can_be_interrupted_too(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rlhfkit.pipeline.generate.load_tokenizer", interrupt)
    code, output, errors = desk.call("generate", "model", "--prompt", "a")
    assert (code, output) == (130, "")
    assert "Traceback" not in errors


# ── a process of its own ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_mistake_in_the_recipe_needs_no_torch_to_be_found(desk: Desk):
    command = [sys.executable, "-X", "importtime", "-m", "rlhfkit", "run", "recipe.toml", "ppo.epoch=1"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=desk.path)
    *imports, error = ended.stderr.splitlines()
    assert (ended.returncode, ended.stdout) == (1, "")
    assert error == (
        "error: recipe recipe.toml: ppo.epoch (from the command line): no such setting; did you mean ppo.epochs?"
    )
    assert not any(line.endswith("| torch") for line in imports)


def test_a_fault_of_a_file_that_several_tables_read_is_told_once(desk: Desk):
    desk.write("pairs.jsonl", '{"prompt": "a", "chosen": "b", "rejected": ')
    told = desk.refused("data.preferences.path=pairs.jsonl", "data.judge_preferences.path=pairs.jsonl")
    assert told.startswith("data.preferences, data.judge_preferences: none of the 1 rows can be used; the first: pairs")


def test_a_misspelt_path_is_told_before_the_files_that_it_would_have_named(desk: Desk):
    code, _, errors = desk.call("run", "pairs", "model.path=model", "data.pth=pairs.jsonl", "ppo.itterations=3")
    assert code == 1
    assert errors == (
        "error: recipe pairs has 2 faults:\n"
        "  data.pth (from the command line): no such setting; did you mean data.path?\n"
        "  ppo.itterations (from the command line): no such setting; did you mean ppo.iterations?\n"
    )


@pytest.mark.thorough
def test_a_real_interrupt_in_a_real_process_leaves_a_run_that_goes_on(desk: Desk):
    desk.write("rewarding.py", FAILS_LATER.format("open('here', 'w').close(); import time; time.sleep(60)"))
    command = [sys.executable, "-m", "rlhfkit", "run", "recipe.toml", "--run-dir", "run", ONLY_PPO]
    # Where the tests themselves run in the background, a shell may have told them to ignore interrupts.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=desk.path, preexec_fn=heed) as process:
        try:
            while process.poll() is None and not (desk.path / "here").exists():
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)  # would wait for the end of the iteration, which takes a minute
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith(
        "stopped; to go on from the last checkpoint: python -m rlhfkit run recipe.toml"
    )
    assert half_written(desk.run_dir) == []
    desk.write("rewarding.py", LETTERS)
    assert desk.run(ONLY_PPO)[0] == 0
    assert desk.iterations() == [0, 1, 2]
