"""A study: what comes next, and what came of it. Whoever asks or tells holds its lock."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rlhfkit.errors import TrainingError
from rlhfkit.rundir.study import Finalist, SeedOfFinalist, StudyDir, Trial, TrialState
from rlhfkit.tuning.agenda import DEFAULT, USUAL, Standing, next_step
from rlhfkit.tuning.claims import Claim, Claims
from rlhfkit.tuning.design import Design, Job
from rlhfkit.tuning.finals import best_trials, chosen, finalist_of
from rlhfkit.tuning.journal import Journal, Noted
from rlhfkit.tuning.knobs import Params
from rlhfkit.tuning.ledger import Ledger
from rlhfkit.tuning.objective import broken, guards, score_within, start_and_best
from rlhfkit.tuning.runner import Outcome, Runner
from rlhfkit.tuning.suggest import suggest

__all__ = ["Study", "Waiting"]


class Waiting:
    """Nothing may be begun before something that others work on is done."""


@dataclass
class Study:
    """The decisions of a search."""

    directory: StudyDir
    design: Design
    journal: Journal
    runner: Runner
    tell: Callable[[str], None] = lambda words: None
    """Hears a line for each thing that happens."""
    has_room: Callable[["Study"], bool] = lambda study: True
    """Whether the budget has room for a further stretch of the search."""
    claims: Claims = field(init=False)
    ledger: Ledger = field(init=False)

    def __post_init__(self) -> None:
        self.claims, self.ledger = Claims(self.directory), Ledger(self.directory)

    # ── what comes next ──────────────────────────────────────────────────────────────────────────────────────────────

    def following(self) -> tuple[Job, Claim] | Waiting | None:
        """A run that is ours now; or that others must come to an end first; or None where all is done."""
        for jobs in (self._search, self._confirmation, self._test):
            left = list(jobs())
            for job in left:
                if (claim := self.claims.take(job.name)) is not None:
                    return job, claim
            if left:
                return Waiting()
        return None

    def _search(self) -> Iterator[Job]:
        """Stretches of trials that are under way, and one more that may be begun; none once the search is over."""
        if self.ledger.is_searched():
            return
        noted = self.journal.trials()
        under_way = [trial for trial in noted if trial.reaching is not None]
        yield from (self._job(trial, until=trial.reaching) for trial in under_way)
        taken = self.claims.taken()
        if any(self._job(trial).name not in taken for trial in under_way):
            return  # what a kill has left comes first
        begun = self._begun(noted) if self.has_room(self) else None
        if begun is not None:
            yield begun
        elif not under_way:
            self._end_search(noted)

    def _begun(self, noted: Sequence[Noted]) -> Job | None:
        """A trial that goes on, or a new one; None where there is none."""
        tune = self.design.tune
        standings = [standing_of(trial) for trial in noted]
        step = next_step(
            standings, self.design.rungs, planned=tune.trials, reduction=tune.reduction, finalists=tune.finalists
        )
        if step is None:
            return None
        number, rung = step
        if number is None:
            number = len(noted)
            self.journal.add(number, self._params(number, noted), seed=self.design.seed_of_trial(number), rung=rung)
        else:
            self.journal.send(number, rung)
        return self._job(self._noted(number), until=rung)

    def _params(self, number: int, noted: Sequence[Noted]) -> Params:
        """The settings of a new trial: the recipe's, the usual ones, and then what the sampler proposes."""
        if number == DEFAULT:
            return self.design.default_params
        if number == USUAL and (usual := self.design.usual_params) is not None:
            return usual
        return suggest(self.design.knobs, [self.trial(each) for each in noted], self.design.tune, number=number)

    def _end_search(self, noted: Sequence[Noted]) -> None:
        """What is paused will not go on."""
        for trial in noted:
            if trial.end is None:
                seen = self.trial(trial)
                end: Literal["infeasible", "pruned"] = "infeasible" if broken(seen.violations) > 0 else "pruned"
                score = None if seen.best is None else seen.best.score
                self.journal.end(
                    trial.number, end, score=score, guards=seen.violations, cause=words_of(seen.violations)
                )
        self.ledger.end_search()

    def _confirmation(self) -> Iterator[Job]:
        """Further seeds of the best trials."""
        for number in self.best():
            for seed in self.design.confirmation_seeds:
                job = Job(number, seed, "confirmation", self._noted(number).params)
                if not self.ledger.has(job):
                    yield job

    def _test(self) -> Iterator[Job]:
        """Fresh seeds of the winner and of the recipe as it is; none where that is the winner."""
        finalists = self.finalists()
        if finalists and finalists[0].number != DEFAULT:
            yield from (job for job in self.test_jobs(finalists[0].number) if not self.ledger.has(job))

    def test_jobs(self, winner: int) -> list[Job]:
        """All runs of the test."""
        return [
            Job(number, seed, "test", self._noted(number).params)
            for seed in self.design.test_seeds
            for number in (winner, DEFAULT)
        ]

    # ── what came of it ──────────────────────────────────────────────────────────────────────────────────────────────

    def note(self, job: Job, outcome: Outcome) -> None:
        """A stretch has ended.

        Raises: TrainingError where the recipe as it is cannot be trained, so that nothing can be compared with it.
        """
        self.ledger.add(job, outcome)
        if outcome.state == "failed" and job.number == DEFAULT:
            raise TrainingError(f"the recipe as it is cannot be trained: {outcome.cause}")
        if job.purpose != "search":
            self.tell(f"{job.name}: {outcome.state}{outcome.cause and ': '}{outcome.cause}")
        elif outcome.state == "failed":
            self._fail(job.number, outcome.cause)
        else:
            assert job.until is not None
            self._came_to(job, job.until)

    def _came_to(self, job: Job, rung: int) -> None:
        seen = self.trial(self._noted(job.number), until=rung)
        cause = self.runner.stopped(job) if job.number != DEFAULT else ""
        if seen.best is None:
            self._fail(job.number, cause or "it was never within the KL budget")
            return
        number, score, sum_broken = job.number, seen.best.score, broken(seen.violations)
        self.journal.came_to(number, rung, broken=sum_broken, score=score)
        at = f"{score:.3g}" + ("" if seen.best.kl is None else f" at {seen.best.kl:.1f} nats")
        if cause:
            self._fail(number, cause)
        elif rung == self.design.rungs[-1]:
            end: Literal["infeasible", "complete"] = "infeasible" if sum_broken > 0 else "complete"
            why = words_of(seen.violations)
            self.journal.end(number, end, score=score, guards=seen.violations, cause=why)
            self.tell(f"trial {number}: {end}{why and ' ('}{why}{why and ')'}: {at}")
        else:
            self.tell(f"trial {number}: {at} after {rung} of {self.design.total} {self.design.unit}")

    def _fail(self, number: int, cause: str) -> None:
        self.journal.end(number, "failed", score=None, guards={}, cause=cause)
        self.tell(f"trial {number}: failed: {cause}")

    # ── what is known ────────────────────────────────────────────────────────────────────────────────────────────────

    def trial(self, noted: Noted, *, until: int | None = None) -> Trial:
        """A trial with what its log says, up to the last rung that it came to, or `until`."""
        job = self._job(noted)
        points = self.runner.points(job)
        last = max(noted.values, default=0) if until is None else until
        best = score_within(points, self.design.kl, until=last)
        both = None if self.design.is_control else start_and_best(self.runner.rows(job), best)
        return Trial(
            number=noted.number,
            params=dict(noted.params),
            seed=noted.seed,
            state=self._state(noted),
            cause=noted.cause,
            iterations=last,
            points=tuple(points),
            best=best,
            violations={} if both is None else guards(*both, self.design.tune),
            seconds=self.ledger.seconds_of(job.name),
            run=f"runs/{job.name}",
        )

    def _state(self, noted: Noted) -> TrialState:
        if noted.end is not None:
            return noted.end
        return "paused" if noted.reaching is None else "running"

    def at(self) -> Literal["preparing", "searching", "confirming", "testing", "done"]:
        """What is done now."""
        if not self.journal.trials():
            return "preparing"
        if not self.ledger.is_searched():
            return "searching"
        if next(self._confirmation(), None) is not None:
            return "confirming"
        return "done" if next(self._test(), None) is None else "testing"

    def best(self) -> list[int]:
        """The trials that are trained again, the best first."""
        standings = [standing_of(trial) for trial in self.journal.trials()]
        return best_trials(standings, self.design.rungs[-1], self.design.tune.finalists)

    def finalists(self) -> list[Finalist]:
        """Those whose seeds are all known and none has failed, the winner first."""
        found = []
        for number in self.best():
            noted = self._noted(number)
            jobs = [self._job(noted)]
            jobs += [Job(number, seed, "confirmation", noted.params) for seed in self.design.confirmation_seeds]
            seeds = [self._seed_of(job) for job in jobs if job.purpose == "search" or self.ledger.is_done(job)]
            if len(seeds) == len(jobs) and None not in seeds:
                found.append(finalist_of(number, [seed for seed in seeds if seed is not None]))
        return chosen(found)

    def _seed_of(self, job: Job) -> SeedOfFinalist | None:
        best = score_within(self.runner.points(job), self.design.kl)
        if best is None:
            return None
        seconds = self.ledger.seconds_of(job.name)
        return SeedOfFinalist(seed=job.seed, best=best, run=f"runs/{job.name}", seconds=seconds)

    def _noted(self, number: int) -> Noted:
        return next(trial for trial in self.journal.trials() if trial.number == number)

    def _job(self, trial: Noted, *, until: int | None = None) -> Job:
        return Job(trial.number, trial.seed, "search", trial.params, until=until)


def standing_of(noted: Noted) -> Standing:
    """What decides whether a trial goes on."""
    return Standing(noted.number, noted.values, end=noted.end, reaching=noted.reaching)


def words_of(violations: dict[str, float]) -> str:
    """The guards that are broken, the worst first."""
    return ", ".join(
        f"{name} {1 + value:.2g} times its limit"
        for name, value in sorted(violations.items(), key=lambda item: -item[1])
        if value > 0
    )
