"""One offline HTML page that says whether a run went well, and shows what it did."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rlhfkit.config.stages import STAGE_SPECS, title_of
from rlhfkit.diagnosis.diagnose import problems_in_report
from rlhfkit.diagnosis.verdict import judge_run, name_at_start
from rlhfkit.report.cluster import cluster_page
from rlhfkit.report.comparison import comparison_charts, comparison_rows
from rlhfkit.report.control import control_page
from rlhfkit.report.ema import ema_table
from rlhfkit.report.explanation import KL_LEVELS, panels_of, shown_token
from rlhfkit.report.model_card import write_model_card
from rlhfkit.report.on_the_way import on_the_way_charts
from rlhfkit.report.plots import further_ppo_charts, ppo_charts, reward_model_charts, supervised_charts
from rlhfkit.report.probes import probe_page
from rlhfkit.report.ranks import shared_work
from rlhfkit.report.rounds import rounds_page
from rlhfkit.report.svg import Colour
from rlhfkit.report.templates import templates
from rlhfkit.rundir.atomic import write_atomically
from rlhfkit.rundir.contents import Facts, Row, curve, ends, read_facts
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.lines import finite_or_none
from rlhfkit.rundir.results import ConstraintResults, Estimate, Evaluation, Measure, WinRate
from rlhfkit.wording import duration, number, percent, score

__all__ = ["render_report", "report_or_warn", "write_report"]


def write_report(run: RunDir) -> Path:
    """Path of `report.html`, written anew from the run's files; what is not there yet is left out.

    The same files give the same bytes. The model card beside the policy's weights is written with it.
    Raises: CheckpointError where there is no such run, or one of its files is damaged.
    """
    # Text of models may hold lone surrogates, for which UTF-8 has no bytes.
    write_atomically(run.report, render_report(run).encode("utf-8", "backslashreplace"))
    write_model_card(run)
    return run.report


def report_or_warn(run: RunDir, warn: Callable[[str], None]) -> None:
    """Write the report at the end of a run, which is done whether or not it can be written."""
    try:
        write_report(run)
    except Exception as error:  # whatever it is, it only shows the run
        words = " ".join(str(error).split()) or type(error).__name__
        warn(
            f"{run.report} cannot be written ({words}); the run itself is whole; once that is put right: "
            f"rlhfkit report {run.path}"
        )


def render_report(run: RunDir) -> str:
    """The page as text; see `write_report`."""
    facts = read_facts(run)
    environment = templates()
    environment.filters.update(number=number, percent=percent, score=score, duration=partial(duration, digits=2))
    environment.filters.update(shown=shown_token)
    settings, origin = _settings(facts.config), list(_origin(facts))
    environment.globals["problems"] = problems_in_report(facts, run)
    if run.is_control():
        page = control_page(facts, run)
        template = environment.get_template("control.html.jinja")
        return template.render(facts=facts, page=page, settings=settings, origin=origin)
    if facts.setting("rounds") not in (None, 1):
        template = environment.get_template("rounds.html.jinja")
        return template.render(facts=facts, page=rounds_page(facts, run), settings=settings, origin=origin)
    return environment.get_template("report.html.jinja").render(
        facts=facts,
        verdict=judge_run(facts),
        stages=_stage_progress(facts),
        cards=_cards(facts),
        ppo_charts=ppo_charts(facts),
        further_ppo_charts=further_ppo_charts(facts),
        on_the_way_charts=on_the_way_charts(facts),
        reward_model_charts=reward_model_charts(facts),
        supervised_charts=supervised_charts(facts),
        shared=shared_work(facts),
        ema=ema_table(facts.evaluation),
        comparison=facts.comparison,
        comparison_charts=comparison_charts(facts.comparison) if facts.comparison else [],
        comparison_rows=comparison_rows(facts.comparison) if facts.comparison else [],
        probes=probe_page(facts.probes),
        probes_over_seeds=probe_page(facts.probes_over_seeds),
        development=_development(facts.samples),
        panel=panels_of(facts.observations),
        kl_levels=KL_LEVELS,
        cluster=cluster_page(run),
        settings=settings,
        origin=origin,
    )


# ── progress ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class StageProgress:
    """A stage of the recipe and how far it is."""

    name: str
    state: Literal["done", "running", "to come"]
    seconds: float | None
    note: str = ""


def _stage_progress(facts: Facts) -> list[StageProgress]:
    timed = facts.manifest.get("stages")
    timed = timed if isinstance(timed, dict) else {}
    known = {*facts.metrics, *timed, *facts.finished}
    outputs = {
        "evaluate": facts.evaluation,
        "reward_model": facts.reward_model,
        "probe": facts.probes,
        "compare": facts.comparison,
    }
    progress = []
    for name in facts.setting("stages") or [name for name in STAGE_SPECS if name in known]:
        record = timed.get(name)
        seconds = finite_or_none(record.get("seconds")) if isinstance(record, dict) else None
        rows = facts.metrics.get(name, ())
        done = name in facts.finished or seconds is not None or outputs.get(name) is not None
        total = finite_or_none(facts.setting("ppo", "iterations")) if name == "ppo" else None
        note = f"iteration {len(rows)}{f' of {number(total)}' if total else ''}" if rows and not done else ""
        state: Literal["done", "running", "to come"] = "done" if done else "running" if rows else "to come"
        progress.append(StageProgress(title_of(str(name)), state, seconds, note))
    return progress


# ── cards ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Range:
    """An interval on a scale from 0 to 100, for the small bar in a card."""

    low: float
    mean: float
    high: float
    colour: Colour


@dataclass(frozen=True, slots=True)
class Card:
    """A headline number."""

    title: str
    after: str
    note: str
    before: str | None = None
    ranges: Sequence[Range] = ()
    has_middle: bool = False
    """Whether the bar marks one half."""


def _cards(facts: Facts) -> list[Card]:
    if facts.evaluation is None:
        return list(_training_cards(facts))
    return [*_comparison_cards(facts.evaluation), *_value_cards(facts.evaluation)]


def _comparison_cards(evaluation: Evaluation) -> Iterator[Card]:
    before, after = evaluation.models.get("sft"), evaluation.models.get("policy")
    wins = evaluation.win_rate
    for measure in evaluation.task.measures if evaluation.task else ():
        yield _measure_card(measure)
    title = "Return" if evaluation.in_environment else "Score"
    yield from _estimate_card(title, before.score if before else None, after.score if after else None, score)
    if wins is not None:
        yield _win_card("Win rate (reward)", wins.reward, evaluation.reward_name, "after")
        if wins.judge is not None:
            yield _win_card("Win rate (judge)", wins.judge, evaluation.judge_name, "judge")
    for constraint in evaluation.constraints:
        yield _constraint_card(constraint)
    for title, name in (("Won", "won_share"), ("Judged positive", "judge_positive_share")):
        share, share_after = (None if model is None else getattr(model, name) for model in (before, after))
        yield from _estimate_card(title, share, share_after, percent, scale=(0.0, 1.0))


def _estimate_card(
    title: str,
    before: Estimate | None,
    after: Estimate | None,
    write: Callable[[float], str],
    scale: tuple[float, float] | None = None,
) -> Iterator[Card]:
    estimates: list[tuple[Estimate, Colour]] = []
    if before is not None:
        estimates.append((before, "before"))
    if after is not None:
        estimates.append((after, "after"))
    if not estimates:
        return
    if scale is None:
        edges = [edge for estimate, _ in estimates for edge in _ends(estimate)]
        margin = 0.12 * (max(edges) - min(edges)) or 1.0
        scale = min(edges) - margin, max(edges) + margin
    both = len(estimates) == 2
    intervals = [f"{estimate.words(write)} {when}" for estimate, when in estimates]
    yield Card(
        title,
        after=write(estimates[-1][0].mean),
        before=write(estimates[0][0].mean) if both else None,
        note=f"{percent(0.95)} interval{'s' if both else ''}: {', '.join(intervals)}",
        ranges=[
            _range(low, estimate.mean, high, colour, scale)
            for estimate, colour in estimates
            for low, high in [_ends(estimate)]
        ],
    )


def _measure_card(measure: Measure) -> Card:
    """What the field measures, with the interval of the difference."""
    (card,) = _estimate_card(measure.name, measure.sft, measure.policy, measure.shown)
    gain = measure.difference
    points, interval = measure.shown_difference(gain.mean), gain.words(measure.shown_difference)
    note = f"likeliest responses; {points} points, {percent(0.95)} interval: {interval}"
    return replace(card, title=name_at_start(measure.name), note=note)


def _constraint_card(constraint: ConstraintResults) -> Card:
    """What was held to a limit, and whether it holds."""
    (card,) = _estimate_card(f"Constraint: {constraint.name}", constraint.sft, constraint.policy, number)
    return replace(card, note=f"wanted {constraint.wanted} on average; {card.note}")


def _ends(estimate: Estimate) -> tuple[float, float]:
    """Both ends of the interval; the mean where there is none."""
    if estimate.low is None or estimate.high is None:
        return estimate.mean, estimate.mean
    return estimate.low, estimate.high


def _win_card(title: str, win: WinRate, who: str, colour: Colour) -> Card:
    ties = f"; {percent(win.ties)} ties" if win.ties else ""
    return Card(
        title,
        after=percent(win.rate),
        note=f"by {who}; {percent(0.95)} interval: {percent(win.low)} to {percent(win.high)}{ties}",
        ranges=[_range(win.low, win.rate, win.high, colour, (0.0, 1.0))],
        has_middle=True,
    )


def _range(low: float, mean: float, high: float, colour: Colour, scale: tuple[float, float]) -> Range:
    def place(value: float) -> float:
        share = (value - scale[0]) / (scale[1] - scale[0])
        return round(100 * min(1.0, max(0.0, share)), 2) if math.isfinite(share) else 0.0

    return Range(place(low), place(mean), place(high), colour)


def _value_cards(evaluation: Evaluation) -> Iterator[Card]:
    models = [evaluation.models[name] for name in ("sft", "policy") if name in evaluation.models]
    after = evaluation.models.get("policy")
    if after is not None and after.ref_kl is not None:
        yield Card("KL to the reference", f"{number(after.ref_kl)} nats", "summed per sequence; how far PPO moved")
    for key, title, note in (
        ("eos_rate", "EOS rate", "responses that end by themselves"),
        ("response_tokens", "Response length", "tokens on average"),
        ("turns", "Turns", "responses per episode"),
        ("distinct_1", "Distinct-1", "different words among all words"),
        ("distinct_2", "Distinct-2", "different word pairs among all pairs"),
        ("perplexity", "Perplexity", "per token, under the reference"),
    ):
        values = [getattr(model, key) for model in models]
        write = percent if key == "eos_rate" else _two_digits if key.startswith("distinct") else number
        if key.startswith("distinct") and evaluation.task and evaluation.task.confusion:
            continue  # names of classes are few by intent
        if values and values[-1] is not None:
            yield Card(title, write(values[-1]), note, before=write(values[0]) if len(values) == 2 else None)


def _two_digits(value: float | None) -> str:
    return number(value, 2)


def _training_cards(facts: Facts) -> Iterator[Card]:
    """First and last tenth of PPO's iterations, until there is an evaluation."""
    for key, title, note in (
        ("score/mean", "Score in training", "on the prompts that PPO trains on"),
        ("ref_kl/sequence", "KL to the reference", "nats, summed per sequence"),
        ("eos_rate", "EOS rate", "responses that end by themselves"),
        ("response_tokens/mean", "Response length", "tokens on average"),
        ("ppo/entropy", "Entropy", "nats per token"),
    ):
        write = percent if key == "eos_rate" else score if key == "score/mean" else number
        _, values = curve(facts.metrics.get("ppo", ()), key)
        if values:
            first, last = ends(values)
            yield Card(title, write(last), note, before=write(first))


# ── samples and settings ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Moment:
    """A response that was sampled while PPO ran."""

    iteration: int
    prompt: str
    response: str
    score: float | None
    ref_kl: float | None
    is_cut: bool


def _development(samples: Sequence[Row]) -> list[list[Moment]]:
    """Groups of logged responses in the order of their iterations; which ones does not depend on their scores.

    A prompt that came back in at least three iterations is shown over time (three such prompts at most, five responses
    each). Without such prompts there is one group: the first response of six iterations, evenly spaced.
    """
    moments = [
        Moment(
            iteration=int(iteration),
            prompt=str(row.get("prompt", "")),
            response=str(row.get("response", "")),
            score=finite_or_none(row.get("score")),
            ref_kl=finite_or_none(row.get("ref_kl")),
            is_cut=row.get("finish_reason") == "length",
        )
        for row in samples
        if (iteration := finite_or_none(row.get("iteration"))) is not None
    ]
    by_prompt: dict[str, dict[int, Moment]] = {}
    by_iteration: dict[int, Moment] = {}
    for moment in sorted(moments, key=lambda moment: moment.iteration):
        by_prompt.setdefault(moment.prompt, {}).setdefault(moment.iteration, moment)
        by_iteration.setdefault(moment.iteration, moment)
    recurring = sorted((group for group in by_prompt.values() if len(group) >= 3), key=len, reverse=True)
    if recurring:
        return [_evenly(list(group.values()), 5) for group in recurring[:3]]
    return [_evenly(list(by_iteration.values()), 6)] if by_iteration else []


def _evenly(moments: Sequence[Moment], most: int) -> list[Moment]:
    if len(moments) <= most:
        return list(moments)
    return [moments[round(place * (len(moments) - 1) / (most - 1))] for place in range(most)]


def _settings(config: Row) -> list[tuple[str, list[tuple[str, str]]]]:
    """Section → name and value of each of its settings."""
    sections: dict[str, list[tuple[str, str]]] = {"recipe": []}
    for key, value in config.items():
        if isinstance(value, Mapping):
            sections[key] = list(_flatten(value))
        else:
            sections["recipe"].append((key, _compact(value)))
    return [(name, rows) for name, rows in sections.items() if rows]


def _flatten(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _compact(value)


def _origin(facts: Facts) -> Iterator[tuple[str, str]]:
    """What the run was made of and what its stages noted, as rows of a table."""
    manifest = facts.manifest
    for key, value in manifest.items():
        if key not in ("versions", "data", "models", "stages"):
            yield key, _compact(value)
    if isinstance(manifest.get("versions"), Mapping):
        yield "versions", _join(manifest["versions"])
    for key, kind in (("data", "data"), ("models", "model")):
        for entry in manifest.get(key) or ():
            if isinstance(entry, Mapping):
                title = entry.get("use") or entry.get("name")
                further = {key: value for key, value in entry.items() if key not in ("use", "name", "path")}
                path = _compact(entry.get("path"))
                yield f"{kind}: {_compact(title)}" if title else kind, f"{path}\n{_join(further)}".strip()
            else:
                yield kind, _compact(entry)
    for stage, record in facts.finished.items():
        if record:
            yield f"stage: {title_of(stage)}", _join(record)


def _join(values: Mapping[str, Any]) -> str:
    """Names and values in a line; those that say nothing are left out."""
    texts = {name: number(value) if isinstance(value, float) else _compact(value) for name, value in values.items()}
    return " · ".join(f"{name} {texts[name]}" for name, value in values.items() if value is not None)


def _compact(value: object) -> str:
    """A setting as text, without the user name and password that an address may hold."""
    if value is None:
        return "–"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return re.sub(r"://[^/@\s]+@", "://…@", text)
