"""The reward on a cluster: workers that score chunks of responses while others are sampled or learnt from."""

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhfkit.distributed.ranks import ranks
from rlhfkit.launch.messages import Blueprint
from rlhfkit.launch.pool import Pool
from rlhfkit.launch.sampler import on_this_machine
from rlhfkit.pipeline.build import Builder
from rlhfkit.rewards.source import Detailed, RewardSource, ScoredText, check_scores, scored_in_detail
from rlhfkit.rundir.directory import RunDir

__all__ = ["ClusterReward", "Scored", "Scorer", "ToScore"]


@dataclass(frozen=True)
class ToScore:
    """Episodes that are scored together, whoever does it."""

    blueprint: Sequence[Any]
    """Reference to the `Blueprint` of the run; in a sequence, so that nobody pulls it who has it."""
    episodes: Sequence[ScoredText]


@dataclass(frozen=True)
class Scored:
    """What came of them."""

    scores: list[float]
    seconds: float
    host: str
    pid: int
    details: dict[str, list[float]] = field(default_factory=dict)
    """What the reward tells of the scores, by name."""

    @property
    def num_units(self) -> int:
        """How many were scored."""
        return len(self.scores)


class Scorer:
    """A reward worker."""

    def __init__(self, *, threads: int, get: Callable[[Any], Any]) -> None:
        """Compute with so many threads; `get` gives what a reference stands for."""
        torch.set_num_threads(threads)
        self._get = get
        self._blueprint: str | None = None
        self._reward: RewardSource | None = None

    def ready(self) -> None:
        """Answers once this process is up."""

    def work(self, chunk: ToScore) -> Scored:
        """Scores of the episodes of a chunk. Raises: RewardError where the reward source fails."""
        with on_this_machine():
            return self._work(chunk)

    def _work(self, chunk: ToScore) -> Scored:
        start = time.perf_counter()
        reference = chunk.blueprint[0]
        if self._reward is None or self._blueprint != str(reference):
            self._reward = _built(self._get(reference))
            self._blueprint = str(reference)
        found, details = scored_in_detail(self._reward, chunk.episodes)
        scores = check_scores(found, chunk.episodes, source="the reward source")
        listed = {name: numbers.tolist() for name, numbers in details.items()}
        return Scored(scores.tolist(), time.perf_counter() - start, socket.gethostname(), os.getpid(), listed)


def _built(blueprint: Blueprint) -> RewardSource:
    if Path(blueprint.directory).is_dir():
        os.chdir(blueprint.directory)
    builder = Builder(blueprint.recipe, RunDir(Path(blueprint.run)), given_dtype=blueprint.dtype)
    return builder.reward(blueprint.recipe.reward)


class ClusterReward:
    """Scores by a pool of workers; the first rank talks to them, and tells the others what they said."""

    def __init__(self, pool: Pool | None, plan: Callable[[], Any]) -> None:
        """`plan` gives a reference to the blueprint; `pool` is None on all ranks but the first."""
        self._pool, self._plan = pool, plan

    def begin(self, episodes: Sequence[ScoredText]) -> Callable[[], Detailed]:
        """Have episodes scored by one worker; what gives their scores once they are there."""
        job = None if self._pool is None else self._pool.begin([ToScore([self._plan()], list(episodes))])

        def pending() -> Detailed:
            own = None if job is None else job.wait()[0]
            scores, details = ranks().from_first(([], {}) if own is None else (own.scores, own.details))
            return torch.tensor(scores, dtype=torch.float32), {
                name: torch.tensor(numbers, dtype=torch.float32) for name, numbers in details.items()
            }

        return pending

    def score(self, episodes: Sequence[ScoredText]) -> Tensor:
        """Scores (B,) of episodes. Raises: RewardError where a worker's reward source fails."""
        return self.begin(episodes)()[0]
