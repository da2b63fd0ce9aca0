"""Length of the responses, and whether they end by themselves."""

from rlhfkit.diagnosis.curves import WINDOW, Column, Curves
from rlhfkit.diagnosis.finding import Evidence, Remedy, Rule, Settings
from rlhfkit.diagnosis.limits import (
    EOS_CAUTION_DROP,
    EOS_LOST_FACTOR,
    HAD_EOS,
    LEAST_GROWTH_TOKENS,
    LENGTH_FACTOR,
    LENGTH_ROWS,
    NO_EOS,
    SHORT_FACTOR,
)
from rlhfkit.diagnosis.rules.sources import TOO_FAST
from rlhfkit.diagnosis.trends import change, kl_remedies, rise, setting_elsewhere, shown

__all__ = ["COLLAPSE", "EOS_LOST", "RUNAWAY", "eos_remedies", "has_grown", "has_lost_eos", "has_shrunk"]


def has_grown(start: float, now: float) -> bool:
    """Whether responses have become far longer, in tokens."""
    return now > LENGTH_FACTOR * start and now - start >= LEAST_GROWTH_TOKENS


def has_shrunk(start: float, now: float) -> bool:
    """Whether hardly anything is left of the responses, in tokens."""
    return now < SHORT_FACTOR * start and start - now >= LEAST_GROWTH_TOKENS / 2


def has_lost_eos(start: float, now: float) -> bool:
    """Whether most responses that ended by themselves do so no more, as shares."""
    return start >= HAD_EOS and now < EOS_LOST_FACTOR * start and start - now > EOS_CAUTION_DROP


def _runaway(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    column = curves["response_tokens/mean"]
    if len(column) < 2 * WINDOW:
        return ()
    start, now = column.start(LENGTH_ROWS), column.recent()  # a reward for length works fast
    return (_length(column, start, now), rise(curves)) if has_grown(start, now) else ()


def _length(column: Column, start: float, now: float) -> Evidence:
    words = f"is {shown(now)}, at the start {shown(start)}"
    numbers = {"start": start, "recent": now}
    return Evidence("response_tokens/mean", column.last_iterations(), words, numbers)


def _collapse(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    column = curves["response_tokens/mean"]
    if len(column) < 2 * WINDOW:
        return ()
    start, now = column.start(LENGTH_ROWS), column.recent()
    return (_length(column, start, now), rise(curves)) if has_shrunk(start, now) else ()


def _eos_lost(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    column = curves["eos_rate"]
    if len(column) < WINDOW:
        return ()
    now = column.recent()
    # A recipe that asks for no EOS at all means responses of a fixed length.
    was_never = now < NO_EOS and (ppo.get("min_eos_rate") or 0.0) > 0
    return (change(column, "eos_rate"),) if has_lost_eos(column.start(), now) or was_never else ()


def _wanted_tokens(curves: Curves, ppo: Settings) -> str:
    """The length at the start, as the one that is wanted."""
    column = curves["response_tokens/mean"]
    return str(max(1, round(column.start(LENGTH_ROWS)))) if column else "16"


def _shorter(curves: Curves, ppo: Settings) -> tuple[Remedy, ...]:
    return _penalty_or_kl(curves, ppo, "length_penalty", least=0.05)


def _longer(curves: Curves, ppo: Settings) -> tuple[Remedy, ...]:
    return _penalty_or_kl(curves, ppo, "brevity_penalty", least=0.1)


def _penalty_or_kl(curves: Curves, ppo: Settings, name: str, *, least: float) -> tuple[Remedy, ...]:
    """Twice the penalty, from the length that is wanted on; or to stay nearer to the reference."""
    penalty = ppo.get(name) or 0.0
    also = ((f"ppo.{name}_tokens", _wanted_tokens(curves, ppo)),)
    note = "or the length that you want"
    more = Remedy(f"ppo.{name}", shown(max(least, 2 * penalty)), shown(penalty), also=also, note=note)
    return more, *kl_remedies(curves, ppo)[:1]


def eos_remedies(curves: Curves, ppo: Settings) -> tuple[Remedy, ...]:
    """Make an end worth something, and leave room for it."""
    score, penalty = ppo.get("missing_eos_score"), ppo.get("missing_eos_penalty") or 0.0
    if score is not None:  # which replaces the score, so that a penalty beside it is refused
        worth = Remedy("ppo.missing_eos_score", shown(min(score - 1.0, -1.0)), shown(score))
    else:
        worth = Remedy("ppo.missing_eos_penalty", shown(max(1.0, 2 * penalty)), shown(penalty))
    room = setting_elsewhere(ppo, "rollout", "max_response_tokens")
    longer = () if room is None else (Remedy("rollout.max_response_tokens", str(2 * room), str(room)),)
    cut = setting_elsewhere(ppo, "sft", "max_tokens") if "sft" in (setting_elsewhere(ppo, "stages") or ()) else None
    note = "more than the longest demonstration, so that its EOS is learnt"
    learnt = () if cut is None else (Remedy("sft.max_tokens", str(2 * cut), str(cut), note=note),)
    return worth, *longer, *learnt


RUNAWAY = Rule(
    "length_runaway",
    "Responses grow and grow",
    "Longer responses get more reward, whatever they say.",
    "Singhal et al. 2023, arXiv 2310.03716",
    f"responses {LENGTH_FACTOR:g} times as long as in the first {LENGTH_ROWS} iterations",
    _runaway,
    _shorter,
)
COLLAPSE = Rule(
    "length_collapse",
    "Responses shrink to nothing",
    "Short responses get more reward, or pay less KL, whatever they say.",
    "Singhal et al. 2023, arXiv 2310.03716",
    f"responses {SHORT_FACTOR:g} times as long",
    _collapse,
    _longer,
)
EOS_LOST = Rule(
    "eos_lost",
    "Responses do not end by themselves",
    "EOS is sampled less and less, or hardly ever: it was not learnt in fine-tuning, or the reward does not ask for "
    "it. What the reward judges then are responses that were cut off.",
    "huggingface/trl#3750, #5338; Huang et al. 2023, The N Implementation Details of RLHF with PPO",
    f"`eos_rate` below {EOS_LOST_FACTOR:.0%} of that at the start, or below {NO_EOS:.0%} (unless `ppo.min_eos_rate` is "
    "0)",
    _eos_lost,
    eos_remedies,
    follows_from=frozenset({"length_runaway", "kl_exploding", "kl_weightless"}) | TOO_FAST,
)
