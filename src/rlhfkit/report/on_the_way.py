"""What evaluations on the way have measured, as charts: the judge's score over the iterations and against the KL."""

import math
from collections.abc import Mapping, Sequence

from rlhfkit.report.svg import Chart, Level, Series, distance_chart, line_chart
from rlhfkit.rundir.contents import Facts, Row, curve
from rlhfkit.rundir.lines import finite_or_none, list_or_empty
from rlhfkit.stats.over_optimization import OverOptimization, fit_over_optimization
from rlhfkit.wording import number, percent, score

__all__ = ["on_the_way_charts"]

Z = 1.96


def on_the_way_charts(facts: Facts) -> list[Chart]:
    """The judge's score (or the reward's) on held-out prompts, over the iterations and against the KL, and variety."""
    rows = [row for row in facts.metrics.get("ppo", ()) if "evaluation/ref_kl" in row]
    return [
        *_course(rows, "judge", "The judge on the way", "What an independent judge says of the same held-out prompts."),
        *_course(rows, "score", "The score on the way", "What the reward says of held-out prompts."),
        *_against_distance(facts, rows),
        *_variety(rows),
        *_probed(facts),
    ]


def _course(rows: Sequence[Row], name: str, title: str, caption: str) -> list[Chart]:
    iterations, values = curve(rows, f"evaluation/{name}")
    _, errors = curve(rows, f"evaluation/{name}_error")
    if not values:
        return []
    series = Series(name, iterations, values, colour="judge" if name == "judge" else "after")
    if len(errors) == len(values):
        spread = [Z * error for error in errors]
        series = Series(series.label, iterations, values, colour=series.colour, spread=spread)
    band = f" The band is the {percent(0.95)} interval of the mean."
    return [line_chart([series], title=title, x_label="iteration", y_label="mean", caption=caption + band)]


def _variety(rows: Sequence[Row]) -> list[Chart]:
    iterations, values = curve(rows, "evaluation/distinct_2")
    if not values:
        return []
    return [
        line_chart(
            [Series("distinct-2", iterations, values)],
            title="Variety on the way",
            x_label="iteration",
            y_label="distinct-2",
            caption="Different pairs of words among all pairs, of all responses to the held-out prompts. A fall says "
            "that the policy tells every prompt the same.",
            limits=(0, None),
        )
    ]


def _against_distance(facts: Facts, rows: Sequence[Row]) -> list[Chart]:
    """The judge's score against the root of the KL, with the curve that is fitted to it where one fits."""
    both = [row for row in rows if "evaluation/judge" in row]
    _, kls = curve(both, "evaluation/ref_kl")
    _, judged = curve(both, "evaluation/judge")
    if len(judged) < 3 or len(kls) != len(judged):
        return []
    fit = fit_over_optimization(kls, _by_prompt(facts, both) or judged)
    distances = [math.sqrt(max(kl, 0.0)) for kl in kls]
    return [
        distance_chart(
            distances,
            judged,
            errors=[Z * error for error in curve(both, "evaluation/judge_error")[1]],
            curve=None if fit is None else fit.gold,
            best=None if fit is None else (fit.low, fit.best_distance, fit.high),
            title="The judge against the distance",
            x_label="distance: root of the KL in nats",
            y_label="judge, mean",
            caption=_caption(fit, both, distances),
        )
    ]


def _caption(fit: OverOptimization | None, rows: Sequence[Row], distances: Sequence[float]) -> str:
    what = "What the judge says, by how far the policy is from where it started; a point an evaluation."
    if fit is None:
        return what
    found = (
        f"{what} The line is d (α − β ln d), d = √KL, fitted from d = 1 on (Gao et al. 2023): it is highest at d = "
        f"{number(fit.best_distance)}, a KL of {number(fit.best_kl)} nats ({percent(0.95)} interval of d: "
        f"{number(fit.low)} to {number(fit.high)})."
    )
    beyond = [row for row, distance in zip(rows, distances, strict=True) if distance > fit.best_distance]
    if distances[-1] <= fit.high or not beyond:
        return found
    (_, rewards), (_, judged) = (curve(beyond, name) for name in ("score/mean", "evaluation/judge"))
    if not rewards or rewards[-1] <= rewards[0]:
        return found
    return (
        f"{found} Beyond it the reward went on from {score(rewards[0])} to {score(rewards[-1])}, and the judge from "
        f"{score(judged[0])} to {score(judged[-1])}."
    )


def _by_prompt(facts: Facts, rows: Sequence[Row]) -> list[list[float]] | None:
    """The judge's score of each prompt, an evaluation a row; None where that is not there for all."""
    seen: Mapping[object, object] = {
        row.get("iteration"): row.get("judge")
        for row in facts.observations
        if row.get("kind") == "evaluation" and row.get("stage") == "ppo"
    }
    judged = [_numbers(seen.get(row.get("iteration"))) for row in rows]
    return judged if judged[0] and len({len(values) for values in judged}) == 1 else None


def _probed(facts: Facts) -> list[Chart]:
    """Each number of the probes that were named, with what its gate says."""
    by_metric: dict[str, list[tuple[float, Row]]] = {}
    for row in facts.observations:
        iteration = finite_or_none(row.get("iteration"))
        if row.get("kind") == "probes" and iteration is not None:
            for found in list_or_empty(row.get("measures")):
                if _numbers(found.get("values")):
                    by_metric.setdefault(str(found.get("metric")), []).append((iteration, found))
    return [_probe_chart(metric, found) for metric, found in by_metric.items()]


def _probe_chart(metric: str, found: Sequence[tuple[float, Row]]) -> Chart:
    values = [_numbers(each.get("values")) for _, each in found]
    means = [sum(each) / len(each) for each in values]
    spread = [
        Z * math.sqrt(sum((x - mean) ** 2 for x in each)) / len(each) for each, mean in zip(values, means, strict=True)
    ]
    last = found[-1][1]
    name, unit, ideal = str(last.get("words")), str(last.get("unit")), finite_or_none(last.get("ideal"))
    return line_chart(
        [Series(name, [iteration for iteration, _ in found], means, spread=spread)],
        title=metric.removeprefix("evaluation/").replace("/", ": ").replace("_", " "),
        x_label="iteration",
        y_label=unit,
        caption=f"{name[:1].upper()}{name[1:]}; the band is the {percent(0.95)} interval.{_gate_words(found)}",
        levels=[] if ideal is None else [Level(ideal, "without bias")],
    )


def _gate_words(found: Sequence[tuple[float, Row]]) -> str:
    """Where the gate fails the number says nothing."""
    gates = [(iteration, gate) for iteration, each in found if isinstance(gate := each.get("gate"), Mapping)]
    failed = [iteration for iteration, gate in gates if (gate.get("share") or 0.0) < (gate.get("least") or 0.0)]
    if not gates:
        return ""
    what, least = gates[-1][1].get("what"), percent(finite_or_none(gates[-1][1].get("least")) or 0.0)
    if not failed:
        return f" Its gate held throughout: {what}, in at least {least} of cases."
    at = "in every evaluation" if len(failed) == len(gates) else f"in {len(failed)} of {len(gates)} evaluations"
    return f" Its gate failed {at} ({what}, in at least {least} of cases): there the number says nothing."


def _numbers(values: object) -> list[float]:
    """The finite numbers of a list; empty where it is none."""
    found = [finite_or_none(value) for value in values] if isinstance(values, list) else []
    return [value for value in found if value is not None]
