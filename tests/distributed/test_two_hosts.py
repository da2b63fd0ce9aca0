"""Two machines, as network namespaces with a cable between them that can be pulled."""

import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.distributed.test_kills import rows
from tests.killing import RECIPES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may make network namespaces"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="there is no `ip` to make network namespaces with"),
]

MOST_SECONDS = 60
LENGTH = "ppo.iterations=60"
NET = "10.231.77"


def ip(*words, check=True):
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True)


@contextmanager
def two_hosts():
    """Names of two network namespaces that reach each other over a bridge, and the cable of the second one."""
    tag = f"{os.getpid() % 100000}"
    hosts, bridge = [f"rk{tag}a", f"rk{tag}b"], f"rkbr{tag}"
    cables = [f"rkc{tag}{end}" for end in "ab"]
    try:
        made = ip("link", "add", bridge, "type", "bridge", check=False)
        if made.returncode:
            pytest.skip(f"no bridge can be made here: {made.stderr.strip()}")
        ip("link", "set", bridge, "up")
        for number, (host, cable) in enumerate(zip(hosts, cables, strict=True), 1):
            ip("netns", "add", host)
            ip("link", "add", cable, "type", "veth", "peer", "name", "data0", "netns", host)
            ip("link", "set", cable, "master", bridge, "up")
            ip("-n", host, "addr", "add", f"{NET}.{number}/24", "dev", "data0")
            ip("-n", host, "link", "set", "data0", "up")
            ip("-n", host, "link", "set", "lo", "up")
        yield hosts, cables[1]
    finally:
        for host in hosts:
            ip("netns", "del", host, check=False)
        for name in (*cables, bridge):
            ip("link", "del", name, check=False)


def said_by(directory, number):
    return directory.with_name(f"said-by-{number}.txt")


def start(host, number, recipe, directory, *overrides):
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(number)]
    command += ["--nproc-per-node", "1", "--master-addr", f"{NET}.1", "--master-port", "29411"]
    command += ["-m", "rlhfkit", "run", str(recipe), "--run-dir", str(directory), *overrides]
    return subprocess.Popen(
        ["ip", "netns", "exec", host, *command],
        stdout=subprocess.DEVNULL,
        stderr=said_by(directory, number).open("w"),
        env={name: value for name, value in os.environ.items() if name != "GLOO_SOCKET_IFNAME"},
    )


def test_a_cable_that_is_pulled_is_named_on_both_sides_and_the_same_commands_go_on(tmp_path):
    recipe, directory = tmp_path / "ppo.toml", tmp_path / "run"
    recipe.write_text(RECIPES["ppo"])
    with two_hosts() as (hosts, cable):
        sides = [start(host, number, recipe, directory, LENGTH) for number, host in enumerate(hosts)]
        try:
            until = time.monotonic() + 120
            while not (directory / "metrics.jsonl").exists() or len(rows(directory)) < 5:
                assert time.monotonic() < until
                assert all(side.poll() is None for side in sides), said_by(directory, 0).read_text()
                time.sleep(0.1)
            ip("link", "set", cable, "down")
            pulled = time.monotonic()
            until_ours_end(hosts, pulled)
            print(f"both ranks ended {time.monotonic() - pulled:.1f} s after the cable was pulled")
            assert time.monotonic() - pulled < MOST_SECONDS
        finally:
            for side in sides:
                side.terminate()
        for side in sides:
            side.wait(timeout=90)
        ours, theirs = (said_by(directory, number).read_text() for number in (0, 1))
        assert ours.count("error: rank 1 of 2 (host ") == 1 and "no sign of life for" in ours, ours
        assert theirs.count("error: rank 0 of 2 (host ") == 1 and "cannot be reached any more" in theirs, theirs
        ip("link", "set", cable, "up")
        sides = [start(host, number, recipe, directory, LENGTH) for number, host in enumerate(hosts)]
        codes = [side.wait(timeout=180) for side in sides]
        assert codes == [0, 0], said_by(directory, 0).read_text()
        assert len([row for row in rows(directory) if row["stage"] == "ppo"]) == 60


def until_ours_end(hosts, since):
    """Wait until torchrun alone is left, which takes its own time, in each of the two."""
    for host in hosts:
        while time.monotonic() - since < 2 * MOST_SECONDS:
            found = ip("netns", "pids", host).stdout.split()
            if not any(is_ours(pid) for pid in found):
                break
            time.sleep(0.2)


def is_ours(pid):
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return False
    return "rlhfkit" in words and "torch.distributed.run" not in words
