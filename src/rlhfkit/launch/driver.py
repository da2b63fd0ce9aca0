"""The driver of a run on a Ray cluster: starts trainers and samplers, and starts again what is lost.

It holds no tensor, so that it can run anywhere.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from rlhfkit.config.cluster import ClusterConfig
from rlhfkit.config.load import LoadedRecipe
from rlhfkit.config.recipe import Recipe
from rlhfkit.errors import LostRankError
from rlhfkit.launch.board import SAMPLERS, SCORERS, Board, News, Orders
from rlhfkit.launch.connecting import connected, passed_on
from rlhfkit.launch.crew import Crew
from rlhfkit.launch.head import watched_head
from rlhfkit.launch.record import Record
from rlhfkit.launch.requests import heed, wanted_of
from rlhfkit.launch.sampler import Sampler
from rlhfkit.launch.scoring import Scorer
from rlhfkit.launch.trainer import Ended, Trainer
from rlhfkit.machine.interrupts import interrupts_wait
from rlhfkit.machine.progress import Progress
from rlhfkit.report.page import report_or_warn
from rlhfkit.rundir.directory import RunDir

__all__ = ["run_on_ray"]

POLL_SECONDS = 0.5


def run_on_ray(
    loaded: LoadedRecipe, run_dir: Path, *, address: str, fresh: bool = False, progress: Progress | None = None
) -> None:
    """Run a recipe on a Ray cluster, or go on with it where it stopped.

    `address`: "local" starts a cluster on this machine alone, "auto" takes the one that this machine belongs to, any
    other is that of a head node.
    Raises: RlhfkitError, as a run on one machine. KeyboardInterrupt after Ctrl-C, once the iteration is saved.
    """
    recipe = loaded.recipe
    assert isinstance(recipe, Recipe)
    progress, is_local = progress or Progress(), address == "local"
    with connected(address, recipe.cluster):
        head = ray.get_runtime_context().gcs_address
        with nullcontext() if is_local else watched_head(head, progress.warn):
            _Driver(loaded, recipe.cluster, run_dir, progress, is_local=is_local).drive(fresh=fresh)


class _Driver:
    def __init__(
        self, loaded: LoadedRecipe, cluster: ClusterConfig, run_dir: Path, progress: Progress, *, is_local: bool
    ) -> None:
        self.loaded, self.cluster, self.progress, self.is_local = loaded, cluster, progress, is_local
        self.run = RunDir(run_dir.absolute())
        self.environment = passed_on()
        self.board = _board()
        self.crew = Crew(start=self._worker, is_up=_is_up, end=lambda worker: ray.kill(worker.actor))
        self.orders = Orders()
        self.record = Record(self.run)
        self._losses_in_a_row = 0
        self._iteration_of_loss = -1
        self._interrupted: Callable[[], bool] = lambda: False
        self._news = News()

    def drive(self, *, fresh: bool) -> None:
        if not fresh:
            self.record.go_on()
        group = self._reserved()  # the samplers get what is left
        self.crew.have(SAMPLERS, self.cluster.samplers)
        self.crew.have(SCORERS, self.cluster.reward_workers)
        how = "failed"
        try:
            how = self._driven(group, fresh=fresh)
        finally:
            self._show(how)
        if how == "stopped":
            raise KeyboardInterrupt
        remove_placement_group(group)
        if self.run.report.exists():  # the trainers wrote it before their last word on the cluster
            report_or_warn(self.run, self.progress.warn)

    def _driven(self, group: PlacementGroup, *, fresh: bool) -> str:
        with interrupts_wait("this iteration") as interrupted:
            self._interrupted = interrupted
            while (ended := self._trained(group, fresh=fresh)).how == "lost":
                if interrupted():  # a signal to all processes, as `timeout` gives it, ends the trainers as well
                    return "stopped"
                self._count_loss(ended)
                fresh = False
        if ended.error is not None:
            raise ended.error
        return "stopped" if ended.how == "interrupted" else "done"

    def _count_loss(self, ended: Ended) -> None:
        """Raises: LostRankError where the trainers are lost again and again."""
        has_moved = self._news.iteration > self._iteration_of_loss
        self._losses_in_a_row = 1 if has_moved else self._losses_in_a_row + 1
        self._iteration_of_loss = self._news.iteration
        if self._losses_in_a_row > self.cluster.max_restarts:
            raise LostRankError(
                f"trainers were lost {self._losses_in_a_row} times in a row without an iteration between, the last "
                f"time: {ended.words}; see that the machines stay up, and the same command goes on"
            )
        self.record.trainers_lost(ended.words, self._iteration_of_loss)
        self.progress.warn(f"{ended.words}; the trainers start again from the last checkpoint")

    # ── trainers ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _reserved(self) -> PlacementGroup:
        """Room for the trainers."""
        bundle = {"CPU": float(self.cluster.trainer_cpus)}
        if self.cluster.trainer_gpus:
            bundle["GPU"] = self.cluster.trainer_gpus
        group: PlacementGroup = placement_group([dict(bundle) for _ in range(self.cluster.trainers)], strategy="PACK")
        self._wait_for(group)
        return group

    def _wait_for(self, group: PlacementGroup) -> None:
        told = time.monotonic()
        while not group.wait(1):
            if self._interrupted():
                raise KeyboardInterrupt
            if time.monotonic() - told > 30:
                told = time.monotonic()
                self.progress.warn(
                    f"waiting for room for {self.cluster.trainers} trainers of {self.cluster.trainer_cpus} cores and "
                    f"{self.cluster.trainer_gpus:g} GPUs; the cluster has {_room()} free"
                )

    def _trained(self, group: PlacementGroup, *, fresh: bool) -> Ended:
        """What becomes of the trainers, which are started, and ended where one of them is lost."""
        trainers: list[Any] = []
        try:
            self._wait_for(group)
            ray.get(self.board.begin.remote())
            trainers = [self._trainer(group, rank) for rank in range(self.cluster.trainers)]
            calls = self._started(trainers, fresh=fresh)
            return self._watched(calls)
        except RayTaskError as error:  # nobody foresaw it, and it would come again
            raise (error.cause if isinstance(error.cause, Exception) else error) from error
        except RayError as error:
            return Ended("lost", f"a trainer is lost: {_in_words(error)}")
        finally:
            for trainer in trainers:
                ray.kill(trainer)

    def _trainer(self, group: PlacementGroup, rank: int) -> Any:
        return (
            ray.remote(Trainer)
            .options(
                num_cpus=self.cluster.trainer_cpus,
                num_gpus=self.cluster.trainer_gpus,
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
                runtime_env={"env_vars": self._environment(self.cluster.trainer_cpus)},
            )
            .remote(threads=self.cluster.trainer_cpus, board=self.board)
        )

    def _started(self, trainers: Sequence[Any], *, fresh: bool) -> list[Any]:
        places = self._answers([trainer.where.remote() for trainer in trainers])
        nodes = [node for node, _, _ in places]
        calls = []
        for rank, (trainer, (node, _, _)) in enumerate(zip(trainers, places, strict=True)):
            environment = {
                "RANK": str(rank),
                "WORLD_SIZE": str(len(trainers)),
                "LOCAL_RANK": str(nodes[:rank].count(node)),
                "LOCAL_WORLD_SIZE": str(nodes.count(node)),
                "MASTER_ADDR": places[0][1],
                "MASTER_PORT": str(places[0][2]),
            }
            calls.append(
                trainer.run.remote(self.loaded, str(self.run.path), os.getcwd(), fresh=fresh, environment=environment)
            )
        return calls

    def _answers(self, calls: Sequence[Any]) -> list[Any]:
        """What actors answer that have to be started first."""
        left = list(calls)
        while left:
            if self._interrupted():
                raise KeyboardInterrupt
            _, left = ray.wait(left, num_returns=len(left), timeout=1)
        return list(ray.get(list(calls)))

    def _watched(self, calls: Sequence[Any]) -> Ended:
        """How the trainers' work ended: of several ends the one that says most."""
        ends: list[Ended] = []
        open_calls = list(calls)
        while open_calls:
            done, open_calls = ray.wait(open_calls, num_returns=1, timeout=POLL_SECONDS)
            ends += [ray.get(call) for call in done]
            if self._interrupted() and not self.orders.stop:
                self._order(stop=True)
            self._hear()
            silent = self._news.silent_seconds
            if silent is not None and silent > self.cluster.silent_seconds:
                return Ended("lost", f"the first trainer has given no sign of life for {silent:.0f} s")
        self._hear()
        return min(ends, key=lambda end: (["failed", "interrupted", "lost", "done"].index(end.how), not end.words))

    def _hear(self) -> None:
        try:
            self._news = ray.get(self.board.news.remote(), timeout=10.0)
        except RayError:
            return  # it is starting anew
        for line in self._news.lines:  # which are handed out once
            self.progress.note(line)
        self.record.hear(self._news)
        heed(self.run, self.crew, self.record, note=self.progress.note, warn=self.progress.warn)
        self.crew.look()
        self.orders = replace(self.orders, workers=self.crew.up())
        with suppress(RayError):  # the next turn says it again
            ray.get(self.board.order.remote(self.orders), timeout=10.0)
        self._show()

    # ── samplers and reward workers ──────────────────────────────────────────────────────────────────────────────────

    def _worker(self, name: str, kind: str) -> "_Hired":
        cluster, is_sampler = self.cluster, kind == SAMPLERS
        threads = cluster.sampler_cpus if is_sampler else cluster.reward_worker_cpus
        actor: Any = (
            ray.remote(Sampler if is_sampler else Scorer)
            .options(
                name=name,
                num_cpus=0 if self.is_local else threads,  # there a core more or less is no reason to wait
                num_gpus=cluster.sampler_gpus if is_sampler else cluster.reward_worker_gpus,
                max_restarts=-1,
                runtime_env={"env_vars": self._environment(threads)},
            )
            .remote(threads=threads, get=ray.get)
        )
        return _Hired(actor, actor.ready.remote())

    # ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _environment(self, threads: int) -> dict[str, str]:
        return {**self.environment, "OMP_NUM_THREADS": str(threads)}

    def _order(self, **changes: Any) -> None:
        self.orders = replace(self.orders, **changes)
        ray.get(self.board.order.remote(self.orders))

    def _show(self, state: str = "running") -> None:
        """The table of who is up, for the dashboard and for people."""
        self.record.show(
            self._news,
            num_trainers=self.cluster.trainers,
            wanted=asdict(wanted_of(self.crew)),
            starting={kind: self.crew.starting(kind) for kind in (SAMPLERS, SCORERS)},
            state=state,
        )


@dataclass(frozen=True)
class _Hired:
    """A worker, and a call that it answers once it is up."""

    actor: Any
    ready: Any


def _is_up(worker: _Hired) -> bool:
    done, _ = ray.wait([worker.ready], timeout=0)
    return bool(done)  # or lost at the start, which the pool will see


def _board() -> Any:
    """An actor on this machine as long as there is room, so that the loss of another one does not take it along."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(Board).options(**options).remote()


def _in_words(error: RayError) -> str:
    if isinstance(error, ActorDiedError | ActorUnavailableError):
        return "its process or its machine has ended"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _room() -> str:
    free = ray.available_resources()  # type: ignore[no-untyped-call]
    return f"{free.get('CPU', 0):g} cores and {free.get('GPU', 0):g} GPUs"
