"""The reward: without differences, falling, or flat."""

from rlhfkit.diagnosis.curves import WINDOW, Curves
from rlhfkit.diagnosis.finding import Evidence, Remedy, Rule, Settings, setting_of
from rlhfkit.diagnosis.limits import (
    CLIPPED_SHARE,
    FALLEN_RETURN,
    FALLEN_SCORE,
    FLAT_RETURN,
    FLAT_ROWS,
    FLAT_SCORE,
    FLAT_SCORES,
    FLAT_SHARE,
    FLAT_SHARE_DONE,
    HAD_RISEN,
    HALF_DONE,
    LEFT_OF_RISE,
)
from rlhfkit.diagnosis.rules.sources import HUANG, TOO_FAST
from rlhfkit.diagnosis.trends import (
    LEARNING_RATE,
    above,
    change,
    kl_remedies,
    objective,
    other_rate,
    rise,
    scale,
    share_done,
    shown,
    slower,
)

__all__ = ["FALLING", "FLAT", "SATURATED"]


def _saturated(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    deviation, clipped = curves["score/std"], curves["score/clipped_share"]
    if len(deviation) < WINDOW:
        return ()
    if clipped and clipped.recent() > CLIPPED_SHARE:
        return (above(clipped, "score/clipped_share", clipped.recent(), CLIPPED_SHARE),)
    if deviation.recent() > max(FLAT_SCORES, FLAT_SHARE * deviation.start()):
        return ()
    return change(deviation, "score/std"), rise(curves)


def _saturation_remedies(curves: Curves, ppo: Settings) -> tuple[Remedy, ...]:
    clip = ppo.get("clip_score")
    if clip:
        return (Remedy("ppo.clip_score", shown(3 * clip), shown(clip)),)
    planned, done = ppo.get("iterations"), len(curves["score/std"])
    if not planned or done < 2 or not _rose(curves):
        return ()
    note = "if the highest score is all that you want"
    return (Remedy("ppo.iterations", str(done - 1), str(planned), note=note),)


def _rose(curves: Curves) -> bool:
    column = curves["score/mean"]
    return bool(column) and column.recent() > column.start() + FLAT_SCORES


def _falling(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    name, column = objective(curves)
    is_text = name == "score/mean"
    if len(column) < 3 * WINDOW or (not is_text and share_done(curves, ppo) < HALF_DONE):
        return ()
    smoothed = column.smoothed()
    start, now, peak = smoothed[0], smoothed[-1], max(smoothed)
    is_below_start = now < start - (FALLEN_SCORE if is_text else FALLEN_RETURN) * scale(curves)
    is_lost = peak - start > HAD_RISEN * scale(curves) and now < start + LEFT_OF_RISE * (peak - start)
    if not (is_below_start or is_lost):
        return ()
    at = column.iterations[smoothed.index(peak) + WINDOW - 1]
    words = f"is {shown(now)}; it began at {shown(start)} and was {shown(peak)} at iteration {at}"
    numbers = {"start": start, "recent": now, "peak": peak, "peak_iteration": float(at)}
    return (Evidence(name, column.last_iterations(), words, numbers),)


def _flat(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    name, column = objective(curves)
    is_text = name == "score/mean"
    if len(column) < FLAT_ROWS or share_done(curves, ppo) < (FLAT_SHARE_DONE if is_text else HALF_DONE):
        return ()
    num = max(WINDOW, len(column) // 10)
    start, now = column.start(num), column.recent(num)
    if now > start + (FLAT_SCORE if is_text else FLAT_RETURN) * scale(curves):
        return ()
    return (rise(curves),)


def _flat_remedies(curves: Curves, ppo: Settings) -> tuple[Remedy, ...]:
    bonus = ppo.get("entropy_coef") or 0.0
    faster = other_rate(ppo, LEARNING_RATE, 3)
    if "env_steps" in ppo:
        return *faster, Remedy("ppo.entropy_coef", shown(max(2 * bonus, 0.01)), shown(bonus))
    coef = setting_of(ppo, "kl", "coef")
    looser = (Remedy("ppo.kl.coef", shown(coef / 2), shown(coef)),) if coef else ()
    return *faster, *looser


def _stay_near(curves: Curves, ppo: Settings) -> tuple[Remedy, ...]:
    return kl_remedies(curves, ppo) if "kl" in ppo else slower(ppo, 3)


NOTHING_TO_LEARN = frozenset({"reward_of_prompt_alone", "responses_identical", "zero_advantages", "nothing_moves"})

SATURATED = Rule(
    "reward_saturated",
    "All responses get the same score",
    "The reward no longer tells responses apart: it is at its bound, clipped or constant. Without differences "
    "there is nothing to learn, and only the KL penalty pulls.",
    "Gao et al. 2023, arXiv 2210.10760; DAPO, Yu et al. 2025, arXiv 2503.14476, section 3.2",
    "all responses get the same score, or `ppo.clip_score` cuts half of them",
    _saturated,
    _saturation_remedies,
    advice=("use a reward that still tells good responses from better ones, as the raw score of a model",),
    follows_from=frozenset({"entropy_collapse", "length_collapse", "length_runaway", "responses_identical"}) | TOO_FAST,
)
FALLING = Rule(
    "reward_falling",
    "The reward falls",
    "Training made the policy worse, or lost again what it had won.",
    f"{HUANG}, where 2 of 4 seeds with 1 billion weights collapse",
    "the score falls below its start, or loses most of what it had won",
    _falling,
    _stay_near,
    follows_from=frozenset(
        {"kl_negative", "kl_exploding", "kl_weightless", "value_loss_growing", "critic_useless", "entropy_rising"}
    )
    | NOTHING_TO_LEARN
    | TOO_FAST,
)
FLAT = Rule(
    "reward_flat",
    "The reward does not rise",
    "After nearly all iterations the policy earns no more than at the start.",
    "huggingface/trl#193; microsoft/DeepSpeedExamples#489",
    "the score is where it began after nine tenths of the iterations",
    _flat,
    _flat_remedies,
    follows_from=frozenset({"reward_saturated", "reward_falling", "critic_useless", "entropy_rising"})
    | {"temperature_extreme", "kl_negative"}
    | NOTHING_TO_LEARN
    | TOO_FAST,
)
