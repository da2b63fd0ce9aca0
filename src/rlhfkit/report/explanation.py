"""One offline HTML page on why single responses are as they are; the text of models stays text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from rlhfkit.report.svg import Chart, Series, line_chart
from rlhfkit.report.templates import templates
from rlhfkit.rundir.atomic import write_atomically
from rlhfkit.rundir.contents import Row
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.explanations import Attribution, Explained, Explanation, PartEffect, Position
from rlhfkit.wording import number, percent, score

__all__ = [
    "Mark",
    "PanelView",
    "PromptView",
    "marked_by_kl",
    "panels_of",
    "render_explanation",
    "shown_token",
    "signed",
    "view_of",
    "write_explanation",
]

KL_LEVELS = (0.05, 0.2, 0.5, 1.0)
"""Nats from which on a token is marked, and marked more strongly."""
SHARE_LEVELS = (0.1, 0.25, 0.5, 0.75)
"""The same as shares of the largest attribution of a response."""
NUM_POSITIONS, NUM_PARTS = 6, 8


def write_explanation(run: RunDir, explanation: Explanation) -> None:
    """Write `explanation.json` and `explanation.html`.

    Raises: CheckpointError where they cannot be written.
    """
    content = explanation.model_dump_json(indent=1, exclude_none=True) + "\n"
    write_atomically(run.explanation, content.encode("utf-8", "backslashreplace"))
    page = render_explanation(explanation, name=run.path.resolve().name)
    write_atomically(run.explanation_page, page.encode("utf-8", "backslashreplace"))


def render_explanation(explanation: Explanation, *, name: str) -> str:
    """The page as text."""
    environment = templates()
    environment.filters.update(number=number, percent=percent, score=score, signed=signed, shown=shown_token)
    return environment.get_template("explanation.html.jinja").render(
        name=name,
        explanation=explanation,
        summary=list(_summary(explanation)),
        views=[view_of(explained) for explained in explanation.prompts],
        kl_levels=KL_LEVELS,
    )


def signed(value: float | None) -> str:
    """A number with its sign: "+0.42", "−1.3"."""
    text = number(value)
    return f"+{text}" if value is not None and value > 0 else text


# ── marked text ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Mark:
    """A token in a text in which tokens are marked by a number of theirs."""

    before: str
    """Blanks, which get no mark."""
    text: str
    """The rest."""
    number: str
    kind: str
    """kl, up or down."""
    level: int
    """0 none to 4 strongest."""


def _marks(texts: Sequence[str], values: Sequence[float], levels: Sequence[float], kind: str = "") -> Iterator[Mark]:
    for text, value in zip(texts, values, strict=True):
        rest = text.lstrip()
        level = sum(abs(value) >= edge for edge in levels) if rest else 0
        its_kind = kind or ("up" if value > 0 else "down")
        shown = number(value, 2) if kind else signed(float(f"{value:.2g}"))
        yield Mark(text[: len(text) - len(rest)], rest, shown, its_kind, level)


def marked_by_kl(explained: Explained) -> list[Mark]:
    """The response, each token marked by how far PPO has moved the distribution that it was drawn from."""
    if explained.positions is None:
        values = [max(0.0, kl) for kl in explained.tokens.kl]
    else:
        values = [position.kl for position in explained.positions]
    return list(_marks(explained.tokens.text, values, KL_LEVELS, "kl"))


def _marked_by(attribution: Attribution, texts: Sequence[str]) -> list[Mark]:
    largest = max(map(abs, attribution.values)) or 1.0
    return list(_marks(texts, attribution.values, [share * largest for share in SHARE_LEVELS]))


# ── one prompt ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Method:
    """An attribution as a row of a table."""

    name: str
    drop: str
    random_drop: str
    p_value: str
    adds_up: str
    verdict: str


@dataclass(frozen=True, slots=True)
class PromptView:
    """One explained response, ready for the page."""

    explained: Explained
    by_kl: Sequence[Mark]
    moved: Sequence[tuple[int, str, Position]]
    """Place, token and change of the places with most KL."""
    columns: Sequence[tuple[str, str]]
    """Short name of each column of the table of tokens, and what it is."""
    rows: Sequence[Sequence[str]]
    sums: Sequence[str]
    adds_up: str
    """How the sums compare with what was logged."""
    drawn: Attribution | None
    """The attribution that is drawn: of those that may be, the one that finds most."""
    by_reward: Sequence[Mark]
    methods: Sequence[Method]
    deletion: Chart | None
    parts: Sequence[tuple[str, Sequence[PartEffect]]]
    """Name of a kind of parts, and those with most effect."""
    layers: Chart | None


def view_of(explained: Explained) -> PromptView:
    """What the page shows of one response."""
    reasons, texts = explained.reasons, explained.tokens.text
    attributions = reasons.attributions if reasons else ()
    may = [attribution for attribution in attributions if attribution.may_be_drawn]
    drawn = max(may, key=lambda attribution: attribution.check.drop if attribution.check else 0.0, default=None)
    positions = explained.positions or ()
    order = sorted(range(len(positions)), key=lambda place: -positions[place].kl)[:NUM_POSITIONS]
    columns, rows, sums = _table(explained)
    return PromptView(
        explained=explained,
        by_kl=marked_by_kl(explained),
        moved=[(place + 1, texts[place], positions[place]) for place in order if positions[place].kl > KL_LEVELS[0]],
        columns=columns,
        rows=rows,
        sums=sums,
        adds_up=_adds_up(explained),
        drawn=drawn,
        by_reward=_marked_by(drawn, texts) if drawn else [],
        methods=[_method(attribution) for attribution in attributions],
        deletion=_deletion_chart(attributions, reasons.score if reasons else 0.0),
        parts=[(name, _largest(parts)) for name, parts in _kinds(explained) if parts],
        layers=_lens_chart(explained),
    )


def _kinds(explained: Explained) -> Iterator[tuple[str, Sequence[PartEffect]]]:
    if explained.reasons is not None:
        yield "sentence", explained.reasons.sentences
        yield "run of words", explained.reasons.spans


def _largest(parts: Sequence[PartEffect]) -> list[PartEffect]:
    return sorted(parts, key=lambda part: -abs(part.effect))[:NUM_PARTS]


def _method(attribution: Attribution) -> Method:
    check, whole = attribution.check, attribution.completeness
    if check is None:
        verdict = "cannot be checked"
    elif not check.is_faithful:
        verdict = "no better than chance"
    elif whole is not None and not whole.is_complete:
        verdict = "does not add up"
    else:
        verdict = "holds"
    adds_up = (
        ""
        if whole is None
        else f"{signed(whole.total)} of {signed(whole.expected)} ({number(100 * whole.error, 2)}\u202f% off)"
    )
    return Method(
        attribution.method,
        "–" if check is None else signed(check.drop),
        "–" if check is None else signed(check.random_drop),
        "–" if check is None else number(check.p_value, 2),
        adds_up,
        verdict,
    )


def _table(explained: Explained) -> tuple[list[tuple[str, str]], list[list[str]], list[str]]:
    """Columns, rows and sums of the table of tokens; a column that nobody has filled is left out."""
    tokens, reasons, positions = explained.tokens, explained.reasons, explained.positions
    attributions = reasons.attributions if reasons else ()
    clipped = None if tokens.is_clipped is None else tuple("yes" if is_out else "" for is_out in tokens.is_clipped)
    advantage = "as the loss took it, whitened" if tokens.is_whitened else "how much better than the critic expected"
    numeric: list[tuple[str, str, Sequence[float] | None, bool]] = [
        ("logprob", "under the policy, nats", tokens.logprob, True),
        ("ref", "logprob under the reference, nats", tokens.ref_logprob, True),
        ("KL", "logprob less ref, the estimate that is logged", tokens.kl, True),
        ("exact KL", "over the whole vocabulary, nats", [place.kl for place in positions or ()], True),
        ("reward", "KL penalty; at the last token the score too", tokens.reward, True),
        ("value", "what the critic expected", tokens.value, False),
        ("advantage", advantage, tokens.advantage, False),
        ("return", "what the critic learns", tokens.returns, False),
        ("ratio", "probability in the last epoch / at rollout", tokens.ratio, False),
        (
            "prefix score",
            "a hint: the score, did the response end here",
            reasons.prefix_scores if reasons else None,
            False,
        ),
        *((attribution.method, "share of the score", attribution.values, True) for attribution in attributions),
    ]
    there = [(name, what, list(values), has_sum) for name, what, values, has_sum in numeric if values]
    columns = [(name, what) for name, what, *_ in there] + ([("clipped", "out of the clip range")] if clipped else [])
    rows = [
        [number(values[place]) for _, _, values, _ in there] + ([clipped[place]] if clipped else [])
        for place in range(len(tokens.text))
    ]
    sums = [number(sum(values)) if has_sum else "" for _, _, values, has_sum in there] + ([""] if clipped else [])
    return columns, rows, sums


def _adds_up(explained: Explained) -> str:
    """What the sums of the table are in the log."""
    tokens = explained.tokens
    kl, rewards = sum(tokens.kl), sum(tokens.reward)
    expected = explained.shaped_score - explained.kl_coef * explained.ref_kl
    return (
        f"The sum of KL, {number(kl)}, is the KL of the response in the log, {number(explained.ref_kl)} nats; that of "
        f"the rewards, {number(rewards)}, is the score after penalties less {number(explained.kl_coef)} × KL, "
        f"{number(expected)}."
    )


def _deletion_chart(attributions: Sequence[Attribution], whole: float) -> Chart | None:
    checks = [(attribution, attribution.check) for attribution in attributions if attribution.check is not None]
    if not checks:
        return None
    attribution, check = max(checks, key=lambda pair: pair[1].drop)
    xs = [0.0, *map(float, check.num_deleted)]
    return line_chart(
        [
            Series(attribution.method, xs, [whole, *check.scores], "after"),
            Series("at random", xs, [whole, *check.random_scores], "muted"),
        ],
        title="Score without tokens",
        x_label="tokens left out",
        y_label="score",
        caption="Blue: without the tokens that the best method names first. Grey, dashed: without tokens at random. "
        "A method that finds what the reward pays for falls faster.",
    )


def _lens_chart(explained: Explained) -> Chart | None:
    lens = explained.lens
    if lens is None:
        return None
    layers = [float(layer) for layer in range(1, len(lens.kl) + 1)]
    return line_chart(
        [Series("KL", layers, list(lens.kl), "after")],
        title="Change by layer",
        x_label="layer",
        y_label="nats per token",
        caption="KL of policy to reference, as the head would read each layer. Where it rises, the change is made.",
    )


# ── while PPO runs ───────────────────────────────────────────────────────────────────────────────────────────────────

MOST_MOMENTS = 4


@dataclass(frozen=True, slots=True)
class PanelView:
    """What the report shows of the panel."""

    prompts: Sequence[tuple[str, Sequence[tuple[Explained, Sequence[Mark]]]]]
    """Prompt, and its responses over the iterations, each with its marks."""
    learnt: Sequence[PromptView]
    """What PPO has learnt from in the last of these iterations."""


def panels_of(observations: Sequence[Row]) -> PanelView | None:
    """The panel in `observations.jsonl`; None where there is none. Lines of another shape are left out."""
    rows: list[Explained] = []
    for line in observations:
        if line.get("kind") == "explanation":
            try:
                rows += [Explained.model_validate(row) for row in line.get("responses") or ()]
            except ValidationError:
                continue
    by_prompt: dict[str, list[Explained]] = {}
    for row in rows:
        if not row.is_of_rollout:
            by_prompt.setdefault(row.prompt, []).append(row)
    if not by_prompt:
        return None
    last = max(row.iteration or 0 for row in rows)
    return PanelView(
        [(prompt, [(one, marked_by_kl(one)) for one in _evenly(group)]) for prompt, group in by_prompt.items()],
        [view_of(row) for row in rows if row.is_of_rollout and row.iteration == last],
    )


def _evenly(rows: Sequence[Explained]) -> list[Explained]:
    if len(rows) <= MOST_MOMENTS:
        return list(rows)
    return [rows[round(place * (len(rows) - 1) / (MOST_MOMENTS - 1))] for place in range(MOST_MOMENTS)]


# ── in short ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _summary(explanation: Explanation) -> Iterator[str]:
    """What the numbers say, in sentences."""
    prompts = explanation.prompts
    if not prompts:
        return
    mean_kl = sum(explained.ref_kl for explained in prompts) / len(prompts)
    yield (
        f"On {len(prompts)} prompt{'s' if len(prompts) > 1 else ''} the policy's responses are "
        f"{number(mean_kl)} nats from the reference, in the mean, summed over a response."
    )
    places = [
        (position, explained.tokens.text[place])
        for explained in prompts
        for place, position in enumerate(explained.positions or ())
    ]
    if places:
        position, token = max(places, key=lambda pair: pair[0].kl)
        up = (
            f", where “{shown_token(position.up[0].text)}” went from {percent(position.up[0].before)} to "
            if position.up
            else ""
        )
        after = percent(position.up[0].after) if position.up else ""
        yield f"The largest single change is at “{shown_token(token)}”: {number(position.kl)} nats{up}{after}."
    reasons = [explained.reasons for explained in prompts if explained.reasons is not None]
    if reasons:
        num = sum(any(attribution.may_be_drawn for attribution in why.attributions) for why in reasons)
        others = "" if num == len(reasons) else " The others have no colours for the reward."
        yield (
            f"In {num} of {len(reasons)} responses the tokens that the reward pays for are more than chance.{others}"
        )


def shown_token(token: str) -> str:
    """A token as people can see it: blanks and line breaks by signs."""
    return token.replace("\n", "⏎").replace("\t", "⇥").strip(" ") or "␣"
