"""A PPO whose optimum and law are known: score = d (a - b ln d) + noise, with d the root of the KL."""

import math
import threading
import time
from dataclasses import dataclass, field

import numpy as np

from rlhfkit.config.load import load_recipe
from rlhfkit.machine.seeding import derive_seed
from rlhfkit.rundir.study import Point
from rlhfkit.training.kl_marks import comes_to_a_mark
from rlhfkit.tuning.design import Design, Job, design_of
from rlhfkit.tuning.finals import TestRun
from rlhfkit.tuning.runner import Outcome

BUDGET = 9.0
B = 0.25
"""Of the law: how fast more distance stops to pay."""


BEST_RATE = 6e-4
"""Twice what goes by the model's size."""


def design(*overrides: str) -> Design:
    """A search over the knobs that ship for a small language model, from settings that are far from the best."""
    settings = ["ppo.iterations=90", "evaluation.every_iterations=5", f"tune.kl={BUDGET}", "ppo.kl.coef=0.25"]
    settings += ["ppo.optim.learning_rate=8e-5", *overrides]
    return design_of(load_recipe("demo", settings).recipe)


def quality(params) -> float:
    """How well a policy uses its distance; 1 at the optimum, where no usual settings are."""
    rate = math.log10(params["ppo.optim.learning_rate"] / BEST_RATE)
    ratio = math.log10(params["value_rate_ratio"] / 8)
    epochs = {1: 0.95, 2: 1.0, 4: 0.98}[params["ppo.epochs"]]
    return math.exp(-0.5 * (rate / 0.6) ** 2 - 0.5 * (ratio / 0.9) ** 2) * epochs


def distance(params, iteration: int) -> float:
    """KL after so many iterations: up to a limit that the coefficient sets, as fast as the rate says."""
    pace = params["ppo.optim.learning_rate"] / BEST_RATE
    return 0.8 / params["ppo.kl.coef"] * (1 - math.exp(-iteration * pace / 40))


def true_score(params, iteration: int) -> float:
    """Without noise."""
    d = math.sqrt(distance(params, iteration))
    return d * (quality(params) - B * math.log(d)) if d else 0.0


def evaluated(params, total: int = 90, every: int = 5) -> list[int]:
    """The iterations in which such a run is evaluated."""
    kls = [distance(params, at) for at in range(total)]
    return [at for at in range(total) if at % every == 0 or comes_to_a_mark(kls[:at], BUDGET)]


def true_worth(params) -> float:
    """S(B) without noise."""
    return max(true_score(params, at) for at in evaluated(params) if distance(params, at) <= BUDGET)


def optimum() -> float:
    """Of the whole space: the best quality, at the budget."""
    d = min(math.sqrt(BUDGET), math.exp(1 / B - 1))
    return d * (1 - B * math.log(d))


@dataclass
class StubRunner:
    """Runs that take no time."""

    design: Design
    seed: int = 0
    noise: float = 0.03
    done: dict[str, int] = field(default_factory=dict)
    """Run → iterations that it has done."""
    sent: list[tuple[str, int | None]] = field(default_factory=list)
    """Every stretch, in order."""
    hackers: frozenset[int] = frozenset()
    """Trials whose policy leaves its reference at once, for a high score."""
    broken: frozenset[int] = frozenset()
    """Trials whose responses grow to three times their length."""
    failing: frozenset[int] = frozenset()
    takes: float = 0.0
    """Seconds of each stretch."""
    killed_at: int | None = None
    """The stretch, from 0, in which everything dies."""
    known: dict[tuple[str, int], list] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def prepare(self, claim) -> Outcome:
        return Outcome("done", 10.0)

    def advance(self, job: Job, claim) -> Outcome:
        with self._guard:
            self.sent.append((job.name, job.until))
            until = job.until or self.design.total
            before = self.done.get(job.name, 0)
            if self.killed_at == len(self.sent) - 1:
                self.done[job.name] = before + (until - before) // 2
                raise KeyboardInterrupt
            self.done[job.name] = until
        time.sleep(self.takes)
        if job.number in self.failing:
            return Outcome("failed", 1.0, "error: loss is not finite")
        return Outcome("done", float(until - before))

    def rows(self, job: Job):
        key = job.name, self.done.get(job.name, 0)
        if key not in self.known:
            self.known[key] = self._rows(job)
        return self.known[key]

    def _rows(self, job: Job):
        growth = 3.0 if job.number in self.broken else 1.0
        return [
            {
                "iteration": at,
                "evaluation/ref_kl": self._kl(job, at),
                "evaluation/judge": self._score(job, at),
                "evaluation/response_tokens": 20.0 * (growth if at else 1.0),
                "evaluation/distinct_2": 0.5,
                "evaluation/eos_rate": 1.0,
                "evaluation/ref_perplexity": 10.0,
            }
            for at in evaluated(job.params, self.done.get(job.name, 0), self.design.every)
        ]

    def points(self, job: Job) -> list[Point]:
        return [
            Point(iteration=row["iteration"], score=row["evaluation/judge"], kl=row["evaluation/ref_kl"])
            for row in self.rows(job)
        ]

    def stopped(self, job: Job) -> str:
        return ""

    def tested(self, job: Job) -> TestRun:
        generator = np.random.default_rng(derive_seed(self.seed, job.name))
        worth = true_worth(job.params) + self.noise * generator.standard_normal()
        return TestRun(job.seed, list(worth + 0.2 * generator.standard_normal(50)), 5.0)

    def interrupt(self) -> None:
        pass

    def _kl(self, job: Job, at: int) -> float:
        return 100.0 * at if job.number in self.hackers else distance(job.params, at)

    def _score(self, job: Job, at: int) -> float:
        generator = np.random.default_rng(derive_seed(self.seed, job.name, at))
        luck = np.random.default_rng(derive_seed(self.seed, job.name)).standard_normal()
        score = 50.0 if job.number in self.hackers and at else true_score(job.params, at)
        return score + self.noise * (luck + generator.standard_normal())
