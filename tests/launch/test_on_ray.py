"""Runs on a real Ray cluster of one machine: the bits of a plain run, through every loss."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from rlhfkit.rundir.atomic import read_json
from rlhfkit.rundir.cluster import WorkerRow, read_cluster
from rlhfkit.rundir.directory import RunDir
from tests.small_recipe import small_recipe

pytest.importorskip("ray", reason="the extra [ray] is not installed")
pytestmark = [pytest.mark.thorough, pytest.mark.timeout(600)]

SECTIONS = """
chunk_rows = 4

[data]
texts = { type = "grammar", num_rows = 200 }
prompts = { type = "grammar", num_rows = 64, seed_offset = 2 }

[reward]
type = "function"
function = "paid:vowels"

[ppo]
iterations = 10
rollout_episodes = 16
minibatch_episodes = 8
epochs = 1
min_eos_rate = 0.0
checkpoint_minutes = 1e-9
"""
PAID = '''"""A reward that takes its time, so that a run can be hurt while it runs."""

import time
from pathlib import Path


def vowels(prompts, responses):
    time.sleep(2.0 if Path("slow").exists() else 0.1)
    return [float(sum(letter in "aeiou" for letter in response)) for response in responses]
'''
STALE = ["rollout.max_staleness=1"]
HOW = {"plain": [], "stale": STALE, "cut": [*STALE, "rollout.partial_tokens=3"]}
"""Runs that others are compared with, by settings that change what is learnt."""
RAY_SETTINGS = {
    # The death of a node is seen in seconds.
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_worker_niceness": "0",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A directory with the recipe, and plain runs of it that others are compared with."""
    home = tmp_path_factory.mktemp("cluster")
    (home / "small.toml").write_text(small_recipe("small", ["pretrain", "ppo"], SECTIONS))
    (home / "paid.py").write_text(PAID)
    for name, words in HOW.items():
        made = run(home, name, *words)
        assert made.code == 0, made.said
    begun = shutil.copytree(home / "plain", home / "begun")  # its first stage is done
    stages = read_json(begun / "stages.json")
    (begun / "stages.json").write_text(f'{{"pretrain": {{"seconds": {stages["pretrain"]["seconds"]}}}}}')
    shutil.rmtree(begun / "policy")
    shutil.rmtree(begun / "checkpoints", ignore_errors=True)
    for file in ("metrics.jsonl", "samples.jsonl"):
        lines = (begun / file).read_text().splitlines(keepends=True)
        (begun / file).write_text("".join(line for line in lines if '"ppo"' not in line))
    return home


@pytest.fixture(scope="module")
def cluster():
    """A head and two nodes, of which any may be lost."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in RAY_SETTINGS.items():
            patch.setenv(name, value)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.others = [cluster.add_node(num_cpus=3) for _ in range(2)]
        yield cluster
        cluster.shutdown()


class Run:
    def __init__(self, process: subprocess.Popen, said: Path) -> None:
        self.process, self._said = process, said

    @property
    def code(self) -> int:
        return self.process.wait(300)

    @property
    def said(self) -> str:
        return self._said.read_text()


def started(home: Path, name: str, *words: str) -> Run:
    said = home / f"{name}.said"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RLHFKIT_NO_BFLOAT16": "1"}
    command = [sys.executable, "-m", "rlhfkit", "run", "small.toml", "--run-dir", name, *words]
    with said.open("a") as file:
        process = subprocess.Popen(command, cwd=home, env=environment, stdout=file, stderr=file, start_new_session=True)
        return Run(process, said)


def run(home: Path, name: str, *words: str) -> Run:
    made = started(home, name, *words)
    assert made.code is not None
    return made


def begun(home: Path, name: str) -> str:
    shutil.copytree(home / "begun", home / name)
    return name


def bits(home: Path, name: str) -> str:
    return hashlib.sha256((home / name / "policy" / "model.safetensors").read_bytes()).hexdigest()


def iterations(home: Path, name: str) -> int:
    metrics = home / name / "metrics.jsonl"
    return metrics.read_text().count('"ppo"') if metrics.exists() else 0


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it has not come in time"
        time.sleep(0.05)


def actors(kind: str) -> list[psutil.Process]:
    """The processes of Ray's actors of a class."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if " ".join(process.info["cmdline"] or []).startswith(f"ray::{kind}")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("samplers", [1, 3])
def test_a_cluster_of_this_machine_gives_the_bits_of_a_plain_run(home, samplers):
    words = [f"cluster.samplers={samplers}", f"cluster.reward_workers={samplers - 1}"]
    made = run(home, f"local{samplers}", "--ray", "local", *words)
    assert made.code == 0, made.said
    assert bits(home, f"local{samplers}") == bits(home, "plain")
    table = read_json(home / f"local{samplers}" / "cluster.json")
    assert len(table["sampler"]["workers"]) == samplers
    assert sum(worker["chunks"] for worker in table["sampler"]["workers"]) == 10 * 4


@pytest.mark.slow
@pytest.mark.parametrize("samplers", [1, 2])
def test_responses_that_are_cut_go_on_with_the_bits_of_a_plain_run(home, samplers):
    name = begun(home, f"cut{samplers}")
    (home / "slow").touch()  # so that it is not at its end before it is told to stop
    made = started(home, name, "--ray", "local", f"cluster.samplers={samplers}", *HOW["cut"])
    wait_for(lambda: iterations(home, name) >= 1 or made.process.poll() is not None)
    made.process.send_signal(signal.SIGINT)
    assert made.code == 130, made.said
    (home / "slow").unlink()
    assert iterations(home, name) < 10
    assert run(home, name, "--ray", "local", f"cluster.samplers={samplers}", *HOW["cut"]).code == 0
    assert bits(home, name) == bits(home, "cut") != bits(home, "stale")


PATIENT = '''"""The same reward, which waits where a test has something to do."""

import itertools
import time
from pathlib import Path

from paid import vowels as paid

calls = itertools.count()


def vowels(prompts, responses):
    call = next(calls)
    while not Path("grown" if call < 16 else "shrunk").exists() and call >= 8:
        time.sleep(0.05)
    return paid(prompts, responses)
'''


@pytest.mark.slow
def test_samplers_that_come_and_go_change_no_bit(home):
    """A second one comes while the run goes on, and leaves once it has sampled."""
    (home / "patient.py").write_text(PATIENT)
    name = begun(home, "growing")

    def samplers() -> dict[str, WorkerRow]:
        table = read_cluster(RunDir(home / name))
        return {} if table is None else {row.name: row for row in table.samplers.rows}

    def waits_for(condition: Callable[[], bool]) -> None:
        wait_for(lambda: condition() or made.process.poll() is not None)
        assert made.process.poll() is None, made.said

    made = started(home, name, "--ray", "local", "reward.function=patient:vowels")
    waits_for(lambda: "sampler-0" in samplers())
    assert changed(home, name, 2) == "2 samplers from now on, in place of 1\n"
    waits_for(lambda: "sampler-1" in samplers() and samplers()["sampler-1"].state != "starting")
    (home / "grown").touch()
    waits_for(lambda: bool(samplers()["sampler-1"].chunks))
    assert changed(home, name, 1) == "1 sampler from now on, in place of 2\n"
    waits_for(lambda: list(samplers()) == ["sampler-0"])
    (home / "shrunk").touch()
    assert made.code == 0, made.said
    assert bits(home, name) == bits(home, "plain")
    events = read_cluster(RunDir(home / name)).events
    assert [(event.what, event.who) for event in events if event.what in ("joined", "left")] == [
        ("joined", "sampler-0"),
        ("joined", "sampler-1"),
        ("left", "sampler-1"),
    ]
    assert "lost" not in made.said


def changed(home: Path, name: str, samplers: int) -> str:
    command = [sys.executable, "-m", "rlhfkit", "cluster", name, "--samplers", str(samplers)]
    return subprocess.run(command, cwd=home, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("lost", "how"),
    [
        ("Sampler", "plain"),
        pytest.param("Scorer", "plain", marks=pytest.mark.slow),
        pytest.param("Trainer", "plain", marks=pytest.mark.slow),
        pytest.param("Trainer", "stale", marks=pytest.mark.slow),
        pytest.param("Trainer", "cut", marks=pytest.mark.slow),
        pytest.param("node", "plain", marks=pytest.mark.slow),
    ],
)
def test_no_loss_changes_a_bit(home, cluster, lost, how):
    name = begun(home, f"without-{lost}-{how}")
    words = ["cluster.samplers=2", "cluster.reward_workers=1", *HOW[how]]
    made = started(home, name, "--ray", cluster.address, *words)
    wait_for(lambda: iterations(home, name) >= 2 or made.process.poll() is not None)
    if lost == "node":
        node = cluster.others.pop(0)
        cluster.remove_node(node, allow_graceful=False)
        cluster.others.append(cluster.add_node(num_cpus=3))
    else:
        random.choice(actors(lost)).kill()
    assert made.code == 0, made.said
    assert bits(home, name) == bits(home, how)
    assert "lost" in made.said


@pytest.mark.slow
def test_a_run_that_was_interrupted_goes_on_without_the_cluster_and_back(home, cluster):
    name = begun(home, "interrupted")
    (home / "slow").touch()  # so that it is not at its end before it is told to stop
    made = started(home, name, "--ray", cluster.address)
    wait_for(lambda: iterations(home, name) >= 1 or made.process.poll() is not None)
    made.process.send_signal(signal.SIGINT)
    assert made.code == 130, made.said
    (home / "slow").unlink()
    assert "to go on from the last checkpoint" in made.said and iterations(home, name) < 10
    assert run(home, name).code == 0
    assert bits(home, name) == bits(home, "plain")


@pytest.mark.slow
def test_a_signal_to_all_processes_at_once_is_no_lost_trainer(home):
    """As a shell's `timeout` gives it, and a job's end."""
    name = begun(home, "ended")
    (home / "slow").touch()
    made = started(home, name, "--ray", "local")
    wait_for(lambda: iterations(home, name) >= 1 or made.process.poll() is not None)
    os.killpg(made.process.pid, signal.SIGTERM)
    assert made.code == 130, made.said
    (home / "slow").unlink()
    assert "to go on from the last checkpoint" in made.said and "lost" not in made.said
    assert run(home, name).code == 0
    assert bits(home, name) == bits(home, "plain")


@pytest.mark.slow
def test_two_trainers_with_parted_weights_learn_what_two_processes_learn(home, cluster):
    words = ["parallel.shard=fsdp"]
    made = run(home, "two-trainers", "--ray", cluster.address, "cluster.trainers=2", *words)
    assert made.code == 0, made.said
    assert run(home, "two-processes", "--processes", "2", *words).code == 0
    assert bits(home, "two-trainers") == bits(home, "two-processes")


@pytest.mark.slow
def test_a_reward_that_fails_ends_the_run_with_its_own_words_and_no_restart(home, cluster):
    (home / "failing.py").write_text("def vowels(prompts, responses):\n    raise ValueError('no more vowels')\n")
    name = begun(home, "failing")
    words = ["reward.function=failing:vowels", "cluster.reward_workers=1"]
    made = run(home, name, "--ray", cluster.address, *words)
    assert made.code == 1
    assert "no more vowels" in made.said and "Traceback" not in made.said and "start again" not in made.said


def test_an_address_without_a_cluster_is_an_error_of_one_line(home):
    made = run(home, "nowhere", "--ray", "127.0.0.1:1")
    assert made.code == 1
    assert made.said.startswith("error: ") and "127.0.0.1:1" in made.said and "Traceback" not in made.said
    assert not (home / "nowhere").exists()
