"""The page of a control task: learning curve over seeds, an episode to watch, the numbers."""

import base64
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from rlhfkit.report.svg import Chart, Level, Series, line_chart
from rlhfkit.rundir.contents import Facts, Row
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.lines import finite_or_none
from rlhfkit.rundir.results import ControlEvaluation, SeedResult, read_results
from rlhfkit.wording import number

__all__ = ["ControlPage", "control_page"]


@dataclass(frozen=True, slots=True)
class ControlPage:
    """What the template shows."""

    headline: str
    lead: str
    seeds: tuple[SeedResult, ...]
    learning_curve: Chart | None
    charts: list[Chart]
    recording: Markup | None
    """Address of the recorded episode, as data."""
    recording_caption: str


def control_page(facts: Facts, run: RunDir) -> ControlPage:
    """What there is to show of a run so far.

    Raises: CheckpointError where a file is damaged.
    """
    evaluation = read_results(run.evaluation, ControlEvaluation)
    seeds = evaluation.seeds if evaluation else ()
    rows = facts.metrics.get("control", ())
    recording = None
    if evaluation and evaluation.recorded_seed is not None and run.episode.exists():
        data = base64.b64encode(run.episode.read_bytes()).decode("ascii")
        recording = Markup("data:image/gif;base64,") + data
    return ControlPage(
        headline=_headline(seeds),
        lead=_lead(seeds),
        seeds=seeds,
        learning_curve=_curve_over_seeds(
            rows,
            "episode_return/mean",
            title="Learning curve",
            unit="return",
            caption="Undiscounted return while it trains, with the randomness of exploration: mean of the last 100 "
            "episodes. The line is the mean over the seeds, the band one deviation between them.",
        ),
        charts=[chart for chart in _charts(rows) if chart],
        recording=recording,
        recording_caption=_recording_caption(evaluation),
    )


def spread_over(values: Sequence[float]) -> tuple[float, float]:
    """Mean and deviation between seeds (n - 1; 0 of a single one)."""
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / max(1, len(values) - 1))


def _headline(seeds: Sequence[SeedResult]) -> str:
    if not seeds:
        return "Not measured yet"
    mean, std = spread_over([seed.episode_return.mean for seed in seeds])
    if len(seeds) == 1:
        return f"Mean return {mean:.1f}"
    return f"Mean return {mean:.1f} ± {std:.1f} over {len(seeds)} seeds"


def _lead(seeds: Sequence[SeedResult]) -> str:
    if not seeds:
        return "The run has not come to its evaluation."
    worst = min(seeds, key=lambda seed: seed.episode_return.mean)
    several = f" The worst seed has {worst.episode_return.mean:.1f}." if len(seeds) > 1 else ""
    return (
        f"{seeds[0].num_episodes} episodes of each seed, which training never saw, with the likeliest action in each "
        f"state; ± is the deviation between seeds.{several}"
    )


def _recording_caption(evaluation: ControlEvaluation | None) -> str:
    if evaluation is None or evaluation.recorded_return is None:
        return ""
    return (
        f"The episode whose return, {number(evaluation.recorded_return)}, is the median of all evaluated episodes; "
        f"seed {evaluation.recorded_seed}. Not the best one."
    )


def _charts(rows: Sequence[Row]) -> Iterator[Chart | None]:
    for key, title, unit, caption in (
        ("episode_steps/mean", "Episode length", "steps", "Mean of the last 100 episodes."),
        ("ppo/entropy", "Entropy", "nats per action", "How undecided the policy still is. It should fall slowly."),
        (
            "ppo/explained_variance",
            "Explained variance",
            "share",
            "How much of the differences between returns the critic foresees. 1 is all, 0 no better than a constant.",
        ),
        (
            "ppo/approx_kl",
            "Approximate KL",
            "nats per action",
            "How far an iteration moved the policy. Steady and small is healthy.",
        ),
        ("ppo/clip_fraction", "Clipped share", "share of actions", "How often PPO's limit on a step held."),
        ("policy/learning_rate", "Learning rate", "per update", "As scheduled."),
    ):
        yield _curve_over_seeds(rows, key, title=title, unit=unit, caption=caption)


def _curve_over_seeds(rows: Sequence[Row], key: str, *, title: str, unit: str, caption: str) -> Chart | None:
    """Mean over seeds at each iteration that all of them have, by environment steps."""
    by_iteration: dict[float, list[tuple[float, float]]] = {}
    for row in rows:
        value, steps, iteration = (finite_or_none(row.get(name)) for name in (key, "env_steps", "iteration"))
        if value is not None and steps is not None and iteration is not None:
            by_iteration.setdefault(iteration, []).append((steps, value))
    if not by_iteration:
        return None
    most = max(map(len, by_iteration.values()))
    points = [points for _, points in sorted(by_iteration.items()) if len(points) == most]
    xs = [math.fsum(steps for steps, _ in point) / most for point in points]
    means, spreads = zip(*(spread_over([value for _, value in point]) for point in points), strict=True)
    levels = [Level(0.0, "no better than a constant")] if key == "ppo/explained_variance" else []
    return line_chart(
        [Series(title, xs, means, spread=spreads if most > 1 else None)],
        title=title,
        x_label="environment steps",
        y_label=unit,
        caption=caption,
        levels=levels,
    )
