"""The user who makes mistakes, at the real command line.

A mistake ends with exit code 1 and one line that says what is wrong and what to do. What can be known beforehand is
known before anything is written; what comes to light in a stage leaves a run that goes on once it is fixed.
"""

import json
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import copytree
from typing import Any

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
