"""benchmarks/gpu.py, as far as a CPU can show it: parts that fail, hang or cannot run hide nothing of the others."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rlhfkit.bench.language import language_model, random_prompts, word_encoder
from rlhfkit.bench.shapes import SIZES

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    return gpu


@pytest.fixture
def gpu_parts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_parts

    return gpu_parts


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


@pytest.mark.thorough
def test_a_part_that_hangs_is_killed_and_what_it_had_found_stays(gpu):
    start = time.monotonic()
    # What it started must go too: a child holds the output open.
    program = (
        "import subprocess, sys, time; print('{\"rate\": 2.5}', flush=True); "
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); time.sleep(60)"
    )
    result = gpu.run_part(python(program), seconds=2)
    assert time.monotonic() - start < 20
    assert (result["status"], result["figures"]) == ("failed", {"rate": 2.5})
    assert result["reason"] == "not done after 2 s"


def test_a_part_that_raises_has_its_last_line_as_the_reason(gpu):
    result = gpu.run_part(python("print('{\"rate\": 1.0}'); raise MemoryError('CUDA out of memory')"), seconds=30)
    assert (result["status"], result["reason"]) == ("failed", "MemoryError: CUDA out of memory")
    assert result["figures"] == {"rate": 1.0}


def test_a_check_that_is_false_makes_the_part_a_failed_one(gpu):
    result = gpu.run_part(python('print(\'{"same tokens": false, "rate": 1.0}\')'), seconds=30)
    assert (result["status"], result["reason"]) == ("failed", "not so: same tokens")
    assert gpu.run_part(python("print('{\"same tokens\": true}')"), seconds=30)["status"] == "done"


def test_a_line_that_was_cut_off_gives_way_to_the_one_before(gpu):
    assert gpu.last_object('{"a": 1}\nnoise\n{"a": 2, "b"') == {"a": 1}


def test_a_part_whose_needs_are_not_there_says_which(gpu, tmp_path):
    part = gpu.Part("x", "x", 1, ("no_such_module.of_it", "models/m/"))
    assert gpu.missing(part, tmp_path) == "no_such_module.of_it is not installed"
    assert (
        gpu.missing(gpu.Part("x", "x", 1, ("json", "models/m/")), tmp_path) == f"{tmp_path / 'models/m/'} is not there"
    )
    (tmp_path / "models" / "m").mkdir(parents=True)
    assert gpu.missing(gpu.Part("x", "x", 1, ("json", "models/m/")), tmp_path) is None


def test_peers_are_compared_by_seconds_and_by_rates(gpu):
    results = {
        "p1": {"status": "done", "figures": {"seconds of an iteration": 2.0}},
        "trl-p1": {"status": "done", "figures": {"seconds of an iteration": 6.0}},
        "graph": {"status": "done", "figures": {"tokens/s, 6m": 900.0}},
        "transformers": {"status": "done", "figures": {"tokens/s, 6m": 300.0}},
        "vllm": {"status": "skipped", "reason": "vllm is not installed"},
    }
    gpu.ratios(results)
    assert results["trl-p1"]["figures"]["rlhfkit ahead, seconds of an iteration"] == 3
    assert results["transformers"]["figures"]["rlhfkit ahead, tokens/s, 6m"] == 3


def test_every_part_of_the_plan_has_a_function(gpu, gpu_parts):
    assert [part.name for part in gpu.PARTS] == list(gpu_parts.PARTS)
    assert {part.peer_of for part in gpu.PARTS} - {""} <= set(gpu_parts.PARTS)


def test_lines_of_pytest_are_counted_as_they_come(gpu_parts):
    figures: dict = {}
    for line in (
        "collected 3 items",
        "tests/a.py::test_one[cuda] PASSED   [ 33%]",
        "tests/a.py::test_two[a b-cuda] FAILED   [ 66%]",
        "tests/a.py::test_three PASSED   [100%]",
        "FAILED tests/a.py::test_two[a b-cuda] - AssertionError",
    ):
        figures |= gpu_parts.counted(line, figures)
    assert figures == {"passed": 2, "failed": 1, "test_two[a b-cuda] passes": False}


def test_a_model_that_changed_after_sampling_is_seen_to_disagree(gpu_parts, monkeypatch):
    """The difference can be exactly 0 on a CPU, so that a measurement of nothing would look the same."""
    shape = SIZES["1m"]
    encoder = word_encoder(shape.vocabulary)
    pair = [language_model(shape, encoder, torch.device("cpu"), dtype) for dtype in (torch.bfloat16, torch.float32)]
    prompts = [prompt.ids for prompt in random_prompts(shape, 4, 8)]
    sampler, training, float32 = gpu_parts.three_logprobs(*pair, prompts, 6)
    assert len(sampler) == len(training) == len(float32) == 24
    assert 0 < (training - float32).abs().max() < 0.1
    assert (training - sampler).abs().max() < 0.1
    logprobs = type(pair[0]).logprobs
    monkeypatch.setattr(type(pair[0]), "logprobs", lambda model, *args, **named: 1.05 * logprobs(model, *args, **named))
    sampler, training, _ = gpu_parts.three_logprobs(*pair, prompts, 6)
    assert (training - sampler).abs().min() > 0.2  # 5 % of about log 2048


SOME = ["machine", "qwen", "sentiment", "transformers"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "only",
    [pytest.param(SOME, marks=pytest.mark.thorough), pytest.param([], marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_a_dry_run_does_every_part_and_says_what_it_left_out(tmp_path, only):
    out = tmp_path / "gpu.json"
    command = [sys.executable, BENCHMARKS / "gpu.py", "--device", "cpu", "--dry-run", "--out", out]
    command += ["--shared", tmp_path / "none", *(["--only", *only] if only else [])]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    parts = json.loads(out.read_text())["parts"]
    assert done.returncode == 0, done.stdout + done.stderr
    expected = {"machine", "tests", "graph", "agreement", "p1", "p2", "qwen", "transformers"}
    expected &= set(only or expected)
    assert {name for name, part in parts.items() if part["status"] == "done"} >= expected
    assert "is not there" in parts["sentiment"]["reason"]
    if "tests" in expected:
        assert parts["tests"]["figures"]["tests that a GPU would run"] > 4
    assert "sentiment" in done.stdout and "A dry run" in done.stdout


@pytest.mark.thorough
def test_a_budget_that_is_used_up_skips_the_rest_and_says_so(tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, BENCHMARKS / "gpu.py", "--device", "cpu", "--dry-run", "--out", out, "--budget", "0"]
    subprocess.run([str(word) for word in command], capture_output=True, check=True)
    parts = json.loads(out.read_text())["parts"]
    assert {part["status"] for part in parts.values()} == {"skipped"}
    assert parts["machine"]["reason"] == "the budget of 0 s is used up"
