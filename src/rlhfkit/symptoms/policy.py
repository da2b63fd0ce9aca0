"""Rules over the curves of PPO, on a language model and on a control task.

The limits are wide on purpose: a rule that speaks up in a healthy run is worse than none. Each stands with what healthy
runs were seen to do.
"""

from dataclasses import replace
from typing import Any

from rlhfkit.symptoms.curves import WINDOW, Column, Curves
from rlhfkit.symptoms.finding import Evidence, Remedy, Rule, Settings, setting_of

__all__ = ["CONTROL_RULES", "PPO_RULES"]

# Nats per sequence. Healthy: up to 25. The collapsed seeds of Huang et al. 2024 sit at 50 to 85.
KL_LIMIT, KL_LIMIT_PER_TOKEN = 50.0, 0.5
KL_TIMES_TARGET, LEAST_KL_LIMIT = 4.0, 10.0
# Below 0 by chance: 64 sequences at a KL of 0.1 have a mean with deviation 0.06.
NEGATIVE_KL, NEGATIVE_KL_ROWS = -0.1, 3
# Nats per action. Healthy: 0.0005 to 0.07, a single iteration 0.3.
APPROX_KL_LIMIT, APPROX_KL_SPIKE = 0.2, 1.0
# Healthy: up to 0.35; up to 0.55 where the clip range falls to 0.
CLIP_FRACTION_LIMIT, CLIP_FRACTION_LIMIT_FALLING = 0.5, 0.75
GRAD_NORM_FACTOR, GRAD_NORM_OVER_CLIPPING = 30.0, 10.0
VALUE_LOSS_FACTOR = 5.0
# Healthy: up to 12 iterations until the critic foresees anything; about 0 where all that it can know is the mean.
CRITIC_ROWS, CRITIC_WINDOW, CRITIC_SHARE, LEARNT_VALUE_LOSS = 25, 20, 0.95, 0.05
# Healthy: down to 0.014 of the start in a task that is solved, never low without a rise of the score.
DEAD_ENTROPY, LOW_ENTROPY = 0.01, 0.25
HIGH_ENTROPY, UNMOVED_ENTROPY = 1.5, 0.98
# Healthy: from 0.45 to 1.3 of the start.
LENGTH_ROWS, LENGTH_FACTOR, LEAST_GROWTH_TOKENS, SHORT_FACTOR = 2, 2.0, 8.0, 0.25
EOS_LOST_FACTOR, HAD_EOS, NO_EOS = 0.2, 0.2, 0.02
FLAT_SCORES, FLAT_SHARE, CLIPPED_SHARE = 1e-6, 0.02, 0.5
# Healthy and slow (Ziegler et al. 2019): approximate KL 0.0005.
STILL_APPROX_KL, STILL_REF_KL, STILL_ROWS = 2e-5, 0.02, 10
# The first returns are too low: short episodes end first.
FLAT_ROWS, FLAT_RETURN, FLAT_SCORE = 20, 0.25, 0.1

ZIEGLER = "Ziegler et al. 2019, arXiv 1909.08593"
SCHULMAN = "Schulman et al. 2017, arXiv 1707.06347"
HUANG = "Huang et al. 2024, arXiv 2403.17031"
DETAILS = "Huang et al. 2022, The 37 Implementation Details of PPO"
LEARNING_RATE = ("ppo", "optim", "learning_rate")
VALUE_LEARNING_RATE = ("ppo", "value", "optim", "learning_rate")


def _shown(number: float) -> str:
    return f"{number:.3g}"


# ── how the reward went ──────────────────────────────────────────────────────────────────────────────────────────────


def _objective(curves: Curves) -> tuple[str, Column]:
    """What is maximised: name and curve."""
    name = "score/mean" if curves.has("score/mean") else "episode_return/mean"
    return name, curves[name]


def _scale(curves: Curves) -> float:
    """A difference of the objective that means something: the deviation of scores, or the size of the return."""
    if curves.has("score/std"):
        return max(curves["score/std"].start(), FLAT_SCORES)
    return max(abs(_objective(curves)[1].start()), FLAT_SCORES)


def _has_risen(curves: Curves, by: float) -> bool:
    """Whether the objective is `by` of its scale above its start."""
    _, column = _objective(curves)
    return bool(column) and column.recent() > column.start() + by * _scale(curves)


def _rise(curves: Curves) -> Evidence:
    """The objective at its start and of late."""
    name, column = _objective(curves)
    start, now = column.start(), column.recent()
    return Evidence(
        name,
        (column.iterations[0], column.iterations[-1]),
        f"went from {_shown(start)} to {_shown(now)}",
        {"start": start, "recent": now},
    )


def _share_done(curves: Curves, ppo: Settings) -> float:
    """How much of what was planned is done."""
    if curves.has("env_steps"):
        return float(curves["env_steps"].values[-1] / (ppo.get("env_steps") or 1))
    return float((curves["iteration"].values[-1] + 1) / (ppo.get("iterations") or 1))


def _change(column: Column, metric: str, num: int = WINDOW) -> Evidence:
    start, now = column.start(num), column.recent(num)
    return Evidence(
        metric,
        column.last_iterations(num),
        f"is {_shown(now)}, at the start {_shown(start)}",
        {"start": start, "recent": now},
    )


def _above(column: Column, metric: str, value: float, limit: float, num: int = WINDOW) -> Evidence:
    return Evidence(
        metric,
        column.last_iterations(num),
        f"is {_shown(value)}, expected at most {_shown(limit)}",
        {"recent": value, "limit": limit},
    )


# ── KL to the reference ──────────────────────────────────────────────────────────────────────────────────────────────


def _kl_negative(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    column = curves["ref_kl/sequence"]
    last = column.values[-NEGATIVE_KL_ROWS:]
    if len(last) < NEGATIVE_KL_ROWS or max(last) > NEGATIVE_KL:
        return ()
    words = f"was at most {_shown(max(last))} nats {NEGATIVE_KL_ROWS} times in a row; a KL is never below 0"
    return (Evidence("ref_kl/sequence", column.last_iterations(NEGATIVE_KL_ROWS), words, {"highest": max(last)}),)


def _kl_exploding(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    if not curves.has("ref_kl/sequence", "ref_kl/token", num=NEGATIVE_KL_ROWS):
        return ()
    column, num = curves["ref_kl/sequence"], NEGATIVE_KL_ROWS
    target = setting_of(ppo, "kl", "target")
    limit = KL_LIMIT if target is None else max(LEAST_KL_LIMIT, KL_TIMES_TARGET * target)
    recent = column.recent_median(num)
    if recent <= limit or curves["ref_kl/token"].recent_median(num) <= KL_LIMIT_PER_TOKEN * (target is None):
        return ()
    return _above(column, "ref_kl/sequence", recent, limit, num), _rise(curves)


def _kl_remedies(ppo: Settings) -> tuple[Remedy, ...]:
    coef = setting_of(ppo, "kl", "coef") or 0.0
    return Remedy("ppo.kl.coef", _shown(max(2 * coef, 0.05)), _shown(coef)), *_slower(ppo, 2)


# ── how far an update goes ───────────────────────────────────────────────────────────────────────────────────────────


def _slower(ppo: Settings, factor: float) -> tuple[Remedy, ...]:
    return _other_rate(ppo, LEARNING_RATE, 1 / factor)


def _other_rate(ppo: Settings, path: tuple[str, ...], factor: float) -> tuple[Remedy, ...]:
    now = setting_of(ppo, *path[1:])
    return (Remedy(".".join(path), _shown(now * factor), _shown(now)),) if isinstance(now, float) else ()


def _approx_kl_high(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    column = curves["ppo/approx_kl"]
    if column and column.values[-1] > APPROX_KL_SPIKE:
        return (_above(column, "ppo/approx_kl", column.values[-1], APPROX_KL_SPIKE, 1),)
    if len(column) < WINDOW or column.recent_median() <= APPROX_KL_LIMIT:
        return ()
    return (_above(column, "ppo/approx_kl", column.recent_median(), APPROX_KL_LIMIT),)


def _clip_fraction_high(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    column = curves["ppo/clip_fraction"]
    limit = CLIP_FRACTION_LIMIT_FALLING if ppo.get("clip_schedule") == "linear" else CLIP_FRACTION_LIMIT
    if len(column) < WINDOW or column.recent_median() <= limit:
        return ()
    return (_above(column, "ppo/clip_fraction", column.recent_median(), limit),)


def _update_remedies(ppo: Settings) -> tuple[Remedy, ...]:
    fewer = ppo.get("epochs", 1)
    epochs = (Remedy("ppo.epochs", str(fewer // 2), str(fewer)),) if fewer > 1 else ()
    target = () if ppo.get("target_kl") else (Remedy("ppo.target_kl", "0.05"),)
    return *_slower(ppo, 10), *epochs, *target


def _nothing_moves(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    approx_kl, rate = curves["ppo/approx_kl"], curves["policy/learning_rate"]
    warmup = setting_of(ppo, "value", "warmup_iterations") or 0
    if len(approx_kl) < warmup + STILL_ROWS or approx_kl.values[warmup] > STILL_APPROX_KL:
        return ()
    if max(approx_kl.values[warmup:]) > STILL_APPROX_KL:
        return ()
    if len(rate) > 1 and rate.values[-1] > rate.values[-2]:  # it still warms up
        return ()
    ref_kl = curves["ref_kl/sequence"]
    if ref_kl and max(map(abs, ref_kl.values)) > STILL_REF_KL:
        return ()
    highest = max(approx_kl.values[warmup:])
    words = f"was never above {_shown(highest)} nats"
    evidence = Evidence("ppo/approx_kl", approx_kl.last_iterations(len(approx_kl)), words, {"highest": highest})
    return evidence, *((_rise(curves),) if _objective(curves)[1] else ())


def _faster(ppo: Settings) -> tuple[Remedy, ...]:
    now = setting_of(ppo, *LEARNING_RATE[1:])
    usual = "1e-05" if "rollout_episodes" in ppo else "3e-4"
    to = f"ten times as much, again and again until ppo/clip_fraction is above 0 (published: {usual})"
    return (Remedy(".".join(LEARNING_RATE), to, _shown(now) if isinstance(now, float) else now),)


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
            found.append(_change(column, name))
    return tuple(found)


# ── the critic ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _value_loss_growing(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    loss, explained = curves["ppo/value_loss"], curves["ppo/explained_variance"]
    if len(loss) < 2 * WINDOW or not explained:
        return ()
    # Returns that grow make the loss grow too; a critic that foresees them is well.
    if loss.recent_median() <= VALUE_LOSS_FACTOR * loss.median_at_start() or explained.recent_median() > 0:
        return ()
    return _change(loss, "ppo/value_loss"), _change(explained, "ppo/explained_variance")


def _critic_useless(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    explained, loss = curves["ppo/explained_variance"], curves["ppo/value_loss"]
    if ppo.get("estimator", "gae") != "gae" or len(explained) < CRITIC_ROWS or not loss:
        return ()
    last = explained.values[-CRITIC_WINDOW:]
    # Where returns hardly differ any more, as in a task that is solved, there is nothing left to foresee.
    if loss.recent() < LEARNT_VALUE_LOSS * loss.start():
        return ()
    share = sum(value <= 0 for value in last) / len(last)
    if share < CRITIC_SHARE:
        return ()
    median = explained.recent_median(len(last))
    words = f"was 0 or below in {share:.0%} of the iterations, {_shown(median)} in the middle"
    evidence = Evidence(
        "ppo/explained_variance", explained.last_iterations(len(last)), words, {"share": share, "median": median}
    )
    return (evidence,)


def _critic_remedies(ppo: Settings) -> tuple[Remedy, ...]:
    warmup = setting_of(ppo, "value", "warmup_iterations") or 0
    own_rate = _other_rate(ppo, VALUE_LEARNING_RATE, 10)
    shared = setting_of(ppo, "value", "network") == "shared"
    coef = setting_of(ppo, "value", "coef")
    more = (Remedy("ppo.value.coef", _shown(5 * coef), _shown(coef)),) if shared and coef else own_rate
    rest = (Remedy("ppo.value.warmup_iterations", str(max(5, 2 * warmup)), str(warmup)),)
    critic_free = (Remedy("ppo.estimator", '"rloo" with ppo.group_size = 4'),) if "estimator" in ppo else ()
    return *more, *rest, *critic_free


def _calmer_critic(ppo: Settings) -> tuple[Remedy, ...]:
    own = _other_rate(ppo, VALUE_LEARNING_RATE, 0.1)
    return own if own and setting_of(ppo, "value", "network") != "shared" else _slower(ppo, 10)


# ── entropy, length, EOS ─────────────────────────────────────────────────────────────────────────────────────────────


def _entropy_collapse(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    column = curves["ppo/entropy"]
    if len(column) < 2 * WINDOW or column.start() <= 0 or not _objective(curves)[1]:
        return ()
    share = column.recent() / column.start()
    # Of a density the entropy may be below 0, and a task of few actions may have one right answer.
    is_dead = curves.has("score/mean") and 0 <= share < DEAD_ENTROPY
    is_low = share < LOW_ENTROPY and not _has_risen(curves, by=0.2)
    return (_change(column, "ppo/entropy"), _rise(curves)) if is_dead or is_low else ()


def _entropy_rising(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    column = curves["ppo/entropy"]
    if len(column) < 3 * WINDOW or column.start() <= 0 or not _objective(curves)[1] or _has_risen(curves, by=0.5):
        return ()
    has_bonus = bool(ppo.get("entropy_coef")) and _share_done(curves, ppo) >= 0.3
    is_high = column.recent() > HIGH_ENTROPY * column.start()
    is_held_up = has_bonus and column.recent() > UNMOVED_ENTROPY * column.start()
    return (_change(column, "ppo/entropy"), _rise(curves)) if is_high or is_held_up else ()


def _less_entropy(ppo: Settings) -> tuple[Remedy, ...]:
    coef = ppo.get("entropy_coef") or 0.0
    return (Remedy("ppo.entropy_coef", _shown(coef / 10), _shown(coef)),) if coef else _slower(ppo, 2)


def _more_entropy(ppo: Settings) -> tuple[Remedy, ...]:
    coef = ppo.get("entropy_coef") or 0.0
    bonus = Remedy("ppo.entropy_coef", _shown(max(2 * coef, 0.01)), _shown(coef))
    return (*_kl_remedies(ppo), bonus) if "kl" in ppo else (bonus, *_slower(ppo, 2))


def _length_runaway(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    column = curves["response_tokens/mean"]
    if len(column) < 2 * WINDOW:
        return ()
    start, now = column.start(LENGTH_ROWS), column.recent()  # a reward for length works fast
    if now <= LENGTH_FACTOR * start or now - start < LEAST_GROWTH_TOKENS:
        return ()
    return _length(column, start, now), _rise(curves)


def _length(column: Column, start: float, now: float) -> Evidence:
    words = f"is {_shown(now)}, at the start {_shown(start)}"
    numbers = {"start": start, "recent": now}
    return Evidence("response_tokens/mean", column.last_iterations(), words, numbers)


def _length_collapse(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    column = curves["response_tokens/mean"]
    if len(column) < 2 * WINDOW:
        return ()
    start, now = column.start(LENGTH_ROWS), column.recent()
    if now >= SHORT_FACTOR * start or start - now < LEAST_GROWTH_TOKENS / 2:
        return ()
    return _length(column, start, now), _rise(curves)


def _eos_lost(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    column = curves["eos_rate"]
    if len(column) < WINDOW:
        return ()
    start, now = column.start(), column.recent()
    was_lost = start >= HAD_EOS and now < EOS_LOST_FACTOR * start
    # A recipe that asks for no EOS at all means responses of a fixed length.
    was_never = now < NO_EOS and (ppo.get("min_eos_rate") or 0.0) > 0
    return (_change(column, "eos_rate"),) if was_lost or was_never else ()


def _length_remedies(ppo: Settings) -> tuple[Remedy, ...]:
    tokens = ppo.get("length_penalty_tokens") or 0
    penalty = Remedy(
        "ppo.length_penalty", "0.05 with ppo.length_penalty_tokens at the length that you want", _now(ppo, tokens)
    )
    return (penalty, *_kl_remedies(ppo)[:1])


def _now(ppo: Settings, tokens: Any) -> str:
    return f"{_shown(ppo.get('length_penalty') or 0.0)} from {tokens} tokens on"


def _brevity_remedies(ppo: Settings) -> tuple[Remedy, ...]:
    now = _shown(ppo.get("brevity_penalty") or 0.0)
    words = "0.1 with ppo.brevity_penalty_tokens at the length that you want"
    return Remedy("ppo.brevity_penalty", words, now), *_kl_remedies(ppo)[:1]


def _eos_remedies(ppo: Settings) -> tuple[Remedy, ...]:
    now = ppo.get("missing_eos_penalty") or 0.0
    return (
        Remedy("ppo.missing_eos_penalty", _shown(max(1.0, 2 * now)), _shown(now)),
        Remedy("rollout.max_response_tokens", "the length of the longest good response"),
        Remedy("sft.max_tokens", "more than the longest demonstration, so that its EOS is learnt"),
    )


# ── the reward ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _reward_saturated(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    deviation, clipped = curves["score/std"], curves["score/clipped_share"]
    if len(deviation) < WINDOW:
        return ()
    if clipped and clipped.recent() > CLIPPED_SHARE:
        return (_above(clipped, "score/clipped_share", clipped.recent(), CLIPPED_SHARE),)
    if deviation.recent() > max(FLAT_SCORES, FLAT_SHARE * deviation.start()):
        return ()
    return _change(deviation, "score/std"), _rise(curves)


def _saturation_remedies(ppo: Settings) -> tuple[Remedy, ...]:
    clip = ppo.get("clip_score")
    if clip:
        return (Remedy("ppo.clip_score", _shown(3 * clip), _shown(clip)),)
    return (
        Remedy("reward", "one that still tells good responses from better ones, as the raw score of a model"),
        Remedy("ppo.iterations", "as many as until here, if the highest score is all that you want"),
    )


def _reward_falling(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    name, column = _objective(curves)
    is_text = name == "score/mean"
    if len(column) < 3 * WINDOW or (not is_text and _share_done(curves, ppo) < 0.5):
        return ()
    smoothed = column.smoothed()
    start, now, peak = smoothed[0], smoothed[-1], max(smoothed)
    scale = _scale(curves)
    is_below_start = now < start - (0.5 if is_text else 0.2) * scale
    is_lost = peak - start > 0.5 * scale and now < start + 0.3 * (peak - start)
    if not (is_below_start or is_lost):
        return ()
    at = column.iterations[smoothed.index(peak) + WINDOW - 1]
    words = f"is {_shown(now)}; it began at {_shown(start)} and was {_shown(peak)} at iteration {at}"
    numbers = {"start": start, "recent": now, "peak": peak, "peak_iteration": float(at)}
    return (Evidence(name, column.last_iterations(), words, numbers),)


def _reward_flat(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    name, column = _objective(curves)
    is_text = name == "score/mean"
    if len(column) < FLAT_ROWS or _share_done(curves, ppo) < (0.9 if is_text else 0.5):
        return ()
    num = max(WINDOW, len(column) // 10)
    start, now = column.start(num), column.recent(num)
    if now > start + (FLAT_SCORE if is_text else FLAT_RETURN) * _scale(curves):
        return ()
    return (_rise(curves),)


def _flat_remedies(ppo: Settings) -> tuple[Remedy, ...]:
    bonus = ppo.get("entropy_coef") or 0.0
    if "env_steps" in ppo:
        return *_other_rate(ppo, LEARNING_RATE, 3), Remedy("ppo.entropy_coef", _shown(max(bonus, 0.01)), _shown(bonus))
    return *_other_rate(ppo, LEARNING_RATE, 3), *_looser(ppo)


def _looser(ppo: Settings) -> tuple[Remedy, ...]:
    coef = setting_of(ppo, "kl", "coef")
    return (Remedy("ppo.kl.coef", _shown(coef / 2), _shown(coef)),) if coef else ()


def _stay_near(ppo: Settings) -> tuple[Remedy, ...]:
    return _kl_remedies(ppo) if "kl" in ppo else _slower(ppo, 3)


def _sampler_remedies(ppo: Settings) -> tuple[Remedy, ...]:
    return (
        Remedy("rollout.top_p", "1, and rollout.top_k to 0: PPO must see what the policy itself would say"),
        Remedy("model.dtype", '"float32"'),
    )


# ── the list, most telling first ─────────────────────────────────────────────────────────────────────────────────────

TOO_FAST = frozenset({"approx_kl_high", "clip_fraction_high"})

PPO_RULES: tuple[Rule, ...] = (
    Rule(
        "kl_negative",
        "The KL to the reference is negative",
        "Responses are sampled from another distribution than the one that is trained: cut sampling, another "
        "temperature, dropout or padding. The reward then pays for being odd.",
        f"{ZIEGLER}; Huang et al. 2023, The N Implementation Details of RLHF with PPO; huggingface/trl#256, #925",
        _kl_negative,
        _sampler_remedies,
    ),
    Rule(
        "nothing_moves",
        "The policy does not move",
        "The learning rate is too low: no update changes what the policy says, so nothing can be learnt.",
        f"{SCHULMAN}; {ZIEGLER}, where the approximate KL is about 0.0005",
        _nothing_moves,
        _faster,
    ),
    Rule(
        "approx_kl_high",
        "Updates are far too large",
        "One iteration moves the policy so far that the samples it learns from are no longer its own. The learning "
        "rate is too high, or there are too many epochs.",
        f"{SCHULMAN}, section 3; OpenAI Spinning Up, PPO: 0.01 or 0.05 is a usual target",
        _approx_kl_high,
        _update_remedies,
    ),
    Rule(
        "clip_fraction_high",
        "Most of what PPO wants is clipped",
        "The ratio leaves the clip range at most tokens, so that most of the samples teach nothing.",
        f"{SCHULMAN}, section 3; in {HUANG}, the first update clips 7 %",
        _clip_fraction_high,
        _update_remedies,
        follows_from=frozenset({"approx_kl_high"}),
    ),
    Rule(
        "grad_norm_exploding",
        "Gradients explode",
        "The gradient's norm grows without end; clipping keeps its direction, which is one of noise by then.",
        "Pascanu et al. 2013, arXiv 1211.5063",
        _grad_norm_exploding,
        lambda ppo: _slower(ppo, 10),
        follows_from=TOO_FAST,
    ),
    Rule(
        "value_loss_growing",
        "The critic diverges",
        "The value loss grows and the critic foresees nothing: its learning rate is too high, or its target moves "
        "with its own error.",
        f"{DETAILS}, detail 9; Engstrom et al. 2020, arXiv 2005.12729",
        _value_loss_growing,
        _calmer_critic,
        follows_from=TOO_FAST,
    ),
    Rule(
        "critic_useless",
        "The critic foresees nothing",
        "Its values explain none of the differences between returns (explained variance 0 or below), so it only adds "
        "noise to the advantages.",
        "VC-PPO, Yuan et al. 2025, arXiv 2503.01491; NVIDIA-NeMo/RL#3821",
        _critic_useless,
        _critic_remedies,
        follows_from=frozenset({"value_loss_growing"}),
    ),
    Rule(
        "kl_exploding",
        "The policy has left its reference",
        "The leash is too weak for this reward: the policy earns more by odd responses, which the reward was never "
        "made for, than good language costs it.",
        f"{HUANG}, where collapsed seeds sit at 50 to 85 nats; Gao et al. 2023, arXiv 2210.10760",
        _kl_exploding,
        _kl_remedies,
        follows_from=TOO_FAST,
    ),
    Rule(
        "length_runaway",
        "Responses grow and grow",
        "Longer responses get more reward, whatever they say.",
        "Singhal et al. 2023, arXiv 2310.03716",
        _length_runaway,
        _length_remedies,
    ),
    Rule(
        "length_collapse",
        "Responses shrink to nothing",
        "Short responses get more reward, or pay less KL, whatever they say.",
        "Singhal et al. 2023, arXiv 2310.03716",
        _length_collapse,
        _brevity_remedies,
    ),
    Rule(
        "eos_lost",
        "Responses do not end by themselves",
        "EOS is hardly ever sampled: it was not learnt in fine-tuning, or the reward does not ask for it. Torsos are "
        "what the reward judges then.",
        "huggingface/trl#3750, #5338; Huang et al. 2023, The N Implementation Details of RLHF with PPO",
        _eos_lost,
        _eos_remedies,
        follows_from=frozenset({"length_runaway", "kl_exploding"}) | TOO_FAST,
    ),
    Rule(
        "entropy_collapse",
        "The policy says only one thing",
        "The entropy has gone: every sample is the same, so there is nothing left to compare.",
        "Cui et al. 2025, arXiv 2505.22617",
        _entropy_collapse,
        _more_entropy,
        follows_from=frozenset({"kl_exploding"}) | TOO_FAST,
    ),
    Rule(
        "entropy_rising",
        "The policy becomes random",
        "The entropy is held up, or grows, while the reward does not: the entropy bonus is worth more than the reward, "
        "or updates are noise.",
        f"{SCHULMAN}, equation 9; Andrychowicz et al. 2021, arXiv 2006.05990",
        _entropy_rising,
        _less_entropy,
        follows_from=TOO_FAST,
    ),
    Rule(
        "reward_saturated",
        "All responses get the same score",
        "The reward no longer tells responses apart: it is at its bound, clipped or constant. Without differences "
        "there is nothing to learn, and only the KL penalty pulls.",
        "Gao et al. 2023, arXiv 2210.10760; DAPO, Yu et al. 2025, arXiv 2503.14476, section 3.2",
        _reward_saturated,
        _saturation_remedies,
        follows_from=frozenset({"entropy_collapse", "length_collapse", "length_runaway"}) | TOO_FAST,
    ),
    Rule(
        "reward_falling",
        "The reward falls",
        "Training made the policy worse, or lost again what it had won.",
        f"{HUANG}, where 2 of 4 seeds with 1 billion weights collapse",
        _reward_falling,
        _stay_near,
        follows_from=frozenset(
            {"kl_negative", "kl_exploding", "value_loss_growing", "critic_useless", "entropy_rising"}
        )
        | TOO_FAST,
    ),
    Rule(
        "reward_flat",
        "The reward does not rise",
        "After nearly all iterations the policy earns no more than at the start.",
        "huggingface/trl#193; microsoft/DeepSpeedExamples#489",
        _reward_flat,
        _flat_remedies,
        follows_from=frozenset(
            {"nothing_moves", "reward_saturated", "reward_falling", "critic_useless", "entropy_rising"}
        )
        | TOO_FAST,
    ),
)

_OF_CONTROL: tuple[str, ...] = (
    "nothing_moves",
    "approx_kl_high",
    "clip_fraction_high",
    "grad_norm_exploding",
    "value_loss_growing",
    "critic_useless",
    "entropy_collapse",
    "entropy_rising",
    "reward_falling",
    "reward_flat",
)

_SOURCES_OF_CONTROL = {
    "reward_falling": f"{DETAILS}; Andrychowicz et al. 2021, arXiv 2006.05990",
    "reward_flat": f"{DETAILS}; Andrychowicz et al. 2021, arXiv 2006.05990",
    "critic_useless": f"{DETAILS}; Andrychowicz et al. 2021, arXiv 2006.05990",
}

CONTROL_RULES: tuple[Rule, ...] = tuple(
    replace(rule, source=_SOURCES_OF_CONTROL.get(rule.name, rule.source))
    for rule in PPO_RULES
    if rule.name in _OF_CONTROL
)
