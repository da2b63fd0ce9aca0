"""What a study has found, as its `study.json`, and as a recipe."""

import shlex
from collections.abc import Sequence
from typing import Any, Literal

from rlhfkit.rundir.atomic import write_atomically
from rlhfkit.rundir.study import Comparison, Finalist, StudyResults
from rlhfkit.tuning.agenda import DEFAULT
from rlhfkit.tuning.design import Design
from rlhfkit.tuning.finals import compared
from rlhfkit.tuning.knobs import Params, settings_of
from rlhfkit.tuning.ledger import BASE
from rlhfkit.tuning.study import Study
from rlhfkit.tuning.suggest import importance_of

__all__ = ["comparison_of", "results_of", "write_results"]

State = Literal["preparing", "searching", "confirming", "testing", "done", "stopped"]


def results_of(
    study: Study,
    *,
    state: State | None = None,
    forecast: float | None = None,
    budget: float | None = None,
    jobs: int = 1,
    command: str = "",
) -> StudyResults:
    """Everything that is known so far; `state`, where it is not what the study is at."""
    design = study.design
    trials = tuple(study.trial(noted) for noted in study.journal.trials())
    finalists = tuple(study.finalists()) if study.ledger.is_searched() else ()
    comparison = comparison_of(study, finalists)
    now = state or study.at()
    return StudyResults(
        name=design.recipe.name,
        state=now,
        metric=design.metric,
        kl=design.kl,
        unit=design.unit,
        iterations=design.total,
        rungs=design.rungs,
        space=tuple(knob.as_range() for knob in design.knobs),
        num_trials=design.tune.trials,
        trials=trials,
        finalists=finalists,
        comparison=comparison,
        importance=importance_of(design.knobs, trials),
        forecast_seconds=forecast,
        spent_seconds=study.ledger.seconds(),
        base_seconds=study.ledger.seconds_of(BASE),
        budget_seconds=budget,
        jobs=jobs,
        command=command,
        words=words_of(finalists, comparison, now),
    )


def write_results(study: Study, results: StudyResults) -> None:
    """`study.json`, whole or not at all."""
    write_atomically(study.directory.results, results.model_dump_json(indent=2) + "\n")


def comparison_of(study: Study, finalists: Sequence[Finalist]) -> Comparison | None:
    """Winner against default, once at least two seeds of both are known."""
    if not finalists or finalists[0].number == DEFAULT:
        return None
    winner = finalists[0].number
    jobs = study.test_jobs(winner)
    pairs = [(jobs[at], jobs[at + 1]) for at in range(0, len(jobs), 2)]
    done = [pair for pair in pairs if all(study.ledger.is_done(job) for job in pair)]
    if len(done) < 2 or any(not study.ledger.has(job) for job in jobs):
        return None
    runs = [study.runner.tested(own) for own, _ in done]
    defaults = [study.runner.tested(other) for _, other in done]
    unit = "episodes" if study.design.is_control else "prompts"
    found = compared(winner, runs, defaults, seed=study.design.tune.seed, unit=unit)
    seconds = [(study.ledger.seconds_of(own.name), study.ledger.seconds_of(other.name)) for own, other in done]
    timed = tuple(
        seed.model_copy(update={"winner_seconds": own, "default_seconds": other})
        for seed, (own, other) in zip(found.seeds, seconds, strict=True)
    )
    found = found.model_copy(update={"seeds": timed})
    if lost := len(pairs) - len(done):
        words = f"{lost} of {len(pairs)} test seeds of trial {winner} failed: it is not to be trusted; keep the recipe."
        return found.model_copy(update={"is_gain": False, "words": words})
    return found


def words_of(finalists: Sequence[Finalist], comparison: Comparison | None, state: State) -> str:
    """The result in a sentence."""
    if comparison is not None:
        return comparison.words
    if finalists and finalists[0].number == DEFAULT and state in ("done", "stopped"):
        return "Nothing that was tried is better than the recipe as it is; keep it."
    if state == "stopped":
        return "The search was ended before winner and recipe were compared; the same command goes on."
    if state == "done":
        return "No trial came to its end within the guards; keep the recipe, or look at why trials failed."
    return ""


def best_recipe(study: Study, table: dict[str, Any], results: StudyResults) -> str:
    """The winner as a whole recipe, as TOML, with a header that says how it was found."""
    import tomli_w

    design, comparison = study.design, results.comparison
    assert comparison is not None
    winner = next(trial for trial in results.trials if trial.number == comparison.winner)
    changed = _with(table, _final_settings(design, winner.params))
    changed.pop("tune", None)
    seeds = ", ".join(str(seed.seed) for seed in comparison.seeds)
    header = [
        f"{design.recipe.purpose or design.recipe.name}, with the settings of trial {winner.number} of a search.",
        f"Found by rlhfkit tune: {len(results.trials)} trials, {results.metric}"
        + (f" within {design.kl:g} nats of the reference." if design.kl else "."),
        f"On seeds {seeds}, which the search had not used: {comparison.words}",
        "Score of each seed, here and with the recipe's own settings: "
        + "; ".join(f"{seed.winner:.3g}, {seed.default:.3g}" for seed in comparison.seeds),
        "What was changed: "
        + ", ".join(f"{name} = {value}" for name, value in settings_of(winner.params, design.recipe).items()),
    ]
    return "".join(f"# {line}\n" for line in header) + "\n" + tomli_w.dumps(changed)


def _final_settings(design: Design, params: Params) -> dict[str, Any]:
    """What the winner is trained with: its knobs, and the end that it was chosen by."""
    settings: dict[str, Any] = dict(settings_of(params, design.recipe))
    if design.kl is not None:
        settings |= {
            "evaluation.every_iterations": design.every,
            "ppo.end_with": "best",
            "ppo.watch.best_metric": f"evaluation/{design.metric}",
            "ppo.watch.best_max_ref_kl": design.kl,
        }
    return settings


def _with(table: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """A copy of a recipe's table with other settings."""
    changed = {key: dict(value) if isinstance(value, dict) else value for key, value in table.items()}
    for name, value in settings.items():
        *above, last = name.split(".")
        place = changed
        for key in above:
            place[key] = dict(place.get(key) or {})
            place = place[key]
        place[last] = value
    return changed


def command_of(study: Study) -> str:
    """What trains the winner again."""
    return f"rlhfkit run {shlex.quote(str(study.directory.best))}"
