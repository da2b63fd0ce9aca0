"""A Ray cluster on two machines, which are network namespaces with a cable between them that can be pulled."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.distributed.test_two_hosts import NET, ip, two_hosts

PORT = 6379
HEAD, NODE = 0, 1
HEALTH = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "3",
}
"""Ray takes a node for dead after some seconds of silence, in place of half a minute."""
PATIENCE_SECONDS = 600


class Machines:
    """The machines, and Ray's processes on them."""

    def __init__(self, hosts, cable, directory):
        self.hosts, self.cable, self.directory = hosts, cable, directory
        self._drivers = []
        self.temporary = tempfile.mkdtemp(prefix="rk", dir="/tmp")  # sockets want short paths
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "GLOO_", "CUDA_"))},
            **HEALTH,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": os.urandom(16).hex(),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "RLHFKIT_NO_BFLOAT16": "1",
            "OMP_NUM_THREADS": "1",
        }

    @property
    def address(self):
        return f"{NET}.1:{PORT}"

    def popen(self, host, *command, output, **environment):
        """A process on a machine, which has that machine's name."""
        named = 'hostname "$0" && exec "$@"'
        return subprocess.Popen(
            ["ip", "netns", "exec", self.hosts[host], "unshare", "--uts", "sh", "-c", named, f"host-{host}", *command],
            stdout=subprocess.DEVNULL,
            stderr=output.open("a"),
            env={**self.environment, **environment},
        )

    def start_head(self, *, cpus):
        """The head, the one machine that trainers can be on, since it alone has what Ray takes for a GPU."""
        self._start(HEAD, "--head", "--port", str(PORT), "--num-cpus", str(cpus), "--num-gpus", "1")

    def start_node(self, *, cpus):
        """The other machine; its processes of before have ended."""
        self._start(NODE, "--address", self.address, "--num-cpus", str(cpus), "--num-gpus", "0")

    def _start(self, host, *words):
        ray = Path(sys.executable).with_name("ray")
        command = [str(ray), "start", *words, "--node-ip-address", f"{NET}.{host + 1}"]
        command += ["--object-store-memory", "100000000", "--disable-usage-stats"]
        if host == HEAD:
            command += ["--include-dashboard=false", "--temp-dir", self.temporary]
        output = self.directory / f"ray-{host}.txt"
        code = self.popen(host, *command, output=output).wait(timeout=PATIENCE_SECONDS)
        assert code == 0, output.read_text()

    def stop(self, host):
        """End all that runs on a machine."""
        until = time.monotonic() + 30
        while (pids := ip("netns", "pids", self.hosts[host], check=False).stdout.split()) and time.monotonic() < until:
            subprocess.run(["kill", "-9", *pids], check=False, capture_output=True)
            time.sleep(0.2)
        if host == HEAD:
            (Path(self.temporary) / "ray_current_cluster").unlink(missing_ok=True)  # as `ray stop` does

    def kill(self, host, word):
        """End what has this word in its command line, on a machine."""
        for pid in ip("netns", "pids", self.hosts[host]).stdout.split():
            with suppress(FileNotFoundError, ProcessLookupError):
                if word in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(int(pid), signal.SIGKILL)

    def run(self, recipe, directory, *overrides, fault="", code="rlhfkit"):
        """A process that runs a recipe on the cluster from the head; those of before end, and the cable is in."""
        self.plug()
        for driver in self._drivers:
            driver.kill()
        command = [sys.executable, "-m", code, "run", str(recipe), "--run-dir", str(directory)]
        command += ["--ray", self.address, "cluster.trainer_gpus=1", *overrides]
        planted = {"RLHFKIT_TEST_FAULT": fault, "RLHFKIT_TEST_RUN": str(directory)}
        self._drivers.append(self.popen(HEAD, *command, output=said_by(directory), **planted))
        return self._drivers[-1]

    def pull(self):
        """The cable is out."""
        ip("link", "set", self.cable, "down")

    def plug(self):
        """The cable is in."""
        ip("link", "set", self.cable, "up")


@contextmanager
def machines(directory):
    """Two machines without anything on them yet."""
    with two_hosts() as (hosts, cable):
        for host in hosts:
            ip("-n", host, "route", "add", "default", "dev", "data0")  # by which Ray finds its own address
        made = Machines(hosts, cable, directory)
        try:
            yield made
        finally:
            for host in (NODE, HEAD):
                made.stop(host)
            shutil.rmtree(made.temporary, ignore_errors=True)


def said_by(directory):
    """The file with what the driver of a run said."""
    return directory.with_name(f"{directory.name}.txt")


def said(directory):
    """What the driver of a run said."""
    return said_by(directory).read_text()


def table(directory):
    """Who works on a run, as the driver saw it last; nothing before it saw anybody."""
    try:
        return json.loads((directory / "cluster.json").read_text())
    except FileNotFoundError:
        return {}


def samplers(directory):
    """Name → how the sampler is."""
    return {worker["name"]: worker for worker in table(directory).get("sampler", {}).get("workers", ())}


def until(is_so, driver, directory, seconds=PATIENCE_SECONDS):
    """Wait until it is so; what it is."""
    end = time.monotonic() + seconds
    while not (found := is_so()):
        assert driver.poll() is None, said(directory)
        assert time.monotonic() < end, (said(directory), table(directory))
        time.sleep(0.2)
    return found


def finished(driver, directory, seconds=PATIENCE_SECONDS):
    """Wait for the end of a run that ends well."""
    try:
        code = driver.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        pytest.fail(f"not done after {seconds} s: {said(directory)} {table(directory)}")
    finally:
        driver.kill()
    assert code == 0, said(directory)
