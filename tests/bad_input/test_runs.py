"""The user who makes mistakes, at the real command line.

A mistake ends with exit code 1 and one line that says what is wrong and what to do. What can be known beforehand is
known before anything is written; what comes to light in a stage leaves a run that goes on once it is fixed.
: runs."""

import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from tests.bad_input.desk import (
    LETTERS,
    ONLY_PPO,
    SFT_AND_PPO,
    Desk,
    Endpoint,
    half_written,
    the_error,
)


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
    assert the_error(errors).startswith("max_response_tokens = 64 leaves no room for a prompt in the model's context")


def test_an_empty_prompt_is_named(desk: Desk):
    code, _, errors = desk.call("generate", "model", "--prompt", "")
    assert (code, the_error(errors)) == (1, "prompt 1 has no tokens; remove it or give it text")


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


def test_a_mistake_in_the_recipe_needs_no_torch_to_be_found(desk: Desk):
    command = [sys.executable, "-X", "importtime", "-m", "rlhfkit", "run", "recipe.toml", "ppo.epoch=1"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=desk.path)
    *imports, error = ended.stderr.splitlines()
    assert (ended.returncode, ended.stdout) == (1, "")
    assert error == (
        "error: recipe recipe.toml: ppo.epoch (from the command line): no such setting; did you mean ppo.epochs?"
    )
    assert not any(line.endswith("| torch") for line in imports)


def test_a_fault_of_a_file_that_several_tables_read_is_reported_once(desk: Desk):
    desk.write("pairs.jsonl", '{"prompt": "a", "chosen": "b", "rejected": ')
    told = desk.refused("data.preferences.path=pairs.jsonl", "data.judge_preferences.path=pairs.jsonl")
    assert told.startswith("data.preferences, data.judge_preferences: none of the 1 rows can be used; the first: pairs")


def test_a_misspelt_path_is_reported_before_the_files_that_it_would_have_named(desk: Desk):
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
