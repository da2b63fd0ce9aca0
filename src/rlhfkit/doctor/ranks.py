"""Whether several processes can work on one run: the same versions everywhere, right sums, and how fast they travel."""

import platform
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata

import torch
from torch import Tensor, nn

from rlhfkit.diagnosis.limits import GRADIENT_ROUNDING
from rlhfkit.distributed.ranks import become, ranks
from rlhfkit.distributed.sharding import shard, whole
from rlhfkit.doctor.findings import Finding, checked, fault, ok
from rlhfkit.machine.device import choose_device
from rlhfkit.rundir.manifest import PACKAGES

__all__ = ["examine_ranks"]

SENT_ELEMENTS = 2**22
WIDTH, NUM_ROWS = 33, 7
"""Neither divides by a number of ranks."""


def examine_ranks() -> Iterator[Finding]:
    """What the processes of a run find together; every one of them must ask, and the first one says it."""
    yield from checked("ranks.places", _places)
    yield from checked("ranks.versions", _versions)
    for name, parted in (("ranks.gradient", False), ("ranks.parted", True)):
        yield from checked(name, lambda name=name, parted=parted: _gradient(name, parted=parted))  # type: ignore[misc]
    yield from checked("ranks.speed", _speed)


def _places() -> Iterator[Finding]:
    here = ranks()
    found = here.gather((socket.gethostname(), str(choose_device("auto"))))
    hosts: dict[str, list[str]] = {}
    for host, device in found:
        hosts.setdefault(host, []).append(device)
    words = "; ".join(f"{host}: {len(devices)} on {devices[0]}" for host, devices in hosts.items())
    yield ok("ranks.places", f"{here.size} processes met: {words}", num_ranks=here.size, num_hosts=len(hosts))


def _versions() -> Iterator[Finding]:
    own = {"python": platform.python_version(), "rlhfkit": metadata.version("rlhfkit")}
    own |= {name: _version(name) for name in PACKAGES}
    found = ranks().gather((socket.gethostname(), own))
    _, first = found[0]
    odd = [
        f"{name} {versions[name]} on {host} (rank {rank}), {first[name]} on rank 0"
        for rank, (host, versions) in enumerate(found)
        for name in first
        if versions[name] != first[name]
    ]
    if odd:
        yield fault("ranks.versions", "; ".join(odd), "install the same on all machines, as by constraints.txt")
    else:
        yield ok("ranks.versions", f"the same on all: torch {first['torch']}, rlhfkit {first['rlhfkit']}")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


def _gradient(name: str, *, parted: bool) -> Iterator[Finding]:
    """The gradient of a sum over rows that are shared out, beside that of one process with all rows."""
    rows = torch.randn((NUM_ROWS, WIDTH), generator=torch.Generator().manual_seed(0))
    expected = _gradients(rows, parted=False)
    own = rows[list(ranks().share(NUM_ROWS))]
    with become(replace(ranks(), shards=parted)):
        found = _gradients(own, parted=parted)
    if not parted:
        ranks().add_up(found)
    difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))
    difference = max(ranks().gather(difference))
    how = "by PyTorch's FSDP" if parted else "as a sum of all"
    if difference <= GRADIENT_ROUNDING:
        yield ok(name, f"a gradient {how} is that of one process (off by {difference:.1g})", difference=difference)
    else:
        yield fault(
            name,
            f"a gradient {how} is off by {difference:.2g} of its size from that of one process",
            f"this torch {torch.__version__} adds up wrongly between processes here: use another version"
            + (', or parallel.shard = "none"' if parted else ""),
        )


def _gradients(rows: Tensor, *, parted: bool) -> list[Tensor]:
    """Gradients of a small network, of the sum over `rows`."""
    torch.manual_seed(0)
    device = choose_device("auto") if parted else torch.device("cpu")
    network = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1)).to(device)
    if parted:
        shard(network, [network[0], network[2]], dtype=torch.float32)
    torch.autograd.backward(network(rows.to(device)).sum())
    return [whole(parameter.grad).cpu() for parameter in network.parameters() if parameter.grad is not None]


def _speed() -> Iterator[Finding]:
    tensor = torch.ones(SENT_ELEMENTS, device=choose_device("auto"))
    ranks().add_up([tensor])  # the first time makes connections
    ranks().wait()
    start = time.perf_counter()
    ranks().add_up([tensor])
    float(tensor[0])  # an accelerator is waited for
    rate = tensor.nbytes / max(ranks().gather(time.perf_counter() - start))
    yield ok("ranks.speed", f"gradients are added up at {rate / 1e9:.2f} GB/s", bytes_per_second=rate)
