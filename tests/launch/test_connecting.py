"""A cluster that cannot be reached: what is said of it."""

import socket

import pytest

from rlhfkit.config.cluster import ClusterConfig
from rlhfkit.errors import ConfigError

pytest.importorskip("ray")

from rlhfkit.launch.connecting import connected


def refused(address):
    with pytest.raises(ConfigError) as caught, connected(address, ClusterConfig()):
        pass
    return str(caught.value)


def test_an_address_of_ray_client_is_refused_with_the_reason():
    words = refused("ray://head:10001")
    assert "the run would end when this machine loses its connection" in words
    assert "ray job submit" in words


def test_where_nobody_listens_is_said_at_once():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        words = refused(address)
    assert words.startswith(f"cannot reach a cluster at {address} (")
    assert "Connection refused" in words and "ray start --head" in words


@pytest.mark.parametrize("address", ["rubbish", "head:port", "no-such-host.invalid:6379"])
def test_what_is_no_address_is_refused(address):
    assert refused(address).startswith(f"cannot reach a cluster at {address} (")
