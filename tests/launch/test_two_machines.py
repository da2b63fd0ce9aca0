"""Runs on a Ray cluster of two machines: what happens to them does not change the policy's bits."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import pytest
import torch

from tests.distributed import test_two_hosts
from tests.launch.machines import finished, machines, said, samplers, table, until

pytest.importorskip("ray")
pytestmark = [
    *test_two_hosts.pytestmark,
    pytest.mark.skipif(torch.cuda.is_available(), reason="what Ray takes for a GPU here shall not be one"),
    pytest.mark.timeout(1800),
    pytest.mark.slow,  # minutes of starting and losing machines
]

MODEL = """
name = "model"
synthetic = true
seed = 3
stages = ["pretrain"]
[model]
type = "scratch"
num_layers = 2
width = 64
num_heads = 2
vocabulary_tokens = 384
context_tokens = 96
[data]
texts = { type = "grammar", num_rows = 100 }
"""
RECIPE = """
name = "small"
synthetic = true
seed = 3
stages = ["ppo"]
[model]
path = "PATH"
[data]
prompts = { type = "grammar", num_rows = 256, seed_offset = 2 }
[rollout]
max_response_tokens = 32
chunk_rows = 8
[reward]
type = "function"
function = "tests.launch.test_two_machines:vowels"
[ppo]
iterations = 10
rollout_episodes = 64
minibatch_episodes = 32
min_eos_rate = 0.0
checkpoint_minutes = 0.01
[cluster]
samplers = 2
"""


def vowels(prompts, responses):
    """A reward that takes its time, so that a loss is seen before the run has ended."""
    time.sleep(2.0)
    return [float(sum(letter in "aeiou" for letter in response)) for response in responses]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """(recipe, the bits of the policy that one process makes of it)."""
    directory = tmp_path_factory.mktemp("plain")
    environment = {**os.environ, "RLHFKIT_NO_BFLOAT16": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    recipe = directory / "small.toml"
    (directory / "model.toml").write_text(MODEL)
    recipe.write_text(RECIPE.replace("PATH", str(directory / "model" / "base")))
    for name in ("model", "small"):
        command = [sys.executable, "-m", "rlhfkit", "run", f"{directory / name}.toml", "--run-dir", directory / name]
        subprocess.run(command, check=True, env=environment, capture_output=True, timeout=600)
    return recipe, bits(directory / "small")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head for the trainer and a sampler, and a node for another sampler."""
    with machines(tmp_path_factory.mktemp("cluster")) as both:
        both.start_head(cpus=2)
        both.start_node(cpus=1)
        yield both


def bits(directory):
    return hashlib.sha256((directory / "policy" / "model.safetensors").read_bytes()).hexdigest()


def both_at_work(directory):
    """{host: name of the sampler there}, once both have given something."""
    found = {worker["host"]: name for name, worker in samplers(directory).items() if worker.get("chunks")}
    return found if len(found) == 2 else None


def events(directory, what):
    return [event for event in table(directory)["events"] if event["what"] == what]


def test_two_machines_make_the_bits_of_one_process(plain, cluster, tmp_path):
    recipe, wanted = plain
    run = tmp_path / "run"
    driver = cluster.run(recipe, run)
    until(lambda: both_at_work(run), driver, run)
    finished(driver, run)
    assert bits(run) == wanted
    assert not events(run, "lost"), said(run)


def test_a_link_that_goes_down_and_comes_back_costs_a_sampler_for_a_while(plain, cluster, tmp_path):
    recipe, wanted = plain
    run = tmp_path / "run"
    driver = cluster.run(recipe, run)
    far = until(lambda: both_at_work(run), driver, run)["host-1"]
    cluster.pull()
    until(lambda: f"{far} (host-1) is lost: " in said(run), driver, run)
    before = table(run)["iteration"]
    until(lambda: table(run)["iteration"] > before, driver, run)  # the other one samples all of it
    cluster.plug()
    cluster.stop(1)
    cluster.start_node(cpus=1)
    finished(driver, run)
    assert bits(run) == wanted
    assert {event["who"] for event in events(run, "lost")} == {far}


def test_a_sampler_that_hangs_costs_what_is_told(plain, cluster, tmp_path):
    recipe, wanted = plain
    run = tmp_path / "run"
    driver = cluster.run(recipe, run)
    far = until(lambda: both_at_work(run), driver, run)["host-1"]
    pid = samplers(run)[far]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        finished(driver, run)
    finally:
        with_signal(pid, signal.SIGCONT)
    assert bits(run) == wanted
    assert f"{far} (host-1) is slow: " in said(run)
    overtaken = events(run, "overtaken")
    assert {event["who"] for event in overtaken} == {far} and overtaken[0]["lost_seconds"] > 0


def test_a_sampler_that_is_ten_times_slower_is_overtaken(plain, cluster, tmp_path):
    recipe, wanted = plain
    run = tmp_path / "run"
    driver = cluster.run(recipe, run)
    far = until(lambda: both_at_work(run), driver, run)["host-1"]
    with slowed(samplers(run)[far]["pid"]):
        finished(driver, run)
    assert bits(run) == wanted
    assert {event["who"] for event in events(run, "overtaken")} == {far}
    assert said(run).count(f"{far} (host-1) is slow: ") == 1


def test_a_sampler_with_other_weights_is_named_and_taken_out(plain, cluster, tmp_path):
    recipe, wanted = plain
    run = tmp_path / "run"
    driver = cluster.run(recipe, run, code="tests.launch.planted", fault="sampler-1")
    finished(driver, run)
    assert bits(run) == wanted
    assert "sampled with other weights than those for iteration" in said(run)
    assert "sampler-1 (" in said(run) and "is not asked any more, after 3 faults" in said(run)
    assert samplers(run)["sampler-1"]["state"] == "refused"


@contextmanager
def slowed(pid):
    """In the block a process runs a tenth of the time."""
    ended = threading.Event()

    def work():
        while not ended.is_set():
            with_signal(pid, signal.SIGSTOP)
            time.sleep(0.18)
            with_signal(pid, signal.SIGCONT)
            time.sleep(0.02)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def with_signal(pid, number):
    """Send it, where there is still a process."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
