"""Which charts a report has, and how to read each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlhfkit.config.stages import STAGE_SPECS, title_of
from rlhfkit.diagnosis.verdict import BASELINE_NAMES
from rlhfkit.report.svg import Bar, Chart, Colour, Level, Series, bar_chart, line_chart, path_chart, reliability_chart
from rlhfkit.rundir.contents import Facts, curve
from rlhfkit.rundir.lines import finite_or_none
from rlhfkit.wording import percent

__all__ = ["further_ppo_charts", "ppo_charts", "reward_model_charts", "supervised_charts"]


@dataclass(frozen=True, slots=True)
class Plot:
    """A metric of PPO, and how to read its curve."""

    key: str
    title: str
    unit: str
    caption: str
    limits: tuple[float | None, float | None] = (0, None)


_KL = Plot(
    key="ref_kl/sequence",
    title="KL to the reference",
    unit="nats, summed per sequence",
    caption="How far the policy has moved from where it started. A steady rise is the price of learning; a jump is a "
    "warning.",
)
_DISAGREEMENT = Plot(
    key="score/disagreement",
    title="Disagreement of the ensemble",
    unit="deviation of the members' scores, mean",
    caption="How far the members of the reward model differ about a response. A steady rise says that the policy has "
    "left what they were trained on.",
)
_PLOTS = (
    Plot(
        key="response_tokens/mean",
        title="Response length",
        unit="tokens, mean",
        caption="Steady is healthy. A drift to the limit, or to almost nothing, often means that the reward pays for "
        "length.",
    ),
    Plot(
        key="eos_rate",
        title="Responses that end by themselves",
        unit="share with EOS",
        caption="Should stay high. Where it falls, responses are cut off at the length limit.",
        limits=(0, 1.04),
    ),
    Plot(
        key="ppo/entropy",
        title="Entropy",
        unit="nats per token",
        caption="How undecided the policy is. A slow fall is normal; a fall to near zero is a collapse into one "
        "response.",
    ),
    Plot(
        key="ppo/approx_kl",
        title="Size of an update",
        unit="approx. KL to the old policy, nats per token",
        caption="How far one iteration moves the policy. Spikes say that the learning rate is too high.",
    ),
    Plot(
        key="ppo/clip_fraction",
        title="Clipped share",
        unit="share of tokens",
        caption="Tokens whose ratio left the clip range. Up to 0.2 is usual; near zero all the time, it could learn "
        "faster.",
    ),
    Plot(
        key="ppo/explained_variance",
        title="Explained variance of the value",
        unit="1 = perfect",
        caption="How well the critic foresees the returns. Should rise above 0; values below −1 are not drawn.",
        limits=(-1.02, 1.05),
    ),
    Plot(
        key="kl_coef",
        title="KL coefficient",
        unit="score per nat",
        caption="How strongly the policy is held to the reference. An adaptive one rises while the KL is above target.",
    ),
    Plot(
        key="entropy_coef",
        title="Entropy coefficient",
        unit="loss per nat",
        caption="What entropy is paid. It rises while the entropy is below its target.",
    ),
)
_FURTHER_PLOTS = (
    Plot(
        key="ppo/policy_loss",
        title="Policy loss",
        unit="loss",
        caption="Hovers around zero; it does not say whether the policy gets better.",
        limits=(None, None),
    ),
    Plot(
        key="ppo/value_loss",
        title="Value loss",
        unit="loss",
        caption="Error of the critic; should fall in the beginning.",
    ),
    Plot(
        key="ppo/ratio_first_epoch_max_deviation",
        title="Ratio before the first update",
        unit="largest |ratio − 1|",
        caption="Must be almost zero: sampling and training then agree on the probabilities.",
    ),
    Plot(
        key="time/iteration_seconds",
        title="Time per iteration",
        unit="seconds",
        caption="Sampling, scoring and updating together.",
    ),
)


_HELD_OUT = {
    "ref_kl/sequence": "evaluation/ref_kl",
    "response_tokens/mean": "evaluation/response_tokens",
    "eos_rate": "evaluation/eos_rate",
}
"""Curve of training → the same as evaluations on the way measure it."""


def ppo_charts(facts: Facts) -> list[Chart]:
    """The curves to look at first: score, KL, their path, and the signs of health."""
    rows = [row for row in facts.metrics.get("ppo", ()) if finite_or_none(row.get("score/mean")) is not None]
    charts = []
    if rows:
        iterations, scores = curve(rows, "score/mean")
        _, stds = curve(rows, "score/std")
        spread = stds if len(stds) == len(scores) else None
        charts.append(
            line_chart(
                [Series("score", iterations, scores, spread=spread, smooth=True)],
                title="Score",
                x_label="iteration",
                y_label="reward's unit, before the KL penalty",
                caption="What the reward says of the sampled responses. It should rise and level off."
                + (" The band is one deviation of the single responses." if spread else ""),
            )
        )
    charts += _draw(facts, [_KL])
    both = [row for row in rows if finite_or_none(row.get(_KL.key)) is not None]
    if len(both) >= 3:
        charts.append(
            path_chart(
                curve(both, _KL.key)[1],
                curve(both, "score/mean")[1],
                title="Score against KL",
                x_label="KL to the reference (nats per sequence)",
                y_label="score",
                caption="What each nat of distance bought: a point per iteration, paler the earlier. Up is gain, right "
                "is cost; a path that runs right without rising has nothing left to gain.",
            )
        )
    return [*charts, *_draw(facts, [_DISAGREEMENT]), *_constraint_charts(facts), *_draw(facts, _PLOTS)]


def _constraint_charts(facts: Facts) -> Iterator[Chart]:
    """Of each constraint its values with the limit, and its multiplier."""
    constraints = facts.setting("ppo", "constraints")
    for constraint in constraints if isinstance(constraints, list) else ():
        name = str(constraint.get("name"))
        is_upper = constraint.get("at_most") is not None
        limit = finite_or_none(constraint.get("at_most" if is_upper else "at_least"))
        for key, title, unit, caption in (
            (
                "mean",
                f"Constraint: {name}",
                "constraint's unit, mean",
                f"What is held to {'at most' if is_upper else 'at least'} the dotted line. It may cross it while the "
                "multiplier finds its place.",
            ),
            (
                "multiplier",
                f"Multiplier: {name}",
                "score per unit of excess",
                "What a unit beyond the limit costs. 0: the constraint holds by itself. At its cap: it cannot be kept, "
                "or not at this price.",
            ),
        ):
            iterations, values = curve(facts.metrics.get("ppo", ()), f"constraint/{name}/{key}")
            if values:
                levels = [Level(limit, "limit")] if key == "mean" and limit is not None else []
                yield line_chart(
                    [Series(title, iterations, values, smooth=key == "mean")],
                    title=title,
                    x_label="iteration",
                    y_label=unit,
                    caption=caption,
                    levels=levels,
                    limits=(0, None) if key == "multiplier" else (None, None),
                )


def further_ppo_charts(facts: Facts) -> list[Chart]:
    """Losses, ratio and times."""
    return _draw(facts, _FURTHER_PLOTS)


def supervised_charts(facts: Facts) -> list[Chart]:
    """Losses of pre-training and SFT."""
    caption = "Cross entropy on text. Validation that rises while training falls is over-fitting."
    return [
        chart
        for stage in (spec.name for spec in STAGE_SPECS.values() if spec.trains in ("pretrain", "sft"))
        for chart in _training_and_validation(
            facts, stage, "loss", f"Loss: {title_of(stage)}", "nats per token", caption
        )
    ]


def reward_model_charts(facts: Facts) -> list[Chart]:
    """What the reward model is worth, and how it learnt."""
    charts = []
    results = facts.reward_model
    if results is not None:
        own = Bar("reward model", results.accuracy, results.accuracy_low, results.accuracy_high, "after")
        ensemble = results.ensemble
        members = [] if ensemble is None else [Bar(f"member {n}", a) for n, a in enumerate(ensemble.members, start=1)]
        if ensemble is not None:
            members += [Bar("all, mean", ensemble.mean), Bar("all, worst case", ensemble.min)]
        rules = [Bar(BASELINE_NAMES.get(name, name), value) for name, value in results.baselines.items()]
        charts.append(
            bar_chart(
                [own, *members, *rules],
                title="Reward model against simple rules",
                x_label="right on held-out pairs",
                caption=f"Share of {results.num_pairs} pairs whose chosen response scores higher, with the "
                f"{percent(0.95)} interval. The dotted line is a coin. Not above the rules: it has learnt little "
                "beyond them.",
            )
        )
        if results.calibration:
            groups = results.calibration
            charts.append(
                reliability_chart(
                    [group.confidence for group in groups],
                    [group.accuracy for group in groups],
                    [group.count for group in groups],
                    title="Calibration",
                    caption="How often it is right when it is this sure; larger dots are more pairs. On the dotted "
                    "line it is as sure as it should be, below it too sure.",
                )
            )
        if results.by_length_difference:
            bars = [Bar(f"{g.label} ({g.count})", g.accuracy, colour="after") for g in results.by_length_difference]
            charts.append(
                bar_chart(
                    bars,
                    title="Accuracy by length difference",
                    x_label="right on held-out pairs",
                    caption="In brackets the number of pairs. Much better on one side than on the other: it goes by "
                    "length.",
                )
            )
        if len(results.by_degree) > 1:
            charts.append(
                bar_chart(
                    [
                        Bar(f"{group.label} ({group.count})", group.accuracy, colour="after")
                        for group in results.by_degree
                    ],
                    title="Accuracy by degree",
                    x_label="right on held-out pairs",
                    caption="By how much better people found the chosen response. It should be most often right where "
                    "they were surest.",
                )
            )
    charts += _training_and_validation(
        facts,
        "reward_model",
        "loss",
        "Loss: reward model",
        "nats per pair",
        "Bradley–Terry loss; 0.69 is a coin. Validation that rises while training falls is over-fitting.",
    )
    return charts + _training_and_validation(
        facts,
        "reward_model",
        "accuracy",
        "Accuracy while it learns",
        "share of pairs",
        "Pairs that it gets right in training, and on rows held out of it.",
        [Level(0.5, "a coin")],
    )


def _draw(facts: Facts, plots: Sequence[Plot]) -> list[Chart]:
    charts = []
    for plot in plots:
        iterations, values = curve(facts.metrics.get("ppo", ()), plot.key)
        is_setting = plot.key == "kl_coef" and len(set(values)) == 1  # a fixed coefficient is no curve
        if values and not is_setting:
            held_out = _held_out(facts, plot.key)
            label = "training" if held_out else plot.title
            charts.append(
                line_chart(
                    [Series(label, iterations, values, smooth=True), *held_out],
                    title=plot.title,
                    x_label="iteration",
                    y_label=plot.unit,
                    caption=plot.caption,
                    levels=_levels(facts, plot.key, max(values)),
                    limits=plot.limits,
                )
            )
    return charts


def _held_out(facts: Facts, key: str) -> list[Series]:
    """The same on held-out prompts, where PPO was evaluated on the way."""
    iterations, values = curve(facts.metrics.get("ppo", ()), _HELD_OUT.get(key, ""))
    return [Series("held-out prompts", iterations, values, colour="before")] if values else []


def _levels(facts: Facts, key: str, highest: float) -> list[Level]:
    """What to compare a curve with; a setting far above the curve would only flatten it."""
    if key == "ppo/explained_variance":
        return [Level(0.0, "no better than a constant")]
    settings: dict[str, list[tuple[tuple[str, ...], str]]] = {
        "ref_kl/sequence": [(("ppo", "kl", "target"), "target"), (("ppo", "max_ref_kl"), "limit")],
        "response_tokens/mean": [(("rollout", "max_response_tokens"), "limit")],
        "ppo/approx_kl": [(("ppo", "target_kl"), "target_kl")],
    }
    values = [(finite_or_none(facts.setting(*path)), label) for path, label in settings.get(key, [])]
    return [Level(value, label) for value, label in values if value is not None and value < 2.5 * highest]


def _training_and_validation(
    facts: Facts, stage: str, key: str, title: str, unit: str, caption: str, levels: Sequence[Level] = ()
) -> list[Chart]:
    rows = facts.metrics.get(stage, ())
    series = []
    named: tuple[tuple[str, str, Colour], ...] = (
        ("training", key, "after"),
        ("validation", f"validation/{key}", "before"),
    )
    for label, name, colour in named:
        updates, values = curve(rows, name)
        if values:
            series.append(Series(label, updates, values, colour=colour, smooth=label == "training"))
    if not series:
        return []
    return [line_chart(series, title=title, x_label="update", y_label=unit, caption=caption, levels=levels)]
