"""An explanation in the lines of a terminal: the few numbers of each response that matter most."""

from collections.abc import Iterator

from rlhfkit.report.explanation import shown_token, signed, view_of
from rlhfkit.rundir.explanations import Explained, Explanation, Shift
from rlhfkit.wording import number, percent, score, shortened

__all__ = ["lines_of"]

NUM_TOKENS = 4


def lines_of(explanation: Explanation) -> Iterator[str]:
    """A few lines for each response."""
    for note in explanation.notes:
        yield f"note: {note}"
    for explained in explanation.prompts:
        yield from _lines_of(explained, explanation.reward_name)
        yield ""


def _lines_of(explained: Explained, reward_name: str) -> Iterator[str]:
    view = view_of(explained)
    yield f"prompt    {_plain(explained.prompt)}"
    yield f"response  {_plain(explained.response) or '(empty)'}"
    yield f"          {reward_name} {score(explained.score)} · KL {number(explained.ref_kl)} nats"
    for place, token, position in view.moved[:NUM_TOKENS]:
        up = f" · likelier: {_shift(position.up[0])}" if position.up else ""
        down = f" · less likely: {_shift(position.down[0])}" if position.down else ""
        yield f"changed   at {place}, “{shown_token(token)}”, by {number(position.kl)} nats{up}{down}"
    divergence = explained.divergence
    if divergence is not None and divergence.index is not None:
        sides = f": “{divergence.old.text}” → “{divergence.new.text}”" if divergence.old and divergence.new else ""
        yield f"likeliest responses part after {divergence.index} tokens{sides}"
    for method in view.methods:
        yield (
            f"reward by {method.name}: {method.verdict} (score falls by {method.drop}, at random by "
            f"{method.random_drop}, p {method.p_value}{'; adds up to ' + method.adds_up if method.adds_up else ''})"
        )
    if view.drawn is not None:
        strongest = sorted(zip(view.drawn.values, explained.tokens.text, strict=True), key=lambda pair: -abs(pair[0]))[
            :NUM_TOKENS
        ]
        yield "paid for  " + ", ".join(f"“{shown_token(token)}” {signed(value)}" for value, token in strongest)
    elif view.methods:
        yield "paid for  cannot be said: no method tells it from chance"


def _plain(text: str) -> str:
    return shortened(" ".join(text.split()), 160)


def _shift(change: Shift) -> str:
    return f"“{shown_token(change.text)}” {percent(change.before)} → {percent(change.after)}"
