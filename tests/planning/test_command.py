"""`rlhfkit plan` on the command line."""

import json

import pytest


@pytest.fixture
def invoke(command_line, monkeypatch, tmp_path):
    """Run the command line in a directory of its own → exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    return command_line


def test_a_plan_that_fits_ends_with_0(invoke):
    code, out, _ = invoke("plan", "pairs", "data.path=PAIRS.jsonl", "--model", "0.5B", "--gpus", "H200")
    assert code == 0
    assert "\nFits: " in out


def test_a_plan_that_does_not_fit_ends_with_1_and_says_what_would(invoke):
    code, out, error = invoke("plan", "pairs", "data.path=PAIRS.jsonl", "--model", "3B", "--gpus", "L4")
    assert (code, error) == (1, "")
    assert "\nDoes not fit: " in out
    assert "would fit:" in out


def test_json_is_one_object(invoke):
    code, out, _ = invoke("plan", "pairs", "data.path=P.jsonl", "--model", "8B", "--gpus", "8xH200", "--json")
    found = json.loads(out)
    assert (code, found["fits"], found["machine"]["ranks"]) == (0, True, 8)


def test_an_unknown_gpu_is_one_line(invoke):
    code, out, error = invoke("plan", "pairs", "data.path=P.jsonl", "--model", "8B", "--gpus", "8xH10")
    assert (code, out) == (1, "")
    assert error.startswith("error: --gpus 8xH10: no such accelerator is known (did you mean H100?)")
    assert error.count("\n") == 1


def test_this_machine_is_measured_where_no_gpu_is_named(invoke):
    code, out, _ = invoke("plan", "demo", "--json")
    machine = json.loads(out)["machine"]
    assert code == 0
    assert machine["source"] == "measured"
    assert machine["flops"] > 1e9
    assert machine["bandwidth"] > 1e8
