"""Several ranks of one run as forks of the test's process, which are there in a moment."""

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rlhfkit.distributed.ranks import Ranks, become

LIMIT_SECONDS = 20.0
_fork = multiprocessing.get_context("fork")


def together(num: int, work: Callable[[], Any], directory: Path) -> list[Any]:
    """What `work` returns on each of `num` ranks; where it raises, the error stands in its place.

    With one rank it is called here: there is no group then.
    """
    if num == 1:
        return [work()]
    meeting = directory / f"meeting-{os.getpid()}-{len(list(directory.glob('meeting-*')))}"
    meeting.touch()
    pipes = [_fork.Pipe(duplex=False) for _ in range(num)]
    processes = [
        _fork.Process(target=_rank, args=(Ranks(rank, num, rank, num), work, meeting, end))
        for rank, (_, end) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    try:
        return [_received(mine, rank) for rank, (mine, _) in enumerate(pipes)]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _received(end: Connection, rank: int) -> Any:
    assert end.poll(LIMIT_SECONDS), f"rank {rank} has not answered within {LIMIT_SECONDS} s"
    return pickle.loads(end.recv_bytes())


def _rank(here: Ranks, work: Callable[[], Any], meeting: Path, end: Connection) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{meeting}.store", here.size)
    dist.init_process_group(
        "gloo", store=store, rank=here.rank, world_size=here.size, timeout=timedelta(seconds=LIMIT_SECONDS)
    )
    try:
        with become(here):
            result = work()
    except Exception as error:
        traceback.print_exc()  # pytest shows it where the test fails
        end.send_bytes(pickle.dumps(error))
        os._exit(1)  # at once, as a process that fails does
    end.send_bytes(pickle.dumps(result))
    with suppress(Exception):
        dist.barrier()  # nobody leaves while another still talks to it
    os._exit(0)
