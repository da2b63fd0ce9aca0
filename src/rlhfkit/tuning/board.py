"""How a search stands: a table that is drawn anew on a terminal, a line anywhere else, and what is left to do."""

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from rlhfkit.rundir.study import StudyResults, Trial
from rlhfkit.tuning.agenda import DEFAULT
from rlhfkit.tuning.cost import Rates, cost_of
from rlhfkit.tuning.design import Design
from rlhfkit.wording import counted, duration

__all__ = ["board", "line", "seconds_left"]

MOST_ROWS = 12


def board(results: StudyResults, *, left: float | None) -> Group:
    """All that runs, and the best of what has run; below it the line."""
    shown = _shown(results.trials)
    knobs = [knob.name for knob in results.space]
    names = ["trial", "state", results.unit, results.metric, "nats"] if results.kl else ["trial", "state", results.unit]
    names += [] if results.kl else [results.metric]
    table = Table(*names, *(name.removeprefix("ppo.") for name in knobs), box=None, header_style="bold", pad_edge=False)
    for trial in shown:
        cells = [f"{trial.number}{' (recipe)' if trial.number == DEFAULT else ''}", trial.state, f"{trial.iterations}"]
        cells.append("" if trial.best is None else f"{trial.best.score:.3g}")
        if results.kl:
            cells.append("" if trial.best is None or trial.best.kl is None else f"{trial.best.kl:.1f}")
        table.add_row(*(Text(cell) for cell in (*cells, *(_short(trial.params.get(name, "")) for name in knobs))))
    hidden = len(results.trials) - len(shown)
    more = [Text(f"and {counted(hidden, 'other trial')}")] if hidden else []
    return Group(table, *more, Text(line(results, left=left)))


def line(results: StudyResults, *, left: float | None) -> str:
    """Where the search is, its best trial so far, and how long it will still take; `left` in seconds, if known."""
    parts = [f"{results.state}: {len(results.trials)} of {counted(results.num_trials, 'trial')} begun"]
    if ranked := _ranked(results.trials):
        parts.append(f"best so far trial {ranked[0].number}, {_score(ranked[0])}")
    if left is not None:
        parts.append(f"about {duration(left)} left")
    return " · ".join(parts)


def seconds_left(results: StudyResults, design: Design, *, runs_done: int) -> float | None:
    """Seconds that are left with `results.jobs` runs at a time, by the pace of what was done; None before that.

    `runs_done`: whole runs of confirmation and test. Counted in iterations, of which the plan says how many there are.
    """
    plan = cost_of(design, Rates(base=0.0, whole=float(design.total), start=0.0))
    done = sum(trial.iterations for trial in results.trials) + runs_done * design.total
    seconds = results.spent_seconds - results.base_seconds
    if not done or not seconds:
        return None
    return seconds / done * max(plan.total - done, 0.0) / results.jobs


def _shown(trials: Sequence[Trial]) -> list[Trial]:
    running = [trial for trial in trials if trial.state == "running"]
    others = _ranked([trial for trial in trials if trial.state != "running"])
    return running + others[: max(0, MOST_ROWS - len(running))]


def _ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Those with a score, the best first; whoever breaks a guard or failed stands behind."""

    def key(trial: Trial) -> tuple[bool, bool, float]:
        is_out = trial.state in ("failed", "infeasible") or any(value > 0 for value in trial.violations.values())
        return trial.best is None, is_out, -(trial.best.score if trial.best else 0.0)

    return sorted((trial for trial in trials if trial.best is not None), key=key)


def _score(trial: Trial) -> str:
    assert trial.best is not None
    at = "" if trial.best.kl is None else f" at {trial.best.kl:.1f} nats"
    return f"{trial.best.score:.3g}{at}"


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
