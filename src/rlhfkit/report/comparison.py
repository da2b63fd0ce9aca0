"""PPO beside what can be had without it: score against KL, a curve each, with seconds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlhfkit.report.svg import DOTTED, STAND_INS, Chart, Colour, label_axes, render
from rlhfkit.rundir.results import Comparison, Estimate, Method, MethodPoint
from rlhfkit.stats.best_of_n import at_distance
from rlhfkit.wording import counted, duration, number, percent

__all__ = ["ComparedMethod", "comparison_charts", "comparison_rows", "in_words"]

Measure = Literal["judge", "score"]

TITLES = {"ppo": "PPO", "dpo": "DPO", "raft": "RAFT", "best_of_n": "best of n"}
LOOKS: dict[str, tuple[Colour, str]] = {
    "ppo": ("after", "o"),
    "dpo": ("before", "s"),
    "raft": ("judge", "^"),
    "best_of_n": ("muted", "D"),
}

MOST_KL = 2.0
"""Points beyond so many times the KL of the comparison are not drawn."""


@dataclass(frozen=True, slots=True)
class ComparedMethod:
    """A row of the table."""

    name: str
    kl: str
    """Where it ends."""
    judge: str | None
    """There, by the judge."""
    score: str | None
    """There, by the reward."""
    at_kl: str
    """By the judge, or the reward, at the KL of the comparison."""
    training: str
    responding: str


def measures_of(comparison: Comparison) -> tuple[Measure, ...]:
    """What there is to compare by; the judge, which nothing was trained on, before the reward."""
    return ("score",) if comparison.judge_name is None else ("judge", "score")


def comparison_rows(comparison: Comparison) -> list[ComparedMethod]:
    """The table: where each method ends, where it is at the KL of the comparison, and what it takes."""
    measure = measures_of(comparison)[0]
    rows = []
    for method in comparison.methods:
        end, is_bound = method.points[-1], method.name == "best_of_n"
        rows.append(
            ComparedMethod(
                name=f"best of {end.at}" if is_bound else TITLES[method.name],
                kl=f"at most {number(end.ref_kl)}" if is_bound else number(end.ref_kl),
                judge=_shown(end.judge),
                score=_shown(end.score),
                at_kl=_at_kl(method, measure, comparison.kl),
                training=_training(method, comparison),
                responding=_responding(method, comparison),
            )
        )
    return rows


def in_words(comparison: Comparison) -> str:
    """One line: what each method reaches at the KL of the comparison."""
    measure = measures_of(comparison)[0]
    who = comparison.judge_name if measure == "judge" else comparison.reward_name
    said = [f"{TITLES[method.name]} {_at_kl(method, measure, comparison.kl)}" for method in comparison.methods]
    return f"at {number(comparison.kl)} nats, by {who}: {'; '.join(said)}"


def comparison_charts(comparison: Comparison) -> list[Chart]:
    """Score against KL, by the judge and by the reward."""
    charts = [_chart(comparison, measure) for measure in measures_of(comparison)]
    return [chart for chart in charts if chart is not None]


def _chart(comparison: Comparison, measure: Measure) -> Chart | None:
    courses = {method.name: _course(method, measure) for method in comparison.methods}
    # Beyond, they would press the others to the edge.
    most = MOST_KL * comparison.kl
    near = {name: [point for point in course if point[0] <= most] for name, course in courses.items()}
    drawn = {name: course for name, course in near.items() if course}
    num_beyond = sum(map(len, courses.values())) - sum(map(len, near.values()))
    furthest = max((kl for course in drawn.values() for kl, _, _ in course), default=0.0) or 1.0
    if not drawn:
        return None

    def draw(axes: Any) -> None:
        for name, course in drawn.items():
            _draw_course(axes, name, course)
        axes.axvline(comparison.kl, color=STAND_INS["ink"], linewidth=0.9, linestyle=DOTTED, zorder=1)
        axes.grid(True, axis="both")
        axes.set_xlim(-0.03 * furthest, 1.05 * furthest)
        axes.margins(y=0.08)
        label_axes(axes, "KL to the SFT model, nats per sequence", who)

    who = (comparison.judge_name or "judge") if measure == "judge" else comparison.reward_name
    title = "By the judge" if measure == "judge" else "By the reward"
    ends = {TITLES[name]: course[-1] for name, course in drawn.items()}
    ends_in_words = ", ".join(f"{name} {number(mean)} at {number(kl)}" for name, (kl, mean, _) in ends.items())
    svg = render(draw, f"{title} compared", f"{title}: {ends_in_words} nats.", height=240)
    caption = (
        f"Mean over {comparison.num_prompts} held-out prompts, the same for all, with its {percent(0.95)} interval; a "
        "point is an evaluation on the way, or one n. Dotted: the KL of the comparison. The best of n stands at the "
        "most that its KL can be, log n − (n − 1)/n, so that it may lie further left."
    )
    if num_beyond:
        caption += f" {counted(num_beyond, 'point')} beyond {number(most)} nats not drawn."
    return Chart(title, caption, svg, tuple((LOOKS[name][0], TITLES[name]) for name in drawn))


def _draw_course(axes: Any, name: str, course: Sequence[tuple[float, float, float]]) -> None:
    """The points of a method in their order, with intervals; hollow where the KL is a bound."""
    colour, marker = LOOKS[name]
    xs, means, spreads = zip(*course, strict=True)
    axes.errorbar(
        xs,
        means,
        yerr=spreads,
        color=STAND_INS[colour],
        linewidth=1.8 if name == "ppo" else 1.3,
        linestyle="-" if name == "ppo" else (0, (4, 2)),
        elinewidth=0.5,
        marker=marker,
        markersize=4.5,
        markerfacecolor="none" if name == "best_of_n" else STAND_INS[colour],
        zorder=4 if name == "ppo" else 3,
    )


def _course(method: Method, measure: Measure) -> list[tuple[float, float, float]]:
    """(KL, mean, half of its interval) of the points that have the measure."""
    found = ((point.ref_kl, _of(point, measure)) for point in method.points)
    return [
        (kl, value.mean, 0.0 if value.high is None else value.high - value.mean)
        for kl, value in found
        if value is not None
    ]


def _of(point: MethodPoint, measure: Measure) -> Estimate | None:
    return point.judge if measure == "judge" else point.score


def _at_kl(method: Method, measure: Measure, kl: float) -> str:
    """The value there, on the line between the evaluations."""
    course = [(at, mean) for at, mean, _ in _course(method, measure)]
    if not course:
        return "not measured"
    if (value := at_distance(course, kl)) is not None:
        return number(value)
    return "not so far"


def _shown(estimate: Estimate | None) -> str | None:
    return None if estimate is None else f"{number(estimate.mean)} ({estimate.words(number)})"


def _training(method: Method, comparison: Comparison) -> str:
    """What it takes before it can be used, the reward model included; what all need, as SFT, is not counted."""
    own = None if method.seconds is None else duration(method.seconds, digits=2)
    reward = comparison.reward_model_seconds if method.needs_reward else None
    return " + ".join([own or "0 s", *([] if reward is None else [duration(reward, digits=2)])])


def _responding(method: Method, comparison: Comparison) -> str:
    """What a thousand responses take, from that of one of the SFT model."""
    if comparison.response_seconds is None:
        return "–"
    return duration(1000 * comparison.response_seconds * method.samples_per_response, digits=2)
