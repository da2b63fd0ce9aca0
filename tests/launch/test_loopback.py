"""A cluster that `--ray local` starts, and the meeting of its trainers, are for this machine alone."""

import ipaddress
import json
import os
import subprocess
import sys

import pytest

from rlhfkit.distributed.listening import free_port, listening_at

psutil = pytest.importorskip("psutil")
pytest.importorskip("ray")
pytestmark = pytest.mark.thorough

CLUSTER = """
import os, ray
from rlhfkit.config.cluster import ClusterConfig
from rlhfkit.launch.connecting import connected
from tests.launch.test_loopback import say_listening
with connected("local", ClusterConfig()):
    ray.get(ray.remote(lambda: os.getpid()).remote())
    say_listening()
"""
RANKS = """
from rlhfkit.distributed.joining import join
from tests.launch.test_loopback import say_listening
member = join()
say_listening()
member.here.wait()
member.leave()
"""


def say_listening():
    """Print each address that this process or one of its children listens at, with who does."""
    here = psutil.Process()
    print(
        json.dumps(
            [
                [process.name(), connection.laddr.ip, connection.laddr.port]
                for process in (here, *here.children(recursive=True))
                for connection in process.net_connections("inet")
                if connection.status == psutil.CONN_LISTEN or (connection.type == 2 and not connection.raddr)
            ]
        )
    )


def started(program, **environment):
    command = [sys.executable, "-c", program]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})


def is_outside(ip):
    address = ipaddress.ip_address(ip)
    return not (getattr(address, "ipv4_mapped", None) or address).is_loopback


def test_a_local_cluster_listens_on_the_loopback_alone():
    process = started(CLUSTER)
    listening = json.loads(process.communicate(timeout=200)[0])
    assert process.returncode == 0
    assert {"raylet", "gcs_server"} <= {name for name, _, _ in listening}
    assert [each for each in listening if is_outside(each[1])] == []


def test_ranks_meet_at_their_address_alone():
    port = free_port("127.0.0.1")
    environment = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    ranks = [started(RANKS, RANK=str(rank), LOCAL_RANK=str(rank), **environment) for rank in range(2)]
    first, second = (json.loads(process.communicate(timeout=200)[0]) for process in ranks)
    assert [process.returncode for process in ranks] == [0, 0]
    assert port in {port for _, _, port in first}
    assert [each for each in first + second if is_outside(each[1])] == []


def test_an_address_that_is_taken_or_elsewhere_is_not_listened_at():
    port = free_port("127.0.0.1")
    number = listening_at("127.0.0.1", port)
    assert number is not None
    try:
        assert listening_at("127.0.0.1", port) is None
        assert listening_at("192.0.2.77", port) is None  # of nobody: RFC 5737
    finally:
        os.close(number)
