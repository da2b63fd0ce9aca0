"""What goes wrong around a run: a server that is away, memory, a hang, signals, other data. Nothing is lost."""

import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from rlhfkit.config.load import load_recipe
from rlhfkit.config.watchdog import WatchdogConfig
from rlhfkit.errors import BudgetError, CheckpointError, OutOfMemoryError, RewardError
from rlhfkit.machine import interrupts
from rlhfkit.machine.progress import Progress
from rlhfkit.machine.watchdog import Watchdog, failed_phases, phase, sign_of_life, unwatched
from rlhfkit.pipeline import run as pipeline
from rlhfkit.rundir.directory import RunDir
from tests.killing import RECIPES, differences, start
from tests.rewards.chat_server import chat_server, judged

PPO = RECIPES["ppo"].replace(
    """type = "function"
function = "tests.training.tiny:count_vowels"
""",
    "",
)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a recipe in a directory; what was warned of."""
    monkeypatch.setattr(pipeline, "report_or_warn", lambda run_dir, warn: run_dir.report.touch())
    recipe = tmp_path / "recipe.toml"

    def run_in(directory, text, *overrides):
        recipe.write_text(text)
        warnings = []
        progress = Progress(quiet=True)
        progress.warn = warnings.append
        pipeline.run(load_recipe(recipe, overrides), directory, progress=progress)
        return warnings

    return run_in


# ── a reward server that is away ─────────────────────────────────────────────────────────────────────────────────────


class Server:
    """Scores a response by its number of vowels; `fails` says, by the number of a request, how it goes wrong."""

    def __init__(self, fails: Callable[[int], str | None]) -> None:
        self.fails, self.num_requests, self.faults = fails, 0, []
        self.port = 0
        self.open()

    def open(self) -> None:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.num_requests += 1
                fault = server.fails(server.num_requests)
                content = json.dumps({"scores": [sum(map(text.count, "aeiou")) for text in body["responses"]]}).encode()
                if fault is not None:
                    server.faults.append(fault)
                if fault == "drop":
                    return
                self.send_response(503 if fault == "error" else 200)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if fault == "half" else content)
                if fault == "close":
                    threading.Thread(target=server.away).start()

            def log_message(self, *arguments: object) -> None:
                pass

        self.httpd = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.httpd.daemon_threads = True
        self.port = self.httpd.server_address[1]
        threading.Thread(target=self.httpd.serve_forever, args=(0.01,), daemon=True).start()

    def away(self, seconds: float = 0.6) -> None:
        """Nobody listens at the port for a while."""
        self.close()
        time.sleep(seconds)
        self.open()

    def close(self) -> None:
        self.httpd.shutdown()
        self.httpd.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[int], str | None]], Server]]:
    servers = []

    def serve(fails=lambda number: None):
        servers.append(Server(fails))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()


def http(server, **settings):
    given = {"retry_wait_seconds": 0.05, "patience_seconds": 20.0, "batch_episodes": 1, **settings}
    lines = "".join(f"{name} = {value}\n" for name, value in given.items())
    return PPO.replace("[reward]\n", f'[reward]\ntype = "http"\nurl = "http://127.0.0.1:{server.port}/"\n{lines}')


@pytest.mark.thorough
def test_a_server_that_fails_every_tenth_request_and_is_away_for_a_while_changes_no_bit(run, serve, tmp_path):
    run(tmp_path / "healthy", http(serve()), "stages=['pretrain', 'ppo']")
    ways = {3: "drop", 13: "error", 20: "close", 23: "half"}
    flaky = serve(lambda number: ways.get(number, ("error", "drop", "half")[number % 3] if number % 10 == 0 else None))
    run(tmp_path / "flaky", http(flaky))
    assert {"error", "drop", "half", "close"} == set(flaky.faults)
    assert flaky.num_requests > 48 + 4  # six iterations of eight, one at a time
    assert differences(tmp_path / "flaky", tmp_path / "healthy") == []


@pytest.mark.slow
def test_a_server_that_is_down_for_half_a_minute_changes_no_bit(run, serve, tmp_path):
    run(tmp_path / "healthy", http(serve()))
    flaky = serve(lambda number: "error" if number % 10 == 0 else None)
    threading.Timer(0.5, flaky.away, [30.0]).start()
    begin = time.monotonic()
    run(tmp_path / "flaky", http(flaky, patience_seconds=120, retry_wait_seconds=0.5))
    assert time.monotonic() - begin > 25  # it was in the middle
    assert differences(tmp_path / "flaky", tmp_path / "healthy") == []


@pytest.mark.thorough
def test_a_server_that_stays_away_stops_the_run_which_goes_on_later(run, serve, tmp_path):
    run(tmp_path / "healthy", http(serve()))
    gone = serve(lambda number: "error" if number > 30 else None)
    recipe = http(gone, patience_seconds=0.3)
    with pytest.raises(
        RewardError, match=r"answered 503 .* attempts in 0 s; see that .*reward.patience_seconds \(0.3\)"
    ):
        run(tmp_path / "gone", recipe)
    gone.fails = lambda number: None
    run(tmp_path / "gone", recipe, "reward.patience_seconds=5")  # more patience is no other run
    assert differences(tmp_path / "gone", tmp_path / "healthy") == []


@pytest.mark.thorough
def test_who_starts_a_run_hears_at_once_that_nobody_listens(run, serve, tmp_path):
    server = serve()
    recipe = http(server, patience_seconds=600)
    server.close()
    begin = time.monotonic()
    with pytest.raises(RewardError, match="gave no answer"):
        run(tmp_path / "run", recipe)
    assert time.monotonic() - begin < 30
    assert not (tmp_path / "run").exists()
    server.open()


@pytest.mark.thorough
def test_a_judge_that_is_over_its_budget_stops_the_run_which_goes_on_with_the_scores_that_it_had(
    run, tmp_path, monkeypatch
):
    monkeypatch.setenv("JUDGE_KEY", "s3cret-key-of-the-judge")
    with chat_server() as chat:
        chat.answer = lambda body: judged(
            len(re.findall("[aeiou]", body["messages"][1]["content"])), "by my s3cret-key"
        )
        lines = f'type = "llm_judge"\nurl = "{chat.url}"\nmodel = "m"\nrubric = "vowels"\nhighest = 1000\n'
        recipe = PPO.replace("[reward]\n", f'[reward]\n{lines}token_env = "JUDGE_KEY"\n')
        run(tmp_path / "healthy", recipe)
        calls = len(chat.requests)
        with pytest.raises(BudgetError, match=r"called 20 times, and reward\.max_calls = 20"):
            run(tmp_path / "poor", recipe, "reward.max_calls=20")
        chat.answer = lambda body: judged(len(re.findall("[aeiou]", body["messages"][1]["content"])), "another reason")
        run(tmp_path / "poor", recipe, "reward.max_calls=1000")  # more money is no other run
    assert differences(tmp_path / "poor", tmp_path / "healthy") == []
    assert len(chat.requests) <= 2 * calls + 4  # nothing was judged twice but the trials
    assert any(header.get("authorization") == "Bearer s3cret-key-of-the-judge" for header in chat.headers)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if b"s3cret-key-of" in path.read_bytes()] == []


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def too_much(prompts: list[str], responses: list[str]) -> list[float]:
    if len(responses) > 2:  # not in the trial before the run
        torch.empty(10**15)
    return [float(len(text)) for text in responses]


@pytest.mark.thorough
def test_memory_that_runs_out_is_an_error_with_the_phase_and_what_to_lower(run, tmp_path, monkeypatch):
    function = PPO.replace("[reward]\n", '[reward]\ntype = "function"\nfunction = "tests.test_faults:too_much"\n')
    with pytest.raises(
        OutOfMemoryError,
        match=r"memory in reward of the stage ppo \(.*you tried to allocate 4000000000000000 bytes.*see what the",
    ):
        run(tmp_path / "reward", function)

    def no_room(*given, **more):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    vowels = RECIPES["ppo"]
    with monkeypatch.context() as patch:
        patch.setattr("rlhfkit.rollout.engine.generate", no_room)
        with pytest.raises(
            OutOfMemoryError,
            match=r"generation of the stage ppo \(CUDA .* 2\.00 GiB\.\); rollout\.slots is 64: try rollout\.slots=32",
        ):
            run(tmp_path / "run", vowels)
    with monkeypatch.context() as patch:
        patch.setattr("rlhfkit.training.ppo.update", no_room)
        with pytest.raises(
            OutOfMemoryError,
            match=r"in update of the stage ppo .*ppo\.microbatch_tokens is 1024: try ppo\.microbatch_tokens=512, which",
        ):
            run(tmp_path / "run", vowels, "ppo.microbatch_tokens=1024")
        with pytest.raises(
            OutOfMemoryError,
            match=r"ppo\.microbatch_tokens is 52 already, and the longest sequences have 52 tokens.*lora",
        ):
            run(tmp_path / "run", vowels, "ppo.microbatch_tokens=52")
    run(tmp_path / "run", vowels, "ppo.microbatch_tokens=512")  # as advised, in the same directory


def test_memory_that_runs_out_in_sft_is_its_own_setting(run, tmp_path, monkeypatch):
    def no_room(*given, **more):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("rlhfkit.training.sft._masks", no_room)
    with pytest.raises(
        OutOfMemoryError, match=r"in the stage pretrain .*pretrain\.microbatch_tokens is 4096: try .*=2048"
    ):
        run(tmp_path / "run", RECIPES["sft"])


def test_another_error_is_not_taken_for_one_of_memory(run, tmp_path, monkeypatch):
    def broken(*given, **more):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr("rlhfkit.training.sft._masks", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit") as caught:
        run(tmp_path / "run", RECIPES["sft"])
    assert not isinstance(caught.value, OutOfMemoryError)


# ── a worker that hangs ──────────────────────────────────────────────────────────────────────────────────────────────


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def watch(tmp_path):
    """A watchdog whose clock stands until it is set, and which nobody but the test asks."""
    clock, warnings, codes = Clock(), [], []

    def make(**settings):
        config = WatchdogConfig(**{"patience_seconds": 100, **settings})
        watchdog = Watchdog(config, tmp_path / "stacks.txt", warn=warnings.append, clock=clock, leave=codes.append)
        watchdog._watch = lambda: None
        return watchdog

    make.clock, make.warnings, make.codes = clock, warnings, codes
    return make


def test_the_phase_that_hangs_is_named_with_its_seconds_and_the_stacks(watch, tmp_path):
    with watch() as watchdog, phase("ppo"), phase("generation"):
        watch.clock.now = 99
        watchdog.check()
        assert watch.warnings == []
        watch.clock.now = 130
        watchdog.check()
        watchdog.check()
    (warning,) = watch.warnings
    assert "no sign of life from generation (ppo) for 130 s, where watchdog.patience_seconds is 100" in warning
    assert str(tmp_path / "stacks.txt") in warning
    stacks = (tmp_path / "stacks.txt").read_text()
    assert "generation (ppo), silent for 130 s" in stacks
    assert "test_the_phase_that_hangs_is_named" in stacks
    assert watch.codes == []


def test_signs_of_life_and_new_phases_keep_the_watchdog_quiet(watch):
    with watch() as watchdog, phase("sft"):
        for watch.clock.now in (90, 180, 270):
            watchdog.check()
            sign_of_life()
        with phase("checkpoint"):
            watch.clock.now = 360
            watchdog.check()
        watch.clock.now = 450
        watchdog.check()
        assert watch.warnings == []
        watch.clock.now = 461
        watchdog.check()
        assert "no sign of life from sft for 101 s" in watch.warnings[0]


def test_it_warns_again_after_twice_the_time(watch):
    with watch() as watchdog, phase("reward"):
        told = []
        for watch.clock.now in range(0, 1000, 10):
            before = len(watch.warnings)
            watchdog.check()
            told += [watch.clock.now] * (len(watch.warnings) - before)
    assert told == [100, 200, 400, 800]


def test_people_may_take_as_long_as_they_like(watch):
    with watch() as watchdog, phase("preferences"):
        with unwatched():
            watch.clock.now = 10_000
            watchdog.check()
        watchdog.check()
    assert watch.warnings == []


def test_it_ends_the_process_only_if_asked_to(watch):
    with watch(action="stop") as watchdog, phase("reward"):
        watch.clock.now = 101
        watchdog.check()
    assert watch.codes == [1]
    assert 'watchdog.action is "stop"' in watch.warnings[-1]


def test_an_error_remembers_the_phase_it_came_from_and_forgets_it_with_the_next(watch):
    with watch(), phase("ppo"):
        with pytest.raises(ValueError), phase("rollout"), phase("reward"):
            raise ValueError
        assert failed_phases() == ("ppo", "rollout", "reward")
        with phase("update"):
            pass
        assert failed_phases() == ()


def test_without_a_watchdog_phases_cost_nothing_and_mean_nothing():
    with phase("alone"), unwatched():
        sign_of_life()
    assert failed_phases() == ()


HAS_HUNG = threading.Event()


def hang(prompts: list[str], responses: list[str]) -> list[float]:
    if len(responses) > 2 and not HAS_HUNG.is_set():  # once, and not in the trial before the run
        HAS_HUNG.set()
        time.sleep(2.0)
    return [float(len(text)) for text in responses]


@pytest.mark.thorough
def test_a_reward_that_hangs_is_named_while_it_hangs(run, tmp_path):
    recipe = PPO.replace("[reward]\n", '[reward]\ntype = "function"\nfunction = "tests.test_faults:hang"\n')
    HAS_HUNG.clear()
    warnings = run(tmp_path / "run", recipe, "watchdog.patience_seconds=0.5")
    # On a busy machine something else may take half a second too.
    assert any(re.search(r"no sign of life from reward \(ppo, rollout\) for [0-2] s", each) for each in warnings)
    assert "in hang" in RunDir(tmp_path / "run").stacks.read_text()


# ── signals ──────────────────────────────────────────────────────────────────────────────────────────────────────────

STAGES = {
    "sft": r"open .*/checkpoints/sft/\.0.*SHA256SUMS.*",
    "reward_model": r"open .*/checkpoints/reward_model/\.0.*SHA256SUMS.*",
    "ppo": r"open .*/checkpoints/ppo/\.0.*SHA256SUMS.*",
    "control": r"open .*/checkpoints/control/seed-3/\.0.*SHA256SUMS.*",
}


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("name", STAGES)
def test_a_kind_kill_saves_and_leaves_and_the_run_goes_on(name, number, tmp_path):
    if (number, name) not in [(signal.SIGTERM, each) for each in STAGES] + [
        (signal.SIGHUP, "ppo"),
        (signal.SIGINT, "sft"),
    ]:
        pytest.skip("one stage is enough for this signal")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    processes = [start(name, whole), start(name, stopped, die_at=(STAGES[name], 2), by=number)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 130]
    assert list(stopped.rglob(".*")) == []
    assert not (stopped / "report.html").exists()
    process = start(name, stopped)
    process.join()
    assert process.exitcode == 0
    assert differences(stopped, whole) == []


@pytest.mark.thorough
def test_sigterm_where_nothing_can_be_saved_leaves_in_good_order(tmp_path):
    process = start("sft", tmp_path / "run", die_at=(r"os.mkdir .*/\.base\..*", 1), by=signal.SIGTERM)
    process.join()
    assert process.exitcode == 130
    assert list((tmp_path / "run").rglob(".*")) == []


def test_signals_that_are_ignored_stay_so_as_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts.ends_like_interrupts(), interrupts.interrupts_wait("this update") as interrupted:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupted()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_of_loops_sigterm_is_an_interrupt():
    with pytest.raises(KeyboardInterrupt), interrupts.ends_like_interrupts():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# ── other data ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def with_file(tmp_path):
    """The recipe of PPO with its prompts in a file, and that file."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Prompt {number}"}) + "\n" for number in range(8)))
    table = 'prompts = { type = "grammar", num_rows = 12, seed_offset = 2 }'
    return RECIPES["ppo"].replace(table, f'prompts = {{ path = "{prompts}" }}'), prompts


@pytest.mark.thorough
def test_a_stage_does_not_go_on_with_other_data_than_it_began_with(run, with_file, tmp_path):
    recipe, prompts = with_file
    directory = tmp_path / "run"
    run(directory, recipe, "ppo.iterations=6")
    stages = json.loads((directory / "stages.json").read_text())
    (directory / "stages.json").write_text(json.dumps({"pretrain": stages["pretrain"]}))  # as if PPO were not done
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    original = prompts.read_text()
    prompts.write_text(original.replace("Prompt 3", "Prompt 4"))
    with pytest.raises(
        CheckpointError,
        match=r"data\.prompts: .*prompts\.jsonl has changed since the stage ppo read it \(SHA-256 was \w{12}…, is now "
        r"\w{12}….*put back what it was.*--fresh",
    ):
        run(directory, recipe)
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before
    prompts.write_text(original)
    run(directory, recipe)


@pytest.mark.thorough
def test_data_that_only_finished_stages_have_read_may_change_with_a_warning(run, with_file, tmp_path):
    recipe, prompts = with_file
    recipe = recipe.replace('stages = ["pretrain", "ppo"]', 'stages = ["pretrain", "reward_model", "ppo"]').replace(
        "[data]\n", '[data]\npreferences = { type = "grammar", num_rows = 12, seed_offset = 4 }\n'
    )
    directory = tmp_path / "run"
    run(directory, recipe + "\n[reward_model]\nnormalization_responses = 4\n")
    stages = json.loads((directory / "stages.json").read_text())
    stages.pop("ppo")
    (directory / "stages.json").write_text(json.dumps(stages))
    shutil.rmtree(directory / "checkpoints" / "ppo")
    prompts.write_text(prompts.read_text().replace("Prompt 3", "Prompt 4"))
    warnings = run(directory, recipe + "\n[reward_model]\nnormalization_responses = 4\n")
    assert any("prompts.jsonl has changed since the stage reward_model read it" in warning for warning in warnings)
    hashes = [
        e["sha256"] for e in json.loads((directory / "manifest.json").read_text())["data"] if e["use"] == "prompts"
    ]
    assert len(hashes) == 2
    assert run(directory, recipe + "\n[reward_model]\nnormalization_responses = 4\n") == []
