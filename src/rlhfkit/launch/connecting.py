"""This process as a driver of a Ray cluster, which it starts for itself or finds."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import ray_constants
from ray.exceptions import AuthenticationError

from rlhfkit.config.cluster import ClusterConfig
from rlhfkit.errors import ConfigError
from rlhfkit.launch.head import knock

__all__ = ["connected", "passed_on"]

LOOPBACK = "127.0.0.1"
PASSED_ON = ("PYTHONPATH", "RLHFKIT_", "ONEDNN_", "ATEN_CPU_CAPABILITY", "HF_HUB_OFFLINE", "VLLM_")
"""Environment variables, or their beginnings, that the actors get from here; no others, as they may be secrets."""
SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD")


@contextmanager
def connected(address: str, cluster: ClusterConfig) -> Iterator[None]:
    """In the block this process is a driver of the cluster.

    `address`: "local" starts a cluster on this machine alone, "auto" takes the one that this machine belongs to, any
    other is that of a head node.
    Raises: ConfigError where there is no cluster at the address.
    """
    if address.startswith("ray://"):
        raise ConfigError(
            f"--ray {address} is an address of Ray Client, with which the run would end when this machine loses its "
            "connection; run the command on a machine of the cluster, with --ray auto, or have the cluster run it: "
            "ray job submit --no-wait -- rlhfkit run RECIPE --ray auto"
        )
    namespace = f"rlhfkit-{os.getpid()}-{time.time_ns()}"
    common: dict[str, Any] = {"namespace": namespace, "log_to_driver": False, "logging_level": "ERROR"}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local":
        os.environ.setdefault("RAY_worker_niceness", "0")  # as a plain run has it; Ray's own is 15
        cores = max(os.cpu_count() or 1, _needed_cpus(cluster))
        with _loopback_alone():
            ray.init("local", num_cpus=cores, include_dashboard=False, _node_ip_address=LOOPBACK, **common)
    else:
        with _in_words(address):
            ray.init(address, **common)
    try:
        yield
    finally:
        ray.shutdown()


def passed_on() -> dict[str, str]:
    """What the actors' environment gets from this one's."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(PASSED_ON) and not any(word in name.upper() for word in SECRET)
    }


def _needed_cpus(cluster: ClusterConfig) -> int:
    return (
        cluster.trainers * cluster.trainer_cpus
        + cluster.samplers * cluster.sampler_cpus
        + cluster.reward_workers * cluster.reward_worker_cpus
    )


@contextmanager
def _loopback_alone() -> Iterator[None]:
    """In the block Ray listens on the loopback alone; by itself it takes 127.0.0.1 for this machine's outer address.

    The switch is the one by which it does so on macOS and Windows.
    """
    was, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = was


@contextmanager
def _in_words(address: str) -> Iterator[None]:
    """Raises: ConfigError that says why no cluster was found at the address, and what to do."""
    try:
        if address != "auto":
            knock(address)  # Ray would try for minutes
        yield
    except AuthenticationError as error:
        raise ConfigError(
            f"the cluster at {address} refuses the token of this machine; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN "
            "or the file ~/.ray/auth_token to what the head was started with, on every machine"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        where = "the cluster of this machine" if address == "auto" else f"a cluster at {address}"
        raise ConfigError(
            f"cannot reach {where} ({_first_line(error)}); start one with ray start --head, let this machine join it "
            "with ray start --address=HEAD:6379, check the port and the firewall between them, or use --ray local"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
