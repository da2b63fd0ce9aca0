"""README.md of the trained model, in the form of the Hugging Face hub: what it is, from what, how good, what else."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhfkit.config.section import HUB_ID
from rlhfkit.config.stages import title_of
from rlhfkit.diagnosis.verdict import judge_run
from rlhfkit.report.templates import templates
from rlhfkit.rundir.atomic import write_atomically
from rlhfkit.rundir.contents import Facts, read_facts
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.lines import finite_or_none
from rlhfkit.rundir.probe_results import ProbeResults, gate_words, interval_words, shown
from rlhfkit.rundir.results import Evaluation
from rlhfkit.wording import duration, number, percent, score

__all__ = ["render_model_card", "write_model_card"]

MARK = "<!-- written by rlhfkit; remove this line and it will not be written again -->"


def write_model_card(run: RunDir) -> Path | None:
    """Path of the README.md in the policy's directory, written anew; None where there is no policy.

    A README.md that somebody else wrote stays as it is, and so does that of a run from which this one was forked.
    """
    policy = run.model("policy")
    card = policy / "README.md"
    if run.is_control() or policy.is_symlink() or not (policy / "config.json").exists():
        return None
    if card.exists() and MARK not in card.read_text(encoding="utf-8", errors="replace"):
        return None
    write_atomically(card, render_model_card(run).encode("utf-8", "backslashreplace"))
    return card


def render_model_card(run: RunDir) -> str:
    """The card as text, with its front matter of YAML."""
    from markupsafe import Markup

    facts = read_facts(run)
    environment = templates()
    # The file is Markdown: what others wrote has its marks taken away, and no entities of HTML.
    environment.filters.update(plain=lambda text: Markup(_plain(text)), percent=percent)
    return environment.get_template("model_card.md.jinja").render(
        mark=Markup(MARK),
        facts=facts,
        front=Markup(_front_matter(facts)),
        verdict=judge_run(facts),
        base=_base(facts),
        stages=list(_stages(facts)),
        data=list(_data(facts)),
        settings=list(_settings(facts)),
        results=list(_results(facts)),
        probes=None if facts.probes is None else _probes(facts.probes),
        limits=[Markup(limit) for limit in _limits(facts)],
    )


def _front_matter(facts: Facts) -> str:
    """The metadata that the hub reads: only what is known, and no paths of this machine."""
    import yaml  # type: ignore[import-untyped]

    found: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rlhf", "ppo", "rlhfkit"],
    }
    base = str(facts.setting("model", "path") or "")
    if _is_hub_id(base):
        found["base_model"] = base
        found["base_model_relation"] = "finetune"
    if datasets := sorted({row.name for row in _data(facts) if row.is_hub}):
        found["datasets"] = datasets
    if facts.evaluation is not None and (metrics := list(_metrics(facts.evaluation))):
        result = {
            "task": {"type": "text-generation"},
            "dataset": {"name": "held-out prompts of the run", "type": "held-out"},
            "metrics": metrics,
        }
        found["model-index"] = [{"name": facts.name, "results": [result]}]
    return str(yaml.safe_dump(found, sort_keys=False, allow_unicode=True))


def _metrics(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    if (wins := evaluation.win_rate) is not None:
        yield {"type": "win_rate", "name": f"win rate by {evaluation.reward_name}", "value": wins.reward.rate}
        if wins.judge is not None:
            yield {"type": "win_rate", "name": f"win rate by {evaluation.judge_name}", "value": wins.judge.rate}
    for measure in evaluation.task.measures if evaluation.task else ():
        yield {"type": measure.name.lower(), "name": measure.name, "value": measure.policy.mean}


def _is_hub_id(path: str) -> bool:
    return bool(path) and HUB_ID.fullmatch(path) is not None and not Path(path).exists()


def _base(facts: Facts) -> str:
    path = str(facts.setting("model", "path") or "")
    if facts.setting("model", "type") == "scratch":
        return "a small model with random weights, pre-trained in the same run"
    return path if _is_hub_id(path) else Path(path).name


def _stages(facts: Facts) -> Iterator[str]:
    timed = facts.manifest.get("stages") or {}
    for name in facts.setting("stages") or ():
        seconds = finite_or_none((timed.get(name) or {}).get("seconds"))
        yield title_of(name) + (f" ({duration(seconds)})" if seconds is not None else "")


@dataclass(frozen=True, slots=True)
class DataRow:
    """A file or dataset that was read."""

    use: str
    name: str
    num_rows: str
    sha256: str
    is_hub: bool


def _data(facts: Facts) -> Iterator[DataRow]:
    for entry in facts.manifest.get("data") or ():
        path = str(entry.get("path", ""))
        is_hub = "/" in path and _is_hub_id(path) and not re.search(r"\.\w+$", path)
        yield DataRow(
            use=str(entry.get("use", "")).replace("_", " "),
            name=path if is_hub else Path(path).name,
            num_rows=f"{entry.get('num_rows', 0):,}",
            sha256=str(entry.get("sha256", ""))[:12],
            is_hub=is_hub,
        )


SETTINGS = (
    ("seed",),
    ("ppo", "preset"),
    ("ppo", "iterations"),
    ("ppo", "rollout_episodes"),
    ("ppo", "minibatch_episodes"),
    ("ppo", "epochs"),
    ("ppo", "optim", "learning_rate"),
    ("ppo", "clip_range"),
    ("ppo", "kl", "type"),
    ("ppo", "kl", "coef"),
    ("ppo", "kl", "target"),
    ("rollout", "temperature"),
    ("rollout", "max_response_tokens"),
    ("reward", "type"),
    ("model", "lora", "rank"),
)


def _settings(facts: Facts) -> Iterator[tuple[str, str]]:
    for path in SETTINGS:
        value = facts.setting(*path)
        if value is not None:
            yield ".".join(path), number(value) if isinstance(value, float) else str(value)
    for name in ("torch", "transformers"):
        if (version := (facts.manifest.get("versions") or {}).get(name)) is not None:
            yield name, str(version)


def _results(facts: Facts) -> Iterator[tuple[str, str, str]]:
    """(what, before, after)."""
    evaluation = facts.evaluation
    if evaluation is None:
        return
    before, after = evaluation.models.get("sft"), evaluation.models.get("policy")
    if before is not None and after is not None:
        for measure in evaluation.task.measures if evaluation.task else ():
            yield measure.name, measure.shown(measure.sft.mean), measure.shown(measure.policy.mean)
        for held in evaluation.constraints:
            old, new = (f"{number(each.mean)} ({each.words(number)})" for each in (held.sft, held.policy))
            yield f"constraint {held.name}, {held.wanted} on average", old, new
        yield f"score by {evaluation.reward_name}", _interval(before.score), _interval(after.score)
        if before.judge is not None and after.judge is not None:
            yield f"score by {evaluation.judge_name}", _interval(before.judge), _interval(after.judge)
        for name, key in (("distinct-2", "distinct_2"), ("perplexity under the reference", "perplexity")):
            yield name, number(getattr(before, key)), number(getattr(after, key))
        yield "responses that end by themselves", percent(before.eos_rate), percent(after.eos_rate)
        yield "KL to the reference, nats a response", "0", number(after.ref_kl)
    if (wins := evaluation.win_rate) is not None:
        for who, rate in ((evaluation.reward_name, wins.reward), (evaluation.judge_name, wins.judge)):
            if rate is not None:
                yield f"win rate by {who}", "", f"{percent(rate.rate)} ({percent(rate.low)} to {percent(rate.high)})"


def _interval(estimate: Any) -> str:
    return f"{score(estimate.mean)} ({estimate.words(score)})"


def _probes(results: ProbeResults) -> dict[str, Any]:
    return {
        "sentences": results.sentences(),
        "rows": [
            (
                f"{measure.probe.replace('_', ' ')}: {measure.words}" + " (declared beforehand)" * measure.is_primary,
                shown(None if measure.before is None else measure.before.mean, measure.unit),
                shown(measure.after.mean, measure.unit),
                interval_words(measure),
                gate_words(measure.gate) if measure.of == "model" else f"floor {shown(measure.floor, measure.unit)}",
                measure.reading,
            )
            for measure in results.of_whole()
        ],
    }


def _limits(facts: Facts) -> Iterator[str]:
    """What the card must not be read as."""
    if facts.setting("synthetic"):
        yield "The texts and the people's choices were made up by a program; nothing is said about real language."
    yield (
        "The model maximises a reward. What the reward does not see was not trained for, and may have become worse; "
        "see the judge, and what else changed."
    )
    if facts.evaluation is not None:
        yield f"Results are of {facts.evaluation.num_prompts} held-out prompts like those it trained on, with one seed."
    if facts.probes is None:
        yield "Bias, safety and leakage were not measured (`rlhfkit probe RUN` does)."
        return
    yield (
        "Probes are short sentences in English. Finding nothing is no proof of harmlessness, word lists miss what is "
        "meant without their words, and a list of groups is never whole."
    )
    weak = {measure.probe.replace("_", " ") for measure in facts.probes.measures if measure.reading == "too weak"}
    if weak:
        yield f"Too weak for the probes {', '.join(sorted(weak))}: it cannot be called safe or unsafe there."


def _plain(text: str) -> str:
    """Text of others in a cell of a table: no line break, no mark of Markdown or HTML that would do something."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(str(text).split()))
