"""Made-up studies of settings, in each state that a search goes through."""

import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhfkit.rundir.results import Estimate
from rlhfkit.rundir.study import (
    Comparison,
    Finalist,
    KnobRange,
    Point,
    SeedOfFinalist,
    SeedOfTest,
    StudyDir,
    StudyResults,
    Trial,
    TrialState,
)
from tests.feedback.run_directories import make_run

KL = 8.0
RUNGS = (12, 36, 108)
EVERY = 6
SPACE = (
    KnobRange(name="ppo.optim.learning_rate", low=1e-6, high=3e-5, log=True, default=1e-5),
    KnobRange(name="value.optim.learning_rate", low=1e-6, high=1e-4, log=True, default=3e-5),
    KnobRange(name="ppo.kl.coef", low=0.003, high=0.3, log=True, default=0.05),
    KnobRange(name="ppo.epochs", choices=(1, 2, 4), default=4),
    KnobRange(name="minibatches", choices=(1, 2, 4, 8), default=4),
    KnobRange(name="ppo.gae_lambda", choices=(0.9, 0.95, 0.97, 1.0), default=0.95),
    KnobRange(name="ppo.whiten_rewards", choices=(True, False), default=True),
)
CONTROL_SPACE = (
    KnobRange(name="ppo.optim.learning_rate", low=1e-5, high=2e-3, log=True, default=3e-4),
    KnobRange(name="ppo.gae_lambda", low=0.8, high=1.0, default=0.95),
    KnobRange(name="ppo.epochs", choices=(1, 5, 10, 20), default=10),
)
OUT_OF_MEMORY = "the GPU's memory is full (iteration 3); smaller microbatches need less: optim.microbatch_size=4"


def study(*, num_done: int = 27, gain: float = 0.12, seed: int = 7, **changes: Any) -> StudyResults:
    """A study of a language model: at 27 trials it is done, before that it is still searching."""
    rng = random.Random(seed)
    trials = _trials(num_done, rng)
    if num_done == 27:
        trials = _with_ends(trials)
        finalists = _finalists(trials, rng)
        comparison = compared(finalists[0].number, gain, rng)
        ended: dict[str, Any] = {
            "state": "done",
            "finalists": finalists,
            "comparison": comparison,
            "importance": dict(
                zip((knob.name for knob in SPACE), (0.44, 0.07, 0.29, 0.09, 0.06, 0.03, 0.02), strict=True)
            ),
            "command": "rlhfkit run studies/demo/best.toml --run-dir runs/demo-best",
            "words": comparison.words,
        }
    else:
        ended = {"state": "searching" if num_done else "preparing"}
    results = StudyResults(
        name="demo",
        metric="judge",
        kl=KL,
        iterations=RUNGS[-1],
        rungs=RUNGS,
        space=SPACE,
        num_trials=27,
        trials=trials,
        forecast_seconds=6400.0,
        budget_seconds=7200.0,
        jobs=2,
        **ended,
    )
    results = results.model_copy(update={"base_seconds": 210.0 if num_done else 0.0})
    return results.model_copy(update={"spent_seconds": _spent(results), **changes})


def control_study(**changes: Any) -> StudyResults:
    """A study of a control task, without a KL budget: nine trials of twelve, all on their way to the last rung."""
    rng = random.Random(3)
    trials = []
    for number in range(9):
        params = _params(CONTROL_SPACE, number, rng)
        closeness = math.exp(-abs(math.log10(float(params["ppo.optim.learning_rate"]) / 5e-4)))
        steps = range(10_000, 100_001, 10_000)
        points = [
            Point(iteration=at, score=500 * closeness * (1 - math.exp(-at / 35_000)) + rng.gauss(0, 9), score_error=6.0)
            for at in steps[: 10 if number % 2 == 0 else 5]
        ]
        state: TrialState = "complete" if number % 2 == 0 else "paused"
        trials.append(_of_points(number, params, points, state, kl=None))
    return StudyResults(
        name="cartpole",
        state="searching",
        metric="return",
        unit="steps",
        iterations=100_000,
        rungs=(50_000, 100_000),
        space=CONTROL_SPACE,
        num_trials=12,
        trials=tuple(trials),
        forecast_seconds=900.0,
        spent_seconds=math.fsum(trial.seconds for trial in trials),
        budget_seconds=1200.0,
    ).model_copy(update=changes)


def compared(winner: int, gain: float, rng: random.Random) -> Comparison:
    """Five test seeds whose mean difference is about `gain`."""
    seeds = []
    for seed in range(1001, 1006):
        default = 0.58 + rng.gauss(0, 0.03)
        seeds.append(
            SeedOfTest(
                seed=seed,
                winner=round(default + gain + rng.gauss(0, 0.035), 4),
                default=round(default, 4),
                winner_kl=round(rng.uniform(6.2, 7.9), 2),
                default_kl=round(rng.uniform(4.4, 5.6), 2),
                winner_seconds=128.0,
                default_seconds=131.0,
            )
        )
    mean = math.fsum(each.winner - each.default for each in seeds) / 5
    is_gain = mean - 0.06 > 0
    return Comparison(
        winner=winner,
        seeds=tuple(seeds),
        num_prompts=128,
        difference=Estimate(mean=mean, low=mean - 0.06, high=mean + 0.06),
        probability=math.fsum(a.winner > b.default for a in seeds for b in seeds) / 25,
        is_gain=is_gain,
        words=f"Trial {winner} is better than the default within the KL budget of 8 nats."
        if is_gain
        else "No evidence of gain: keep the default.",
    )


def _params(space: tuple[KnobRange, ...], number: int, rng: random.Random) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for knob in space:
        drawn: Any
        if knob.choices:
            drawn = rng.choice(knob.choices)
        else:
            assert knob.low is not None
            assert knob.high is not None
            low, high = (math.log(knob.low), math.log(knob.high)) if knob.log else (knob.low, knob.high)
            drawn = rng.uniform(low, high)
            drawn = math.exp(drawn) if knob.log else drawn
        params[knob.name] = knob.default if number == 0 else drawn
    return params


def _trials(num: int, rng: random.Random) -> tuple[Trial, ...]:
    """Successive halving: a rung's better half goes on to the next, and the default always."""
    courses = [_course(number, rng) for number in range(num)]
    reached = [1] * num
    for rung in (1, 2):
        there = [number for number in range(num) if reached[number] == rung]
        there.sort(key=lambda number: -_so_far(courses[number][1], RUNGS[rung - 1]))
        for number in dict.fromkeys([*there[:1], *there[: (len(there) + 1) // 2], *([0] if 0 in there else [])]):
            reached[number] = rung + 1
    trials = []
    for number, (params, points) in enumerate(courses):
        num_rungs = reached[number]
        state: TrialState = "complete" if num_rungs == 3 else "paused" if number in (11, 20) else "pruned"
        trials.append(_of_points(number, params, points[: RUNGS[num_rungs - 1] // EVERY], state, kl=KL))
    return tuple(trials)


def _so_far(points: list[Point], iterations: int) -> float:
    return max(
        (point.score for point in points if point.iteration <= iterations and (point.kl or 0.0) <= KL), default=-1.0
    )


def _course(number: int, rng: random.Random) -> tuple[dict[str, Any], list[Point]]:
    """Score rises with the root of the KL and falls again far from the reference; the KL is that of the settings."""
    params = _params(SPACE, number, rng)
    rate, beta = float(params["ppo.optim.learning_rate"]), float(params["ppo.kl.coef"])
    far = 9.0 * (rate / 1e-5) ** 0.7 * params["ppo.epochs"] ** 0.3 / (1 + 12 * beta) * rng.uniform(0.8, 1.25)
    quality = 0.42 - 0.05 * abs(math.log10(rate / 1.2e-5)) - 0.06 * abs(math.log10(beta / 0.02)) + rng.gauss(0, 0.012)
    points = []
    for at in range(EVERY, RUNGS[-1] + 1, EVERY):
        kl = far * (1 - math.exp(-at / 40)) * (1 + rng.gauss(0, 0.03))
        score = quality * math.sqrt(kl) - 0.008 * kl**1.5 - 0.02 * kl + rng.gauss(0, 0.012)
        points.append(Point(iteration=at, score=round(score, 4), kl=round(kl, 3), score_error=0.02))
    return params, points


def _of_points(
    number: int, params: Mapping[str, Any], points: list[Point], state: TrialState, kl: float | None
) -> Trial:
    within = [point for point in points if kl is None or (point.kl is not None and point.kl <= kl)]
    return Trial(
        number=number,
        params=dict(params),
        seed=11 + number % 3,
        state=state,
        iterations=points[-1].iteration if points else 0,
        points=tuple(points),
        best=max(within, key=lambda point: point.score, default=None),
        seconds=1.15 * (len(points) * EVERY or 3),
        run=f"runs/trial-{number:03}",
    )


def _with_ends(trials: tuple[Trial, ...]) -> tuple[Trial, ...]:
    """Two that failed, two that broke a guard."""
    changes: dict[int, dict[str, Any]] = {
        4: {"state": "failed", "cause": OUT_OF_MEMORY, "points": (), "best": None, "iterations": 3},
        9: {"state": "failed", "cause": "kl_exploding: KL 31 nats, more than 3 times the budget", "best": None},
        13: {
            "state": "infeasible",
            "cause": "responses are too long",
            "violations": {"length": 0.38, "kl": -0.2, "distinct_2": 0.04},
        },
        2: {"state": "infeasible", "cause": "responses do not end", "violations": {"eos": 1.6}},
    }
    return tuple(trial.model_copy(update=changes.get(trial.number, {})) for trial in trials)


def _finalists(trials: tuple[Trial, ...], rng: random.Random) -> tuple[Finalist, ...]:
    ranked = sorted(
        (trial for trial in trials if trial.best and trial.state == "complete" and trial.number),
        key=lambda trial: -trial.best.score if trial.best else 0.0,
    )
    return tuple(
        sorted((_finalist(trial, rng) for trial in (*ranked[:3], trials[0])), key=lambda finalist: -finalist.worth)
    )


def _finalist(trial: Trial, rng: random.Random) -> Finalist:
    assert trial.best is not None
    others = [
        trial.best.model_copy(update={"score": round(trial.best.score - 0.02 + rng.gauss(0, 0.03), 4)})
        for _ in range(2)
    ]
    seeds = tuple(
        SeedOfFinalist(
            seed=trial.seed if at == 0 else 100 + at,
            best=best,
            run=f"runs/trial-{trial.number:03}" + (f"-seed{100 + at}" if at else ""),
            seconds=124.0 if at else 0.0,
        )
        for at, best in enumerate((trial.best, *others))
    )
    scores = [each.best.score for each in seeds]
    mean = math.fsum(scores) / 3
    std = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / 2)
    return Finalist(number=trial.number, seeds=seeds, mean=mean, std=std, worth=mean - std)


def _spent(results: StudyResults) -> float:
    further = [seed.seconds for finalist in results.finalists for seed in finalist.seeds]
    tests = results.comparison.seeds if results.comparison else ()
    return math.fsum(
        [
            results.base_seconds,
            *(trial.seconds for trial in results.trials),
            *further,
            *(seed.winner_seconds + seed.default_seconds for seed in tests),
        ]
    )


def make_study(path: Path, results: StudyResults | None) -> StudyDir:
    directory = StudyDir(path)
    path.mkdir(parents=True)
    directory.recipe.write_text("")
    directory.settings.write_text("{}")
    if results is not None:
        directory.results.write_text(results.model_dump_json())
    make_run(directory.base.path)
    make_run(directory.run("trial-000").path)
    return directory
