"""A study of settings as a directory, and what its `study.json` holds: written by the search, read by its page."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.results import Estimate, Results

__all__ = [
    "Comparison",
    "Finalist",
    "KnobRange",
    "Point",
    "SeedOfFinalist",
    "SeedOfTest",
    "StudyDir",
    "StudyResults",
    "Trial",
    "TrialState",
]

Value = float | int | str | bool
"""What a setting may be."""

TrialState = Literal["running", "paused", "complete", "pruned", "infeasible", "failed"]
"""paused: done up to a rung, and may be continued. pruned: others of its rung were better. infeasible: a guard is
broken. failed: it ended with an error, or a rule of the diagnosis ended it."""


class StudyDir:
    """Paths inside the directory of a study."""

    def __init__(self, path: str | Path) -> None:
        """Point at `path`; nothing is created yet."""
        self.path = Path(path)
        self.recipe = self.path / "recipe.toml"
        self.settings = self.path / "settings.json"
        self.journal = self.path / "trials.journal"
        self.lock = self.path / "lock"
        self.ledger = self.path / "work.jsonl"
        self.claims = self.path / "claims"
        self.logs = self.path / "logs"
        self.results = self.path / "study.json"
        self.page = self.path / "study.html"
        self.best = self.path / "best.toml"
        self.base = RunDir(self.path / "base")
        """The run whose stages before PPO all others begin with."""

    def is_study(self) -> bool:
        """Whether a study has begun here."""
        return self.settings.exists()

    def run(self, name: str) -> RunDir:
        """The run of a trial, or of a further seed of one."""
        return RunDir(self.path / "runs" / name)


class KnobRange(Results):
    """A setting that is searched, and where."""

    name: str
    """Its dotted name, as "ppo.optim.learning_rate", or that of a ratio, as "minibatches"."""
    low: float | None = None
    """Lowest value; None where there are `choices`."""
    high: float | None = None
    """Highest value."""
    log: bool = False
    """Whether it is searched by its logarithm."""
    choices: tuple[Value, ...] = ()
    """All values, where they are few."""
    default: Value | None = None
    """What the recipe says."""


class Point(Results):
    """An evaluation on the way: held-out score and distance from the reference."""

    iteration: int
    """Iterations that the weights have behind them."""
    score: float
    """Mean of the held-out score."""
    kl: float | None = None
    """Nats per episode; None for a control task."""
    score_error: float | None = None
    """Standard error of the score."""


class Trial(Results):
    """One setting of the knobs, and what came of it."""

    number: int
    """From 0, which is the recipe as it is."""
    params: dict[str, Value]
    """The value of each knob."""
    seed: int
    """The seed that it was trained with."""
    state: TrialState
    """How far it came."""
    cause: str = ""
    """Why it is failed or infeasible, in words."""
    iterations: int = 0
    """Iterations that it has done."""
    points: tuple[Point, ...] = ()
    """In order."""
    best: Point | None = None
    """The best within the KL budget."""
    violations: dict[str, float] = Field(default_factory=dict)
    """Guard → by how much of its limit it is broken; 0 or less: kept."""
    seconds: float = 0.0
    """Time that it took."""
    run: str = ""
    """Its directory below the study's."""


class SeedOfFinalist(Results):
    """A finalist trained with one seed."""

    seed: int
    """The seed; the first is that of the search."""
    best: Point
    """The best within the KL budget."""
    run: str
    """Its directory below the study's."""
    seconds: float = 0.0
    """Time that it took; 0 for the seed of the search, whose time is its trial's."""


class Finalist(Results):
    """A trial that was among the best, with further seeds."""

    number: int
    """Of the trial."""
    seeds: tuple[SeedOfFinalist, ...]
    """Each seed."""
    mean: float
    """Of the seeds' best scores."""
    std: float
    """Their deviation; 0 for one seed."""
    worth: float
    """What finalists are ranked by: mean - std."""


class SeedOfTest(Results):
    """Winner and default with the same seed, which the search has not used, on prompts that it has not used."""

    seed: int
    """The seed."""
    winner: float
    """Mean score of the winner."""
    default: float
    """Mean score of the recipe as it is."""
    winner_kl: float | None = None
    """Nats per episode."""
    default_kl: float | None = None
    """Nats per episode."""
    winner_seconds: float = 0.0
    """Time that the winner's run and its test took."""
    default_seconds: float = 0.0
    """The same of the default."""


class Comparison(Results):
    """Winner against default."""

    winner: int
    """Number of the trial."""
    seeds: tuple[SeedOfTest, ...]
    """Each seed."""
    num_prompts: int
    """Held-out prompts (or episodes) for each seed."""
    difference: Estimate
    """Winner less default, paired by seed and prompt."""
    probability: float
    """Chance that a run of the winner is better than one of the default: P(X > Y) + P(X = Y) / 2."""
    is_gain: bool
    """Whether the interval of the difference is above 0."""
    words: str
    """What that means, in a sentence."""


class StudyResults(Results):
    """All that is known of a study, so far."""

    name: str
    """The recipe's name."""
    state: Literal["preparing", "searching", "confirming", "testing", "done", "stopped"]
    """What it is at; "stopped" where the budget ended it before all was done."""
    metric: str
    """What a score is: "judge", "score" (of the reward, where there is no judge), or "return"."""
    kl: float | None = None
    """The KL budget, in nats per episode; None for a control task."""
    unit: Literal["iterations", "steps"] = "iterations"
    """What a run's length is counted in; steps of environments for a control task."""
    iterations: int
    """Length of a whole run, in that unit, as all lengths here are."""
    rungs: tuple[int, ...]
    """Iterations after which trials are compared; the last is a whole run."""
    space: tuple[KnobRange, ...]
    """What is searched."""
    num_trials: int
    """How many trials are planned."""
    trials: tuple[Trial, ...] = ()
    """By number."""
    finalists: tuple[Finalist, ...] = ()
    """The best first."""
    comparison: Comparison | None = None
    """Once it is known."""
    importance: dict[str, float] = Field(default_factory=dict)
    """Knob → share of the score's variation that it explains; empty while there are too few trials."""
    forecast_seconds: float | None = None
    """What was expected before the start, in seconds of runs."""
    spent_seconds: float = 0.0
    """Seconds of all runs, one after the other."""
    base_seconds: float = 0.0
    """Of these, for the stages before PPO, which all trials share."""
    budget_seconds: float | None = None
    """What may be spent."""
    jobs: int = 1
    """Runs at a time."""
    command: str = ""
    """What reproduces the winner."""
    words: str = ""
    """The result in a sentence or two."""
