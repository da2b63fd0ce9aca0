"""How far an update goes: not at all, too far, or with gradients that explode."""

from rlhfkit.diagnosis.curves import WINDOW, Curves
from rlhfkit.diagnosis.finding import Evidence, Remedy, Rule, Settings, setting_of
from rlhfkit.diagnosis.limits import (
    APPROX_KL_LIMIT,
    APPROX_KL_SPIKE,
    CLIP_FRACTION_LIMIT,
    CLIP_FRACTION_LIMIT_FALLING,
    GRAD_NORM_FACTOR,
    GRAD_NORM_OVER_CLIPPING,
    STILL_APPROX_KL,
    STILL_REF_KL,
    STILL_ROWS,
)
from rlhfkit.diagnosis.rules.signal import no_advantages
from rlhfkit.diagnosis.rules.sources import HUANG, SCHULMAN, TOO_FAST, ZIEGLER
from rlhfkit.diagnosis.trends import (
    LEARNING_RATE,
    above,
    change,
    clip_silences_tokens,
    objective,
    other_rate,
    rise,
    shown,
    slower,
)

__all__ = ["APPROX_KL", "CLIP_FRACTION", "GRAD_NORM", "NOTHING_MOVES"]


def _approx_kl_high(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    column = curves["ppo/approx_kl"]
    if column and column.values[-1] > APPROX_KL_SPIKE:
        return (above(column, "ppo/approx_kl", column.values[-1], APPROX_KL_SPIKE, 1),)
    if len(column) < WINDOW or column.recent_median() <= APPROX_KL_LIMIT:
        return ()
    return (above(column, "ppo/approx_kl", column.recent_median(), APPROX_KL_LIMIT),)


def _clip_fraction_high(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    column = curves["ppo/clip_fraction"]
    if not clip_silences_tokens(ppo):
        return ()
    limit = CLIP_FRACTION_LIMIT_FALLING if ppo.get("clip_schedule") == "linear" else CLIP_FRACTION_LIMIT
    if len(column) < WINDOW or column.recent_median() <= limit:
        return ()
    return (above(column, "ppo/clip_fraction", column.recent_median(), limit),)


def _update_remedies(curves: Curves, ppo: Settings) -> tuple[Remedy, ...]:
    fewer = ppo.get("epochs", 1)
    epochs = (Remedy("ppo.epochs", str(fewer // 2), str(fewer)),) if fewer > 1 else ()
    target = () if ppo.get("target_kl") else (Remedy("ppo.target_kl", "0.05"),)
    return *slower(ppo, 10), *epochs, *target


def _nothing_moves(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    approx_kl, rate = curves["ppo/approx_kl"], curves["policy/learning_rate"]
    warmup = setting_of(ppo, "value", "warmup_iterations") or 0
    if len(approx_kl) < warmup + STILL_ROWS or approx_kl.values[warmup] > STILL_APPROX_KL or no_advantages(curves):
        return ()
    if max(approx_kl.values[warmup:]) > STILL_APPROX_KL:
        return ()
    if len(rate) > 1 and rate.values[-1] > rate.values[-2]:  # it still warms up
        return ()
    ref_kl = curves["ref_kl/sequence"]
    if ref_kl and max(map(abs, ref_kl.values)) > STILL_REF_KL:
        return ()
    highest = max(approx_kl.values[warmup:])
    words = f"was never above {shown(highest)} nats"
    evidence = Evidence("ppo/approx_kl", approx_kl.last_iterations(len(approx_kl)), words, {"highest": highest})
    return evidence, *((rise(curves),) if objective(curves)[1] else ())


def _faster(curves: Curves, ppo: Settings) -> tuple[Remedy, ...]:
    usual = "1e-05" if "rollout_episodes" in ppo else "3e-4"
    note = f"ten times as much, again and again until ppo/clip_fraction is above 0 (published: {usual})"
    return other_rate(ppo, LEARNING_RATE, 10, note=note)


def _grad_norm_exploding(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    found = []
    for name, path in (("policy/grad_norm", ("optim",)), ("value/grad_norm", ("value", "optim"))):
        column = curves[name]
        explained = curves["ppo/explained_variance"]
        foresees = name == "value/grad_norm" and explained and explained.recent_median() > 0
        if len(column) < 2 * WINDOW or foresees:
            continue  # returns that grow make the critic's gradient grow too
        clipped = setting_of(ppo, *path, "max_grad_norm") or 1.0
        limit = max(GRAD_NORM_FACTOR * column.median_at_start(), GRAD_NORM_OVER_CLIPPING * clipped)
        if column.recent_median() > limit:
            found.append(change(column, name))
    return tuple(found)


NOTHING_MOVES = Rule(
    "nothing_moves",
    "The policy does not move",
    "Advantages differ, and still no update changes what the policy says: the learning rate is too low.",
    f"{SCHULMAN}; {ZIEGLER}, where the approximate KL is about 0.0005",
    f"`ppo/approx_kl` never above {STILL_APPROX_KL:g} in {STILL_ROWS} iterations, and no KL, though advantages are not "
    "zero",
    _nothing_moves,
    _faster,
)
APPROX_KL = Rule(
    "approx_kl_high",
    "Updates are far too large",
    "One iteration moves the policy so far that the samples it learns from are no longer its own. The learning "
    "rate is too high, or there are too many epochs.",
    f"{SCHULMAN}, section 3; OpenAI Spinning Up, PPO: 0.01 or 0.05 is a usual target",
    f"`ppo/approx_kl` above {APPROX_KL_LIMIT:g} in the middle of five, or once above {APPROX_KL_SPIKE:g}",
    _approx_kl_high,
    _update_remedies,
)
CLIP_FRACTION = Rule(
    "clip_fraction_high",
    "Most of what PPO wants is clipped",
    "The ratio leaves the clip range at most tokens, so that most of the samples teach nothing.",
    f"{SCHULMAN}, section 3; in {HUANG}, the first update clips 7 %",
    f"`ppo/clip_fraction` above {CLIP_FRACTION_LIMIT:g} ({CLIP_FRACTION_LIMIT_FALLING:g} where the clip range falls to "
    "0), where PPO clips the ratio of tokens",
    _clip_fraction_high,
    _update_remedies,
    follows_from=frozenset({"approx_kl_high"}),
)
GRAD_NORM = Rule(
    "grad_norm_exploding",
    "Gradients explode",
    "The gradient's norm grows without end; clipping keeps its direction, which is one of noise by then.",
    "Pascanu et al. 2013, arXiv 1211.5063",
    f"gradient {GRAD_NORM_FACTOR:g} times that of the start, and {GRAD_NORM_OVER_CLIPPING:g} times what is clipped",
    _grad_norm_exploding,
    lambda curves, ppo: slower(ppo, 10),
    follows_from=TOO_FAST,
)
