"""A process joins those of its run, as `torchrun` or our own launcher have told it to, and leaves them again."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from rlhfkit.distributed.faults import BEAT_SECONDS, FaultWatch
from rlhfkit.distributed.ranks import ALONE, Ranks, become
from rlhfkit.errors import ConfigError, RlhfkitError
from rlhfkit.machine.interrupts import Spoken

__all__ = ["joined", "ranks_asked_for"]

PATIENCE = timedelta(days=30)
"""A collective may wait for days, as for people who label: whether a rank lives is asked elsewhere."""
JOIN_TIMEOUT = timedelta(minutes=5)


def ranks_asked_for(environment: Mapping[str, str] = os.environ) -> Ranks:
    """Which rank the environment says this process is, by torchrun's variables; alone where it says nothing.

    Raises: ConfigError where it says it by halves.
    """
    size = environment.get("WORLD_SIZE", "1")
    if size == "1":
        return ALONE
    try:
        local_size = int(environment.get("LOCAL_WORLD_SIZE", size))
        found = Ranks(int(environment["RANK"]), int(size), int(environment["LOCAL_RANK"]), local_size)
        int(environment["MASTER_PORT"]), environment["MASTER_ADDR"]
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"WORLD_SIZE = {size}, but of RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT one is missing or no number "
            f"({error}); start with rlhfkit run --processes N, or with torchrun"
        ) from error
    return found


@contextmanager
def joined() -> Iterator[Ranks]:
    """In the block this process is one of its run; alone, where nobody asked for more, with no group at all.

    Raises: what the block raises, in words that name the rank, where this rank is the one to tell the user; else
    Spoken. ConfigError where the others cannot be reached.
    """
    wanted = ranks_asked_for()
    if wanted.size == 1 or dist.is_initialized():
        yield ALONE
        return
    stores = [_store(wanted) for _ in range(2)]  # a store waits for one answer at a time
    device = _device_of(wanted)
    dist.init_process_group(
        "gloo" if device is None else "cpu:gloo,cuda:nccl",
        store=PrefixStore("group", stores[0]),
        rank=wanted.rank,
        world_size=wanted.size,
        timeout=PATIENCE,
        device_id=device,
    )
    watch = FaultWatch(PrefixStore("rlhfkit", stores[1]), wanted.rank, wanted.size)
    watch.start()
    try:
        with become(wanted):
            yield wanted
            wanted.wait()  # nobody leaves before the last is done
    except (Exception, KeyboardInterrupt) as error:
        _end(watch, error, wanted)
        raise
    watch.stop()
    dist.destroy_process_group()


def _end(watch: FaultWatch, error: BaseException, here: Ranks) -> None:
    """Raises: the error in words that name the rank, or Spoken; returns for an interrupt, which comes to all."""
    if isinstance(error, KeyboardInterrupt):
        watch.stop()
        return
    words = watch.explain(error)
    if _hosts_the_store(here):
        time.sleep(3 * BEAT_SECONDS)  # the others read there what has happened
    if words is None:
        raise Spoken from error
    if isinstance(error, RlhfkitError):
        raise type(error)(words) from error
    raise RuntimeError(words) from error


def _store(here: Ranks) -> TCPStore:
    """A connection to where the ranks meet.

    Raises: ConfigError where nobody answers.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        # The second one of the process that hosts it finds the first.
        return TCPStore(
            address,
            port,
            is_master=_hosts_the_store(here),
            timeout=JOIN_TIMEOUT,
            wait_for_workers=False,
            multi_tenant=True,
        )
    except RuntimeError as error:
        raise ConfigError(
            f"rank {here.rank} of {here.size} cannot reach {address}:{port}, where the processes of the run meet "
            f"({str(error).splitlines()[0]}); check the address, the port and the firewall between the machines"
        ) from error


def _hosts_the_store(here: Ranks) -> bool:
    """Whether this process does; torchrun and our launcher do it themselves."""
    return here.is_first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def _device_of(here: Ranks) -> torch.device | None:
    """The accelerator of this rank, each one of its own; None where they compute on CPUs.

    Raises: ConfigError where there are more ranks than accelerators.
    """
    if not torch.cuda.is_available():
        return None
    there = torch.cuda.device_count()
    if here.local_rank >= there:
        raise ConfigError(
            f"{here.local_rank + 1} processes on this machine, which has {there} GPU{'s' * (there > 1)}; start one a "
            "GPU, or hide the GPUs with CUDA_VISIBLE_DEVICES= to compute on the CPU"
        )
    device = torch.device("cuda", here.local_rank)
    torch.cuda.set_device(device)
    return device
