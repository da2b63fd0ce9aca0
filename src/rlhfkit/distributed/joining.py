"""A process joins those of its run, as `torchrun` or our own launcher ask for, and leaves them again."""

import atexit
import fcntl
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import TracebackType

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # torch has no list of its names

from rlhfkit.config.secrets import hidden
from rlhfkit.distributed.faults import BEAT_SECONDS, JOIN_SECONDS, FaultWatch
from rlhfkit.distributed.listening import listening_at
from rlhfkit.distributed.ranks import ALONE, Ranks, become, ranks, stay
from rlhfkit.errors import ConfigError, LostRankError, MissingDependencyError, RlhfkitError
from rlhfkit.machine.interrupts import FailedRank, Paused, Spoken, interrupts_wait

__all__ = ["Membership", "interface_towards", "join", "join_for_good", "joined", "ranks_asked_for"]

PATIENCE = timedelta(days=30)
"""A collective may wait for days, as for people who label: whether a rank lives is asked elsewhere."""
JOIN_TIMEOUT = timedelta(seconds=JOIN_SECONDS)
LEAVE_SECONDS = 10.0
SIOCGIFADDR = 0x8915
"""Linux's number of the question which address an interface has."""


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


_has_joined = False


class Membership:
    """This process as one of the ranks of a run, from `join` to `leave` or `end`."""

    def __init__(self, here: Ranks, watch: FaultWatch) -> None:
        self.here, self.watch = here, watch

    def leave(self) -> None:
        """This rank is done, and nobody waits for it any more."""
        self.watch.stop()
        atexit.unregister(self.watch.stop)
        dist.destroy_process_group()

    def end(self, error: BaseException) -> BaseException:
        """What to raise in the place of an error that ends this rank, once all know of it.

        The same in words that name the rank, where this one is to tell the user; else Spoken. KeyboardInterrupt, where
        somebody has asked for the end of any of them.
        """
        # torchrun sends a signal to the others where one is gone, which says nothing new.
        with interrupts_wait("this", says=False):
            fault = self.watch.fail(error)
        if _hosts_the_store(self.here):
            time.sleep(3 * BEAT_SECONDS)  # the others read there what has happened
        if fault.is_interrupt:
            return KeyboardInterrupt()
        if fault.by != self.here.rank:
            return Spoken()
        is_kind = isinstance(error, RlhfkitError) and not isinstance(error, MissingDependencyError)
        return type(error)(fault.words()) if is_kind else FailedRank(fault.words())


def join() -> Membership | None:
    """Join the others, as the environment says; None where this process is alone.

    Raises: ConfigError where the others cannot be reached, or torch has a group already; else as `joined`.
    """
    wanted = ranks_asked_for()
    if wanted.size == 1:
        return None
    global _has_joined
    if dist.is_initialized():
        raise ConfigError(
            "torch.distributed.init_process_group was called before the first trainer; leave it out, as the trainer "
            "calls it, with an interface and a time limit that fit"
        )
    _has_joined = True
    stores = [_store(wanted) for _ in range(2)]  # a store waits for one answer at a time
    way = _way_to_the_others(wanted, os.environ)
    watch = FaultWatch(
        PrefixStore("rlhfkit", stores[1]), wanted.rank, wanted.size, way=way, here=wanted.of_this_machine
    )
    watch.start()
    # A thread that Python ends in the middle of a question to the store would abort the process.
    atexit.register(watch.stop)
    member = Membership(wanted, watch)
    try:
        device = _device_of(wanted)
        with _words_of(wanted, way):
            dist.init_process_group(
                "gloo" if device is None else "cpu:gloo,cuda:nccl",
                store=PrefixStore("group", stores[0]),
                rank=wanted.rank,
                world_size=wanted.size,
                timeout=PATIENCE,
                device_id=device,
            )
            dist.barrier()  # whoever is late is late here
    except (Exception, KeyboardInterrupt) as error:
        raise member.end(error) from error
    watch.joined()
    return member


def join_for_good() -> Ranks:
    """This process among those of the run, from now on until it ends; called again, it changes nothing.

    An error that ends the program is reported to all ranks, and one of them shows it.
    Raises: as `join`.
    """
    if _has_joined:  # `ranks()` is alone in a part that one rank does for all
        return ranks()
    member = join()
    if member is None:
        return ALONE
    stay(member.here)
    show = sys.excepthook

    def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        atexit.unregister(leave)
        reported = member.end(error)
        if isinstance(reported, Spoken):
            return
        if isinstance(reported, KeyboardInterrupt):
            if member.here.is_first:
                print("\ninterrupted", file=sys.stderr, flush=True)
            return
        show(kind, error, trace)
        print(f"error: {hidden(str(reported))}", file=sys.stderr, flush=True)

    def leave() -> None:
        if member.here.is_first:  # the others may still read what goes with this process
            member.watch.wait_for_the_others(LEAVE_SECONDS)
        member.leave()

    sys.excepthook = report
    atexit.register(leave)
    return member.here


@contextmanager
def joined() -> Iterator[Ranks]:
    """In the block this process is one of its run; alone, where nobody asked for more, with no group at all.

    Raises: what the block raises, in words that name the rank, where this rank is the one to tell the user; else
    Spoken. ConfigError where the others cannot be reached. KeyboardInterrupt, where any of them was interrupted.
    """
    member = join()
    if member is None:
        yield ALONE
        return
    paused: Paused | None = None
    try:
        with become(member.here):
            try:
                yield member.here
            except Paused as error:  # which all ranks raise in the same place
                paused = error
            member.here.wait()  # nobody leaves before the last is done
    except (Exception, KeyboardInterrupt) as error:
        raise member.end(error) from error
    member.leave()
    if paused is not None:
        raise paused


@contextmanager
def _words_of(here: Ranks, way: str) -> Iterator[None]:
    """Raises: LostRankError that says how this rank was to reach the others, where it does not."""
    try:
        yield
    except RuntimeError as error:
        raise LostRankError(
            f"rank {here.rank} of {here.size} cannot reach the others over {way} ({str(error).splitlines()[0]})"
        ) from error


def _way_to_the_others(here: Ranks, environment: MutableMapping[str, str]) -> str:
    """In words, the network interface that leads to the others; the one to where they meet, unless another is set.

    By itself gloo takes what the name of the machine stands for, which may be the loop-back or a container's bridge.
    """
    name = "GLOO_SOCKET_IFNAME"
    if name in environment:
        return f"the interface {environment[name]}, as {name} says"
    address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    found = interface_towards(address, port)
    if found is None or (found == "lo" and here.local_size < here.size):
        return f"the interface of this machine's name; set {name} to the one that leads to {address}"
    environment[name] = found
    environment.setdefault("NCCL_SOCKET_IFNAME", found)
    return f"the interface {found}, which leads to {address}; set {name} to another one if that is wrong"


def interface_towards(address: str, port: int) -> str | None:
    """The network interface whose own address a connection to there would have; None where nothing says so."""
    if sys.platform != "linux":
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, port))  # of datagrams, so nothing is sent
            own = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                if _address_of(probe, name) == own:
                    return name
        except OSError:
            return None
    return None


def _address_of(opened: socket.socket, interface: str) -> str | None:
    with suppress(OSError):  # it has none
        answer = fcntl.ioctl(opened.fileno(), SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        return socket.inet_ntoa(answer[20:24])
    return None


def _store(here: Ranks) -> TCPStore:
    """A connection to where the ranks meet.

    Raises: ConfigError where nobody answers.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        # The second one of the process that hosts it finds the first, whose address is taken.
        return TCPStore(
            address,
            port,
            is_master=_hosts_the_store(here),
            timeout=JOIN_TIMEOUT,
            wait_for_workers=False,
            multi_tenant=True,
            master_listen_fd=listening_at(address, port) if _hosts_the_store(here) else None,
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
