"""The KL to the reference: below 0, far away, over its limit, or without weight."""

from rlhfkit.diagnosis.curves import Curves
from rlhfkit.diagnosis.finding import Evidence, Remedy, Rule, Settings, setting_of
from rlhfkit.diagnosis.limits import (
    FLAT_SCORES,
    KL_LIMIT,
    KL_LIMIT_PER_TOKEN,
    KL_PATIENCE,
    KL_TIMES_TARGET,
    LEAST_KL_LIMIT,
    NEGATIVE_KL,
    NEGATIVE_KL_ROWS,
    USUAL_KL_COEF,
    WEIGHTLESS_KL,
)
from rlhfkit.diagnosis.rules.sources import HUANG, TOO_FAST, ZIEGLER
from rlhfkit.diagnosis.trends import above, kl_remedies, rise, setting_elsewhere, shaped_scale, shown

__all__ = ["EXPLODING", "NEGATIVE", "OVER_LIMIT", "WEIGHTLESS", "is_weightless"]


def _negative(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    column = curves["ref_kl/sequence"]
    last = column.values[-NEGATIVE_KL_ROWS:]
    if len(last) < NEGATIVE_KL_ROWS or max(last) > NEGATIVE_KL:
        return ()
    words = f"was at most {shown(max(last))} nats {NEGATIVE_KL_ROWS} times in a row; a KL is never below 0"
    return (Evidence("ref_kl/sequence", column.last_iterations(NEGATIVE_KL_ROWS), words, {"highest": max(last)}),)


def _exploding(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    if not curves.has("ref_kl/sequence", "ref_kl/token", num=NEGATIVE_KL_ROWS):
        return ()
    column, num = curves["ref_kl/sequence"], NEGATIVE_KL_ROWS
    target = setting_of(ppo, "kl", "target")
    limit = KL_LIMIT if target is None else max(LEAST_KL_LIMIT, KL_TIMES_TARGET * target)
    recent = column.recent_median(num)
    if recent <= limit or curves["ref_kl/token"].recent_median(num) <= KL_LIMIT_PER_TOKEN * (target is None):
        return ()
    return above(column, "ref_kl/sequence", recent, limit, num), rise(curves)


def _over_limit(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    column, limit = curves["ref_kl/sequence"], ppo.get("max_ref_kl")
    if limit is None or len(column) < KL_PATIENCE or min(column.values[-KL_PATIENCE:]) <= limit:
        return ()
    words = f"was above ppo.max_ref_kl = {limit:g} {KL_PATIENCE} times in a row, at last {shown(column.values[-1])}"
    numbers = {"recent": column.values[-1], "limit": float(limit)}
    return (Evidence("ref_kl/sequence", column.last_iterations(KL_PATIENCE), words, numbers),)


def is_weightless(coef: float, score_std: float) -> bool:
    """Whether a KL penalty costs next to nothing beside scores of this deviation, even where runs have collapsed."""
    return coef > 0 and score_std > FLAT_SCORES and coef * KL_LIMIT < WEIGHTLESS_KL * score_std


def _weightless(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    deviation, coefs = curves["score/shaped_std"], curves["kl_coef"]
    coef = coefs.values[-1] if coefs else setting_of(ppo, "kl", "coef")
    if not deviation or coef is None or not is_weightless(coef, shaped_scale(curves, ppo)):
        return ()
    cost = coef * KL_LIMIT
    words = f"is {shown(coef)}, so that {KL_LIMIT:g} nats cost {shown(cost)}; scores have deviation"
    numbers = {"recent": coef, "cost": cost, "deviation": deviation.recent()}
    at = deviation.last_iterations(1)
    return (Evidence("kl_coef", at, f"{words} {shown(shaped_scale(curves, ppo))}", numbers),)


def _heavier(curves: Curves, ppo: Settings) -> tuple[Remedy, ...]:
    coef, size = setting_of(ppo, "kl", "coef") or 0.0, shaped_scale(curves, ppo)
    note = f"{USUAL_KL_COEF:g} for each unit of the scores' deviation"
    return (Remedy("ppo.kl.coef", shown(USUAL_KL_COEF * size), shown(coef), note=note),)


def _whole_sampling(curves: Curves, ppo: Settings) -> tuple[Remedy, ...]:
    top_p, top_k = (setting_elsewhere(ppo, "rollout", name) for name in ("top_p", "top_k"))
    note = "PPO must see what the policy itself would say"
    found = []
    if top_p is None or top_p < 1:
        found.append(Remedy("rollout.top_p", "1.0", None if top_p is None else shown(top_p), note=note))
    if top_k:
        found.append(Remedy("rollout.top_k", "0", str(top_k), note=note))
    dtype = setting_elsewhere(ppo, "model", "dtype")
    if dtype is not None and dtype != "float32":
        found.append(Remedy("model.dtype", '"float32"', f'"{dtype}"'))
    return tuple(found)


NEGATIVE = Rule(
    "kl_negative",
    "The KL to the reference is negative",
    "Responses are sampled from another distribution than the one that is trained: cut sampling, another "
    "temperature, dropout or padding. The reward then pays for being odd.",
    f"{ZIEGLER}; Huang et al. 2023, The N Implementation Details of RLHF with PPO; huggingface/trl#256, #925",
    f"`ref_kl/sequence` below {NEGATIVE_KL:g} {NEGATIVE_KL_ROWS} times in a row".replace("-", "−"),
    _negative,
    _whole_sampling,
    advice=("sample with the whole distribution, and see that policy and reference have the same temperature",),
)
WEIGHTLESS = Rule(
    "kl_weightless",
    "The KL penalty has no weight beside the reward",
    "Scores differ by so much more than the penalty can cost that it holds nothing back: the policy may go anywhere.",
    f"{HUANG}, with {USUAL_KL_COEF:g} for scores of deviation 1; huggingface/trl#560",
    f"`ppo.kl.coef` times {KL_LIMIT:g} nats is below {WEIGHTLESS_KL:.0%} of `score/shaped_std`",
    _weightless,
    _heavier,
    advice=("or bring the reward to deviation 1, as the stage reward_model does with its own",),
)
EXPLODING = Rule(
    "kl_exploding",
    "The policy has left its reference",
    "The leash is too weak for this reward: the policy earns more by odd responses, which the reward was never "
    "made for, than good language costs it.",
    f"{HUANG}, where collapsed seeds sit at 50 to 85 nats; Gao et al. 2023, arXiv 2210.10760",
    f"`ref_kl/sequence` above {KL_LIMIT:g} and {KL_LIMIT_PER_TOKEN:g} per token; with an adaptive leash, above "
    f"{KL_TIMES_TARGET:g} times its target",
    _exploding,
    kl_remedies,
    follows_from=TOO_FAST | {"kl_weightless"},
)
OVER_LIMIT = Rule(
    "kl_over_limit",
    "The KL to the reference is above its limit",
    "PPO stops here, as the recipe asks: the policy is further from its reference than it may be.",
    f"{HUANG}; Gao et al. 2023, arXiv 2210.10760",
    f"`ref_kl/sequence` above `ppo.max_ref_kl` {KL_PATIENCE} times in a row",
    _over_limit,
    kl_remedies,
    follows_from=TOO_FAST | {"kl_weightless", "kl_exploding"},
)
