"""How trainers and evaluations show themselves in a notebook: small HTML that needs nothing from elsewhere."""

import html
from collections.abc import Mapping, Sequence

from rlhfkit.rundir.results import Evaluation
from rlhfkit.wording import number

__all__ = ["control_html", "curve", "evaluation_html", "ppo_html", "supervised_html", "table"]

WIDTH, HEIGHT, PADDING = 280, 90, 6
LONGEST_TEXT = 300


def ppo_html(title: str, history: Sequence[Mapping[str, float]], samples: Sequence[tuple[str, str, str]]) -> str:
    """Curves of score and KL, and (prompt, response before, response after) side by side."""
    curves = [("score", "score/mean"), ("KL to the reference (nats per sequence)", "ref_kl/sequence")]
    shown = _curves(history, curves)
    if samples:
        shown += table(("prompt", "before", "after"), samples)
    return _frame(title, shown)


def control_html(title: str, history: Sequence[Mapping[str, float]]) -> str:
    """The curve of the episodes' return."""
    return _frame(title, _curves(history, [("return of an episode", "episode_return/mean")]))


def supervised_html(title: str, history: Sequence[Mapping[str, float]]) -> str:
    """The curve of the loss, and of the accuracy where there is one."""
    return _frame(title, _curves(history, [("loss", "loss"), ("accuracy", "accuracy")]))


def evaluation_html(evaluation: Evaluation) -> str:
    """Scores before and after, the win rate, and responses side by side."""
    before, after = evaluation.models["sft"], evaluation.models["policy"]
    rows = [
        ("score", number(before.score.mean), number(after.score.mean), after.score.words(number)),
        *(
            [(evaluation.judge_name, number(before.judge.mean), number(after.judge.mean), after.judge.words(number))]
            if before.judge is not None and after.judge is not None
            else []
        ),
    ]
    shown = table(("mean", "before", "after", "95 % interval after"), rows)
    if (rates := evaluation.win_rate) is not None:
        won = f"{rates.reward.rate:.0%} of {evaluation.num_prompts} prompts"
        shown += f"<p>The response after beats the one before on {won}.</p>"
    shown += table(("prompt", "before", "after"), [(pair.prompt, pair.sft, pair.policy) for pair in evaluation.samples])
    return _frame("Before and after", shown)


def curve(values: Sequence[float], *, title: str) -> str:
    """A line of `values`, its ends and bounds in numbers."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    step = (WIDTH - 2 * PADDING) / max(1, len(values) - 1)
    points = " ".join(
        f"{PADDING + index * step:.1f},{HEIGHT - PADDING - (value - low) / span * (HEIGHT - 2 * PADDING):.1f}"
        for index, value in enumerate(values)
    )
    words = f"{title}: {number(values[0])} → {number(values[-1])} (from {number(low)} to {number(high)})"
    return (
        f'<figure style="display:inline-block;margin:0 1em 0 0"><figcaption>{html.escape(words)}</figcaption>'
        f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(words)}"><polyline points="{points}" fill="none" stroke="#1f77b4" '
        'stroke-width="2"/></svg></figure>'
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts, long ones cut."""

    def line(cells: Sequence[str], tag: str) -> str:
        style = "text-align:left;vertical-align:top;white-space:pre-wrap"
        return "<tr>" + "".join(f'<{tag} style="{style}">{_cut(cell)}</{tag}>' for cell in cells) + "</tr>"

    return f"<table>{line(heads, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _curves(history: Sequence[Mapping[str, float]], named: Sequence[tuple[str, str]]) -> str:
    shown = ""
    for title, metric in named:
        values = [metrics[metric] for metrics in history if metric in metrics]
        shown += curve(values, title=title) if values else ""
    return shown


def _cut(text: str) -> str:
    return html.escape(text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…")


def _frame(title: str, content: str) -> str:
    return f'<div style="font-family:sans-serif"><p><b>{html.escape(title)}</b></p>{content}</div>'
