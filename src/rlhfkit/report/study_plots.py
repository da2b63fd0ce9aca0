"""The charts of a study of settings: fronts, parallel coordinates, rungs, finalists, test seeds, time."""

import math
from collections.abc import Sequence
from typing import Any

from rlhfkit.report.knobs import Axis, axes_of, broken_name, short_names
from rlhfkit.report.svg import (
    DOTTED,
    STAND_INS,
    WIDE,
    Bar,
    Chart,
    Colour,
    bar_chart,
    label_axes,
    printable,
    render,
)
from rlhfkit.rundir.study import Comparison, Finalist, Point, StudyResults, Trial
from rlhfkit.wording import counted, number

__all__ = [
    "METRICS",
    "finalist_chart",
    "front_chart",
    "importance_chart",
    "knob_chart",
    "pareto_front",
    "rung_chart",
    "score_at",
    "seconds_chart",
    "test_chart",
]

METRICS = {"judge": "judge's score", "score": "reward's score", "return": "return"}
"""What a score is called."""
NUM_RANKS = 5
MOST_KL = 3.0
"""Points beyond so many budgets are not drawn: they would press all others to the edge."""
_BROKEN = (0, (4, 2))
_DEFAULT = 0


def score_at(trial: Trial, iterations: int, kl: float | None) -> float | None:
    """S(B) after so many iterations: the best score within the KL budget up to there; None where there is none."""
    within = [point.score for point in trial.points if point.iteration <= iterations and is_within(point, kl)]
    return max(within, default=None)


def is_within(point: Point, kl: float | None) -> bool:
    """Whether an evaluation keeps the KL budget."""
    return kl is None or (point.kl is not None and point.kl <= kl)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (KL, score), those that no other point beats in both, by rising KL."""
    front: list[tuple[float, float]] = []
    for kl, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or score > front[-1][1]:
            front.append((kl, score))
    return front


# ── score against KL, or return over iterations ──────────────────────────────────────────────────────────────────────


def front_chart(study: StudyResults, leader: int | None, *, width: int) -> Chart | None:
    """All evaluations of all trials: score against KL, or without a KL budget against iterations."""
    budget = study.kl
    paths = {trial.number: _path(trial, budget) for trial in study.trials}
    drawn = {number: path for number, path in paths.items() if path}
    if not drawn:
        return None
    num_beyond = sum(len(trial.points) for trial in study.trials) - sum(map(len, drawn.values()))
    front = (
        [] if budget is None or len(drawn) < 2 else pareto_front([point for path in drawn.values() for point in path])
    )

    def draw(axes: Any) -> None:
        for number_, path in sorted(drawn.items(), key=lambda item: _is_special(item[0], leader)):
            _draw_path(axes, path, budget, *_looks(number_, leader))
        if len(front) > 1:
            axes.step(*zip(*front, strict=True), where="post", color=STAND_INS["judge"], linewidth=1.1, zorder=2)
        if budget is not None:
            right = max(axes.get_xlim()[1], 1.04 * budget)
            axes.set_xlim(0, right)
            axes.axvspan(budget, right, color=STAND_INS["muted"], alpha=0.09, linewidth=0)
            axes.axvline(budget, color=STAND_INS["ink"], linewidth=0.9, linestyle=DOTTED)
            place = {"xycoords": ("data", "axes fraction"), "xytext": (-3, 2), "textcoords": "offset points"}
            axes.annotate(f"budget {number(budget)}", (budget, 0), ha="right", va="bottom", zorder=6, **place)
        axes.grid(True, axis="both")
        axes.margins(0.03, 0.1)
        label_axes(axes, study.unit if budget is None else "KL to the reference, nats per episode", metric)

    metric = METRICS.get(study.metric, study.metric)
    title = f"{metric[:1].upper()}{metric[1:]} {f'over {study.unit}' if budget is None else 'against KL'}"
    beyond = (
        f" {counted(num_beyond, 'evaluation')} beyond {number(MOST_KL * (budget or 0))} nats are not drawn."
        if num_beyond
        else ""
    )
    caption = (
        "A line for each trial, a dot for each evaluation on the way."
        if budget is None
        else "A line for each trial, a dot for each evaluation on the way. What counts lies left of the dotted line; "
        f"the rest is pale. Ringed: the point that a trial is judged by.{beyond}"
    )
    best = {trial.number: trial.best for trial in study.trials if trial.best is not None}
    told = "; ".join(
        f"{_named(at, leader)}: {number(best[at].score)}" + (f" at {number(best[at].kl)} nats" if budget else "")
        for at in (_DEFAULT, leader)
        if at is not None and at in best
    )
    alt = f"{title}: {counted(len(drawn), 'trial')}. {told or 'None is within the budget'}."
    height = 250 if width < WIDE else 330
    legend = _legend(study, leader)
    if len(front) > 1:
        legend = (*legend, ("judge", "front of all"))
    return Chart(title, caption, render(draw, f"{title} {width}", alt, height=height, width=width), legend)


def _path(trial: Trial, budget: float | None) -> list[tuple[float, float]]:
    found = ((point.iteration if budget is None else point.kl, point.score) for point in trial.points)
    return [
        (float(x), y)
        for x, y in found
        if x is not None and math.isfinite(x) and math.isfinite(y) and (budget is None or x <= MOST_KL * budget)
    ]


def _draw_path(
    axes: Any, path: Sequence[tuple[float, float]], budget: float | None, colour: str, width: float, style: Any
) -> None:
    """A trial's course; what is beyond the budget is pale."""
    is_special = width > 1
    strength = 0.95 if is_special else 0.5
    kept = [budget is None or x <= budget for x, _ in path]
    xs, ys = [x for x, _ in path], [y for _, y in path]
    within = [y if inside else math.nan for y, inside in zip(ys, kept, strict=True)]
    order = 4 if is_special else 1.5
    axes.plot(xs, ys, color=colour, alpha=0.25, linewidth=width, linestyle=style, zorder=order)
    axes.plot(xs, within, color=colour, alpha=strength, linewidth=width, linestyle=style, zorder=order)
    for inside in (True, False):
        there = [(x, y) for x, y in path if (budget is None or x <= budget) == inside]
        if there:
            axes.scatter(
                *zip(*there, strict=True),
                s=11 if is_special else 5,
                color=colour,
                alpha=strength if inside else 0.22,
                linewidths=0,
                zorder=5 if is_special else 1.6,
            )
    best = max((point for point in path if budget is None or point[0] <= budget), key=lambda at: at[1], default=None)
    if is_special and best is not None:
        axes.scatter(*best, s=62, facecolors="none", edgecolors=colour, linewidths=1.4, zorder=6)


def _is_special(number_: int, leader: int | None) -> int:
    """0 for most; the default and then the leader are drawn over them."""
    return 2 if number_ == leader else 1 if number_ == _DEFAULT else 0


def _looks(number_: int, leader: int | None) -> tuple[str, float, Any]:
    """Colour, width and style of a trial's line."""
    if number_ == _DEFAULT:
        return STAND_INS["before"], 1.7, _BROKEN
    if number_ == leader:
        return STAND_INS["after"], 1.9, "-"
    return STAND_INS["muted"], 0.7, "-"


def _named(number_: int, leader: int | None) -> str:
    return "default" if number_ == _DEFAULT else f"trial {number_}"


def _legend(study: StudyResults, leader: int | None) -> tuple[tuple[Colour, str], ...]:
    entries: list[tuple[Colour, str]] = []
    if leader:
        entries.append(("after", f"trial {leader}, {'winner' if study.comparison else 'best so far'}"))
    if any(trial.number == _DEFAULT for trial in study.trials):
        entries.append(("before", "default"))
    if any(trial.number not in (_DEFAULT, leader) for trial in study.trials):
        entries.append(("muted", "other trials"))
    return tuple(entries)


# ── parallel coordinates ─────────────────────────────────────────────────────────────────────────────────────────────


def knob_chart(study: StudyResults, leader: int | None) -> Chart | None:
    """An axis for each knob and one for the score, and a line for each trial: settings that go well lie together."""
    if not study.trials or not study.space:
        return None
    axes_ = axes_of(study)
    scores = {trial.number: trial.best.score for trial in study.trials if trial.best is not None}

    def draw(axes: Any) -> None:
        for trial in sorted(study.trials, key=lambda trial: _order(trial, scores, leader)):
            places = [axis.place(trial) for axis in axes_]
            at = [(x, y) for x, y in enumerate(places) if y is not None]
            colour, width, style, strength = _thread(trial, scores, leader)
            axes.plot(
                *zip(*at, strict=True),
                color=colour,
                linewidth=width,
                linestyle=style,
                alpha=strength,
                marker="o" if trial.number in (_DEFAULT, leader) else None,
                markersize=3.6,
            )
        for x, axis in enumerate(axes_):
            _draw_axis(axes, x, axis)
        axes.set_xlim(-0.35, len(axes_) - 0.75)
        axes.set_ylim(-0.05, 1.05)
        axes.set_yticks([])
        axes.set_xticks(range(len(axes_)), ["\n".join(map(printable, broken_name(axis.label))) for axis in axes_])
        axes.tick_params(axis="x", length=0, labelcolor=STAND_INS["ink"])
        axes.spines["bottom"].set_visible(False)
        axes.grid(False)

    title = "Settings and score"
    alt = f"{title}: {counted(len(study.trials), 'trial')} over " + ", ".join(knob.name for knob in study.space) + "."
    caption = (
        "A line for each trial, from its settings to its score: the darker and thicker, the better. Where the strong "
        "lines lie together, a setting matters; where they cross anywhere, it does not. Broken and grey: failed, or a "
        "limit was broken."
    )
    svg = render(draw, title, alt, height=330, width=max(WIDE, 96 * len(axes_)))
    return Chart(title, caption, svg, tuple(entry for entry in _legend(study, leader) if entry[0] != "muted"))


def _order(trial: Trial, scores: dict[int, float], leader: int | None) -> tuple[int, float]:
    """The better ones are drawn over the others."""
    return _is_special(trial.number, leader), scores.get(trial.number, -math.inf) if is_sound(trial) else -math.inf


def is_sound(trial: Trial) -> bool:
    """Whether a trial may be chosen."""
    return trial.state not in ("failed", "infeasible")


def _thread(trial: Trial, scores: dict[int, float], leader: int | None) -> tuple[str, float, Any, float]:
    """Colour, width, style and strength of a trial's line."""
    if trial.number in (_DEFAULT, leader):
        return (*_looks(trial.number, leader), 1.0)
    if not is_sound(trial) or trial.number not in scores:
        return STAND_INS["muted"], 0.8, (0, (2, 2.5)), 0.65
    rank = rank_of(scores[trial.number], scores.values())
    return STAND_INS[f"rank-{rank}"], 0.6 + 0.22 * rank, "-", 0.5 + 0.09 * rank


def rank_of(score: float, scores: Any) -> int:
    """From 1 to 5, by where a score lies between the lowest and the highest."""
    low, high = min(scores), max(scores)
    share = (score - low) / (high - low) if high > low else 1.0
    return 1 + min(NUM_RANKS - 1, int(NUM_RANKS * share))


def _draw_axis(axes: Any, x: int, axis: Axis) -> None:
    axes.plot([x, x], [0, 1], color=STAND_INS["muted"], linewidth=0.9, zorder=0.5)
    for place, text in axis.ticks:
        axes.plot([x - 0.03, x], [place, place], color=STAND_INS["muted"], linewidth=0.9, zorder=0.5)
        axes.annotate(
            printable(text),
            (x, place),
            xytext=(-5, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            color=STAND_INS["ink" if axis.is_choice else "muted"],
            fontsize=9.5,
            zorder=7,
        )


# ── rungs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def rung_chart(study: StudyResults, leader: int | None) -> Chart | None:
    """Score within the budget of each trial at each rung that it has reached."""
    courses = [(trial, course) for trial in study.trials if (course := _course(trial, study))]
    if not courses or len(study.rungs) < 2:
        return None

    def draw(axes: Any) -> None:
        for trial, course in sorted(courses, key=lambda pair: _is_special(pair[0].number, leader)):
            colour, width, style = _looks(trial.number, leader)
            special = width > 1
            if not is_sound(trial) and not special:
                style = (0, (2, 2.5))
            axes.plot(*zip(*course, strict=True), color=colour, linewidth=max(0.9, width), linestyle=style)
            axes.plot(
                *course[-1],
                marker=MARKERS[trial.state],
                color=colour,
                markerfacecolor="none" if trial.state in ("paused", "running") else colour,
                markersize=6 if special else 4.5,
                zorder=4 if special else 3,
            )
        axes.margins(0.08, 0.1)
        label_axes(axes, study.unit, METRICS.get(study.metric, study.metric))
        axes.set_xticks(range(len(study.rungs)), [number(rung) for rung in study.rungs])

    title = "Score at each rung"
    reached = [sum(trial.iterations >= rung for trial in study.trials) for rung in study.rungs]
    told = ", ".join(f"{num} reached {rung} {study.unit}" for num, rung in zip(reached, study.rungs, strict=True))
    caption = (
        "Best score within the budget up to each rung. A line that ends early was pruned (cross) or is paused (ring); "
        "broken: failed, or a limit was broken (triangle)."
    )
    return Chart(title, caption, render(draw, title, f"{title}: {told}.", height=230), _legend(study, leader))


def _course(trial: Trial, study: StudyResults) -> list[tuple[int, float]]:
    """Place of each rung that a trial has reached, and its score there."""
    reached = [(place, rung) for place, rung in enumerate(study.rungs) if trial.iterations >= rung]
    values = [(place, score_at(trial, rung, study.kl)) for place, rung in reached]
    return [(place, value) for place, value in values if value is not None]


MARKERS = {
    "running": "o",
    "paused": "o",
    "complete": "o",
    "pruned": "x",
    "infeasible": "^",
    "failed": "^",
}
"""How a trial's line ends."""


# ── finalists, test, importance, time ────────────────────────────────────────────────────────────────────────────────


def finalist_chart(finalists: Sequence[Finalist], leader: int | None, metric: str) -> Chart:
    """Every seed of every finalist, their mean, and what they are ranked by."""
    ink = STAND_INS["ink"]

    def draw(axes: Any) -> None:
        for place, finalist in enumerate(finalists):
            colour = _looks(finalist.number, leader)[0]
            axes.plot([finalist.worth, finalist.mean], [place, place], color=colour, linewidth=1.2, zorder=2)
            scores = [seed.best.score for seed in finalist.seeds]
            axes.scatter(scores, [place] * len(scores), s=26, color=colour, alpha=0.6, linewidths=0, zorder=3)
            axes.plot(finalist.mean, place, marker="|", markersize=15, color=ink, markeredgewidth=1.4, zorder=4)
            axes.plot(finalist.worth, place, marker="D", markersize=5, color=ink, zorder=4)
        axes.set_ylim(len(finalists) - 0.5, -0.5)
        axes.margins(x=0.08)
        label_axes(axes, METRICS.get(metric, metric), "")
        axes.set_yticks(range(len(finalists)), [_named(finalist.number, leader) for finalist in finalists])
        axes.tick_params(axis="y", labelcolor=ink)
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")

    told = "; ".join(
        f"{_named(each.number, leader)}: mean {number(each.mean)}, worth {number(each.worth)}" for each in finalists
    )
    caption = (
        "A dot for each seed, a line for their mean, a diamond for the worth: mean less deviation. The best is on top."
    )
    height = 70 + 32 * len(finalists)
    return Chart("Finalists", caption, render(draw, "Finalists", f"Finalists: {told}.", height=height))


def test_chart(comparison: Comparison, metric: str) -> Chart:
    """Winner and default on each test seed, side by side."""
    seeds = comparison.seeds

    def draw(axes: Any) -> None:
        for place, seed in enumerate(seeds):
            colour = STAND_INS["after" if seed.winner > seed.default else "before"]
            axes.plot([seed.default, seed.winner], [place, place], color=colour, linewidth=1.6, alpha=0.7, zorder=2)
        places = range(len(seeds))
        axes.scatter(
            *([seed.default for seed in seeds], places),
            s=34,
            facecolors="none",
            edgecolors=STAND_INS["before"],
            linewidths=1.7,
            zorder=3,
        )
        axes.scatter([seed.winner for seed in seeds], places, s=38, color=STAND_INS["after"], linewidths=0, zorder=4)
        axes.set_ylim(len(seeds) - 0.5, -0.5)
        axes.margins(x=0.1)
        label_axes(axes, METRICS.get(metric, metric), "")
        axes.set_yticks(places, [f"seed {seed.seed}" for seed in seeds])
        axes.tick_params(axis="y", labelcolor=STAND_INS["ink"])
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")

    title = "Winner and default on fresh seeds"
    told = "; ".join(f"seed {seed.seed}: {number(seed.default)} to {number(seed.winner)}" for seed in seeds)
    caption = (
        "Both trained with the same seed, which the search has not used, and scored on the same "
        f"{comparison.num_prompts} {'episodes' if metric == 'return' else 'prompts'}, which it has not used either. "
        "Blue to the right of the ring: the winner is better."
    )
    legend: tuple[tuple[Colour, str], ...] = (("after", f"trial {comparison.winner}"), ("before", "default"))
    svg = render(draw, title, f"{title}, default to winner: {told}.", height=70 + 26 * len(seeds))
    return Chart(title, caption, svg, legend)


def importance_chart(study: StudyResults) -> Chart | None:
    """How much of the score's variation each knob explains."""
    if not study.importance:
        return None
    ranked = sorted(study.importance.items(), key=lambda item: -item[1])
    names = short_names(tuple(name for name, _ in ranked))
    return bar_chart(
        [Bar(" ".join(broken_name(names[name], 18)), share, colour="rank-4") for name, share in ranked],
        title="Which settings matter",
        x_label="share of the variation between trials",
        caption="How much of the differences between the trials' scores each setting explains. It does not say which "
        "value is good.",
        chance=None,
    )


def seconds_chart(study: StudyResults) -> Chart | None:
    """Time by trial, parted by what it was spent on."""
    rows = seconds_by_trial(study)
    if not rows:
        return None
    most = max(sum(parts) for parts in rows.values())
    unit, name = (3600.0, "hours") if most >= 7200 else (60.0, "minutes") if most >= 120 else (1.0, "seconds")

    def draw(axes: Any) -> None:
        bottoms = dict.fromkeys(rows, 0.0)
        for at, (colour, _) in enumerate(PHASES):
            heights = [parts[at] / unit for parts in rows.values()]
            axes.bar(list(rows), heights, bottom=list(bottoms.values()), color=STAND_INS[colour], width=0.78)
            bottoms = {trial: bottoms[trial] + height for trial, height in zip(rows, heights, strict=True)}
        label_axes(axes, "trial", name, whole_x=True)

    used = tuple(phase for at, phase in enumerate(PHASES) if any(parts[at] for parts in rows.values()))
    totals = ", ".join(
        f"{label} {number(sum(parts[at] for parts in rows.values()) / unit)}" for at, (_, label) in enumerate(PHASES)
    )
    title = "Time by trial"
    caption = "0 is the default. Trials that were pruned early cost little; that is what rungs are for."
    return Chart(title, caption, render(draw, title, f"{title}, {name}: {totals}."), used)


PHASES: tuple[tuple[Colour, str], ...] = (("rank-2", "search"), ("rank-4", "further seeds"), ("judge", "test"))
"""What a trial's time is spent on."""


def seconds_by_trial(study: StudyResults) -> dict[int, tuple[float, float, float]]:
    """Trial → seconds of search, of further seeds, and of the test; those that took none are left out."""
    further = {each.number: math.fsum(seed.seconds for seed in each.seeds) for each in study.finalists}
    test: dict[int, float] = {}
    if study.comparison is not None:
        seeds = study.comparison.seeds
        test[_DEFAULT] = math.fsum(seed.default_seconds for seed in seeds)
        test[study.comparison.winner] = math.fsum(seed.winner_seconds for seed in seeds)
    rows = {
        trial.number: (trial.seconds, further.get(trial.number, 0.0), test.get(trial.number, 0.0))
        for trial in study.trials
    }
    return {number_: parts for number_, parts in rows.items() if any(parts)}
