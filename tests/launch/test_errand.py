"""Commands that a Ray cluster runs, and a search whose runs are such commands."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import rlhfkit
import rlhfkit.tuning.search as search
from rlhfkit import tune
from rlhfkit.config.cluster import ClusterConfig
from rlhfkit.errors import ConfigError
from rlhfkit.machine.progress import Progress
from rlhfkit.tuning.cost import Rates
from rlhfkit.tuning.search import launcher_of
from tests.tuning.test_runs import TEXT

pytest.importorskip("ray", reason="the extra [ray] is not installed")
pytestmark = [pytest.mark.thorough, pytest.mark.timeout(600)]

SAYS = "import os, socket; print('cores', os.environ['OMP_NUM_THREADS'], os.getcwd(), flush=True)"
WAITS = """
import signal, sys, time
def end(*_):
    print("saved", flush=True)
    sys.exit(130)
signal.signal(signal.SIGTERM, end)
print("begun", os.getpid(), flush=True)
time.sleep(120)
"""


@pytest.fixture(scope="module")
def address():
    """Of a head without cores, and a node with three."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{Path(rlhfkit.__file__).parents[1]}{os.pathsep}{Path(__file__).parents[2]}")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        cluster.add_node(num_cpus=3)
        yield cluster.address
        cluster.shutdown()


def started(address, script, directory, *, cpus=1):
    words = launcher_of(address, ClusterConfig(trainer_cpus=cpus))
    file = (directory / "said").open("w")
    return subprocess.Popen([*words, sys.executable, "-c", script], cwd=directory, stdout=file, stderr=file)


def said(directory, *, until=""):
    """What came out, once the word `until` is in it."""
    for _ in range(600):
        text = (directory / "said").read_text()
        if until in text:
            return text
        time.sleep(0.1)
    raise AssertionError(text)


def test_it_prints_and_ends_as_the_command_does(address, tmp_path):
    process = started(address, f"{SAYS}; raise SystemExit(7)", tmp_path, cpus=2)
    assert process.wait() == 7
    assert said(tmp_path) == f"cores 2 {tmp_path}\n"
    process = started(address, "import os; os.kill(os.getpid(), 9)", tmp_path)
    assert process.wait() == -signal.SIGKILL


def test_a_signal_goes_on_to_the_command(address, tmp_path):
    process = started(address, f"import os{WAITS}", tmp_path)
    said(tmp_path, until="begun")
    process.terminate()
    assert process.wait() == 130
    assert said(tmp_path).endswith("saved\n")


def test_the_command_is_asked_to_end_where_nobody_waits_for_it_any_more(address, tmp_path):
    process = started(address, f"import os{WAITS}", tmp_path)
    far = int(said(tmp_path, until="begun").split()[-1])
    process.kill()
    for _ in range(300):
        if not psutil.pid_exists(far):
            return
        time.sleep(0.1)
    os.kill(far, signal.SIGKILL)
    raise AssertionError("it went on alone")


def test_whoever_runs_it_may_be_lost(address, tmp_path):
    process = started(address, f"import os{WAITS}", tmp_path)
    far = int(said(tmp_path, until="begun").split()[-1])
    psutil.Process(far).parent().kill()
    assert process.wait() == -signal.SIGKILL
    assert "lost: " in said(tmp_path)


def test_a_directory_that_other_machines_lack_is_an_error_in_words(address, tmp_path):
    module, *words = launcher_of(address, ClusterConfig())[2:]
    here = "import os; os.getcwd = lambda: '/only/here'"
    here = f"{here}; from {module} import main; raise SystemExit(main({words!r} + ['x']))"
    run = subprocess.run([sys.executable, "-c", here], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.startswith("error: a machine of the cluster cannot run it: ")
    assert run.stderr.endswith("No such file or directory: '/only/here'\n")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_search_has_its_runs_on_the_cluster_and_finds_what_it_finds_alone(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "_measured", lambda *_: Rates(base=1.0, whole=6.0, evaluation=1.0, start=0.0))
    Path("vowels.toml").write_text(TEXT)
    same = ["cluster.trainer_cpus=1", "tune.trials=3"]
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # as many threads here as there, for the same bits
    found = {
        name: tune("vowels.toml", same, directory=name, progress=Progress(quiet=True), ray=ray)
        for name, ray in {"far": address, "near": None}.items()
    }
    assert found["far"].state == "done"
    for far, near in zip(found["far"].trials, found["near"].trials, strict=True):
        assert (far.params, far.state) == (near.params, near.state)
        assert far.points == near.points
    assert found["far"].words == found["near"].words


def test_addresses_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match=r"--ray local has the runs of a search on this machine.*use --jobs"):
        launcher_of("local", ClusterConfig())
    process = started("127.0.0.1:1", SAYS, tmp_path)
    assert process.wait() == 1
    assert said(tmp_path).startswith("error: cannot reach a cluster at 127.0.0.1:1")
