"""Entropy: gone, or held up."""

from rlhfkit.diagnosis.curves import WINDOW, Curves
from rlhfkit.diagnosis.finding import Evidence, Remedy, Rule, Settings
from rlhfkit.diagnosis.limits import (
    DEAD_ENTROPY,
    HAD_RISEN,
    HIGH_ENTROPY,
    LOW_ENTROPY,
    UNMOVED_ENTROPY,
    UNMOVED_SHARE_DONE,
)
from rlhfkit.diagnosis.rules.sources import SCHULMAN, TOO_FAST
from rlhfkit.diagnosis.trends import change, has_risen, kl_remedies, objective, rise, share_done, shown, slower

__all__ = ["COLLAPSE", "RISING"]


def _collapse(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    column = curves["ppo/entropy"]
    if len(column) < 2 * WINDOW or column.start() <= 0 or not objective(curves)[1]:
        return ()
    share = column.recent() / column.start()
    # Of a density the entropy may be below 0, and a task of few actions may have one right answer.
    is_dead = curves.has("score/mean") and 0 <= share < DEAD_ENTROPY
    is_low = share < LOW_ENTROPY and not has_risen(curves, by=0.2)
    return (change(column, "ppo/entropy"), rise(curves)) if is_dead or is_low else ()


def _rising(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    column = curves["ppo/entropy"]
    if len(column) < 3 * WINDOW or column.start() <= 0 or not objective(curves)[1] or has_risen(curves, by=HAD_RISEN):
        return ()
    is_meant = ppo.get("entropy_target") is not None
    has_bonus = bool(ppo.get("entropy_coef")) and not is_meant and share_done(curves, ppo) >= UNMOVED_SHARE_DONE
    is_high = column.recent() > HIGH_ENTROPY * column.start()
    is_held_up = has_bonus and column.recent() > UNMOVED_ENTROPY * column.start()
    return (change(column, "ppo/entropy"), rise(curves)) if is_high or is_held_up else ()


def _less(curves: Curves, ppo: Settings) -> tuple[Remedy, ...]:
    coef, target = ppo.get("entropy_coef") or 0.0, ppo.get("entropy_target")
    if target is not None:
        return (Remedy("ppo.entropy_target", shown(target / 2), shown(target)),)
    return (Remedy("ppo.entropy_coef", shown(coef / 10), shown(coef)),) if coef else slower(ppo, 2)


def _more(curves: Curves, ppo: Settings) -> tuple[Remedy, ...]:
    coef = ppo.get("entropy_coef") or 0.0
    bonus = Remedy("ppo.entropy_coef", shown(max(2 * coef, 0.01)), shown(coef))
    return (*kl_remedies(curves, ppo), bonus) if "kl" in ppo else (bonus, *slower(ppo, 2))


COLLAPSE = Rule(
    "entropy_collapse",
    "The policy says only one thing",
    "The entropy has gone: every sample is the same, so there is nothing left to compare.",
    "Cui et al. 2025, arXiv 2505.22617",
    f"`ppo/entropy` {DEAD_ENTROPY:.0%} of that at the start, or {LOW_ENTROPY:.0%} without a rise of the score",
    _collapse,
    _more,
    follows_from=frozenset({"kl_exploding", "kl_weightless", "temperature_extreme"}) | TOO_FAST,
)
RISING = Rule(
    "entropy_rising",
    "The policy becomes random",
    "The entropy is held up, or grows, while the reward does not: the entropy bonus is worth more than the reward, "
    "or updates are noise.",
    f"{SCHULMAN}, equation 9; Andrychowicz et al. 2021, arXiv 2006.05990",
    f"`ppo/entropy` {HIGH_ENTROPY:g} times that at the start, or held up by a bonus, without a rise of the score",
    _rising,
    _less,
    follows_from=TOO_FAST | {"reward_of_prompt_alone", "zero_advantages"},
)
