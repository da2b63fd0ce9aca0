"""A trainer: one rank of the run, in an actor of Ray, that runs the whole recipe as `rlhfkit run` does elsewhere."""

import _thread
import io
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
import torch
from ray.exceptions import ObjectStoreFullError, OutOfDiskError
from rich.console import Console

from rlhfkit.config.cluster import ClusterConfig
from rlhfkit.config.load import LoadedRecipe
from rlhfkit.config.recipe import Recipe
from rlhfkit.distributed.joining import joined
from rlhfkit.distributed.listening import free_port
from rlhfkit.distributed.ranks import ranks
from rlhfkit.errors import LostRankError, OutOfMemoryError, RlhfkitError
from rlhfkit.launch.board import SAMPLERS, SCORERS
from rlhfkit.launch.engine import ClusterEngine
from rlhfkit.launch.messages import Blueprint
from rlhfkit.launch.pool import Pool
from rlhfkit.launch.scoring import ClusterReward
from rlhfkit.launch.transport import RayTransport
from rlhfkit.machine.interrupts import FailedRank, Spoken, ends_like_interrupts
from rlhfkit.machine.progress import Progress
from rlhfkit.pipeline.build import Builder
from rlhfkit.pipeline.rounds import run as run_recipe
from rlhfkit.pipeline.workload import Workload
from rlhfkit.rewards.source import RewardSource
from rlhfkit.rollout.engine import Engine, GatheredSampler
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.lock import is_locked

__all__ = ["Ended", "Trainer", "wait_for_lock"]

BEAT_SECONDS = 1.0
LOCK_SECONDS = 90.0
"""Longer than trainers live that cannot reach their head any more."""
LOCK_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Ended:
    """How a trainer's work ended."""

    how: Literal["done", "interrupted", "lost", "failed"]
    """"lost": by something that may not happen again, so that the last checkpoint is gone on from."""
    words: str = ""
    error: Exception | None = None


class Trainer:
    """A rank. Whatever it holds is in the run's checkpoints too."""

    def __init__(self, *, threads: int, board: Any) -> None:
        """Compute with so many threads; `board` is the actor to leave word with."""
        self._threads, self._board = threads, board

    def where(self) -> tuple[str, str, int]:
        """(node, address, a free port there)."""
        address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return ray.get_runtime_context().get_node_id(), address, free_port(address)

    def pid(self) -> int:
        """Of this process."""
        return os.getpid()

    def run(
        self, loaded: LoadedRecipe, run_dir: str, directory: str, *, fresh: bool, environment: Mapping[str, str]
    ) -> Ended:
        """Run the recipe, or go on with it."""
        os.environ.update(environment)
        if Path(directory).is_dir():
            os.chdir(directory)
        torch.set_num_threads(self._threads)
        lines = Lines()
        assert isinstance(loaded.recipe, Recipe)
        workload = ClusterWorkload(loaded.recipe.cluster, directory, lines.say)
        is_first = environment.get("RANK", "0") == "0"
        beats = Beats(self._board, lines, workload) if is_first else None
        try:
            if beats is not None:
                beats.start()
            with ends_like_interrupts(), joined():
                progress = lines.progress() if is_first else Progress(quiet=True)
                if is_first:
                    wait_for_lock(RunDir(Path(run_dir)), progress.note)
                run_recipe(loaded, Path(run_dir), fresh=fresh, progress=progress, workload=workload)
            return Ended("done")
        except KeyboardInterrupt:
            return Ended("interrupted")
        except (LostRankError, Spoken) as error:
            return Ended("lost", str(error))
        except (RlhfkitError, FailedRank) as error:
            return Ended("failed", str(error), error)
        finally:
            workload.close()
            if beats is not None:
                beats.stop()


def wait_for_lock(run: RunDir, tell: Callable[[str], None], *, seconds: float = LOCK_SECONDS) -> None:
    """Wait for a process that works in the run's directory, as trainers do for a while whose driver was killed."""
    until = time.monotonic() + seconds
    if is_locked(run):
        tell(
            f"another process still works in {run.path}, perhaps for a driver that was killed; waiting for its end, "
            f"for {seconds:g} s at most"
        )
    while is_locked(run) and time.monotonic() < until:
        time.sleep(LOCK_POLL_SECONDS)


class ClusterWorkload(Workload):
    """All of the recipe, with samplers and reward workers elsewhere."""

    def __init__(self, cluster: ClusterConfig, directory: str, tell: Callable[[str], None]) -> None:
        self._cluster, self._directory, self._tell = cluster, directory, tell
        self.transports = {kind: RayTransport(kind) for kind in (SAMPLERS, SCORERS)}
        self._pools: dict[str, Pool] = {}
        self._engine: ClusterEngine | None = None

    @property
    def iteration(self) -> int:
        """The last one that responses were asked for."""
        return 0 if self._engine is None else self._engine.iteration

    def engine(self, engine: Engine | None, builder: Builder) -> Engine | None:
        """What samples in PPO: the samplers, whatever the recipe's engine is."""
        self._engine = ClusterEngine(
            self._pool(SAMPLERS),
            put,
            self._blueprint(builder),
            gathered=engine if isinstance(engine, GatheredSampler) else None,
            importance_cap=None if engine is None else engine.importance_cap,
        )
        return self._engine

    def reward(self, build: Callable[[], RewardSource], builder: Builder) -> RewardSource:
        """What scores in PPO: the reward workers, where there are any."""
        if not self._cluster.reward_workers:
            return build()
        plan = put(self._blueprint(builder)) if ranks().is_first else None
        return ClusterReward(self._pool(SCORERS), lambda: plan)

    def table(self) -> dict[str, Any]:
        """How the workers are."""
        return {kind: transport.table for kind, transport in self.transports.items() if transport.table}

    def close(self) -> None:
        """Forget the workers."""
        for pool in self._pools.values():
            pool.stop()

    def _pool(self, kind: str) -> Pool | None:
        if not ranks().is_first:
            return None
        if kind not in self._pools:
            self._pools[kind] = Pool(self.transports[kind], slow_factor=self._cluster.slow_factor, tell=self._tell)
            self._pools[kind].start()
        return self._pools[kind]

    def _blueprint(self, builder: Builder) -> Blueprint:
        return Blueprint(
            recipe=builder.recipe,
            run=str(builder.run.path.absolute()),
            start=builder.starting_point(),
            dtype=builder.dtype_choice,
            directory=self._directory,
        )


def put(value: object) -> Any:
    """A reference by which every worker can pull a value.

    Raises: OutOfMemoryError where the cluster's store has no room for it.
    """
    try:
        return ray.put(value)
    except (ObjectStoreFullError, OutOfDiskError) as error:
        raise OutOfMemoryError(
            "the store of objects on the trainer's machine has no room for the policy's weights, of which it holds two "
            "versions; give it more (ray start --object-store-memory), free /dev/shm, or train adapters (model.lora), "
            "of which alone is stored what changes"
        ) from error


class Lines(io.StringIO):
    """What progress writes, in whole lines, until somebody takes them along."""

    def __init__(self) -> None:
        super().__init__()
        self._lock, self._open, self._whole = threading.Lock(), "", list[str]()

    def progress(self) -> Progress:
        """What writes its lines here."""
        return Progress(console=Console(file=self, width=200))

    def write(self, text: str) -> int:
        """Add to what is there."""
        with self._lock:
            *whole, self._open = (self._open + text).split("\n")
            self._whole += whole
        return len(text)

    def say(self, line: str) -> None:
        """A line of its own."""
        with self._lock:
            self._whole.append(line)

    def taken(self) -> list[str]:
        """The lines since the last time."""
        with self._lock:
            taken, self._whole = self._whole, []
        return taken


class Beats:
    """A thread that says that the first trainer lives, and hears what the driver wants."""

    def __init__(self, board: Any, lines: Lines, workload: ClusterWorkload) -> None:
        self._board, self._lines, self._workload = board, lines, workload
        self._ended, self._has_stopped = threading.Event(), False
        self._thread = threading.Thread(target=self._work, name="beats", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._turn()
        self._thread.start()

    def stop(self) -> None:
        """Say the last lines, and end."""
        self._ended.set()
        self._thread.join(10.0)
        self._turn()

    def _work(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            self._turn()

    def _turn(self) -> None:
        lines = self._lines.taken()
        try:
            orders = ray.get(
                self._board.beat.remote(lines, self._workload.table(), self._workload.iteration), timeout=10.0
            )
        except ray.exceptions.RayError:  # it is starting anew; what it knew is said to it again
            for line in lines:
                self._lines.say(line)
            return
        if orders is None:  # it has started anew: not that the driver wants no workers any more
            return
        for transport in self._workload.transports.values():
            transport.orders = orders
        if orders.stop and not self._has_stopped:
            self._has_stopped = True
            _thread.interrupt_main()  # and no signal, as Ray blocks SIGINT in its workers
