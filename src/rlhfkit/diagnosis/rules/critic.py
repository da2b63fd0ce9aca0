"""Whether the critic is of any use."""

from rlhfkit.diagnosis.curves import WINDOW, Curves
from rlhfkit.diagnosis.finding import Evidence, Remedy, Rule, Settings, setting_of
from rlhfkit.diagnosis.limits import (
    CRITIC_ROWS,
    CRITIC_SHARE,
    CRITIC_WINDOW,
    LEARNT_VALUE_LOSS,
    VALUE_LOSS_FACTOR,
)
from rlhfkit.diagnosis.rules.sources import DETAILS, TOO_FAST
from rlhfkit.diagnosis.trends import change, other_rate, shown, slower

__all__ = ["GROWING", "USELESS"]

VALUE_LEARNING_RATE = ("ppo", "value", "optim", "learning_rate")
GROUP_SIZES = (4, 2, 8, 3, 5, 7)


def _growing(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    loss, explained = curves["ppo/value_loss"], curves["ppo/explained_variance"]
    if len(loss) < 2 * WINDOW or not explained:
        return ()
    # Returns that grow make the loss grow too; a critic that foresees them is well.
    if loss.recent_median() <= VALUE_LOSS_FACTOR * loss.median_at_start() or explained.recent_median() > 0:
        return ()
    return change(loss, "ppo/value_loss"), change(explained, "ppo/explained_variance")


def _useless(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
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
    words = f"was 0 or below in {share:.0%} of the iterations, {shown(median)} in the middle"
    evidence = Evidence(
        "ppo/explained_variance", explained.last_iterations(len(last)), words, {"share": share, "median": median}
    )
    return (evidence,)


def _remedies(curves: Curves, ppo: Settings) -> tuple[Remedy, ...]:
    warmup = setting_of(ppo, "value", "warmup_iterations") or 0
    shared = setting_of(ppo, "value", "network") == "shared"
    coef = setting_of(ppo, "value", "coef")
    more: tuple[Remedy, ...]
    if shared:
        more = (Remedy("ppo.value.coef", shown(5 * coef), shown(coef)),) if coef else ()
    else:
        more = other_rate(ppo, VALUE_LEARNING_RATE, 10)
    rest = (Remedy("ppo.value.warmup_iterations", str(max(5, 2 * warmup)), str(warmup)),)
    return *more, *rest, *_without_critic(ppo)


def _without_critic(ppo: Settings) -> tuple[Remedy, ...]:
    """RLOO, with a group that divides the rollout; a control task has none."""
    if "estimator" not in ppo:
        return ()
    size = ppo.get("rollout_episodes") or 64
    group = next((size_of for size_of in GROUP_SIZES if size % size_of == 0), None)
    if group is None:
        return ()
    name = "preset" if ppo.get("preset") else "estimator"  # a preset refuses another estimator beside it
    return (Remedy(f"ppo.{name}", '"rloo"', f'"{ppo[name]}"', also=(("ppo.group_size", str(group)),)),)


def _calmer(curves: Curves, ppo: Settings) -> tuple[Remedy, ...]:
    own = other_rate(ppo, VALUE_LEARNING_RATE, 0.1)
    return own if own and setting_of(ppo, "value", "network") != "shared" else slower(ppo, 10)


GROWING = Rule(
    "value_loss_growing",
    "The critic diverges",
    "The value loss grows and the critic foresees nothing: its learning rate is too high, or its target moves "
    "with its own error.",
    f"{DETAILS}, detail 9; Engstrom et al. 2020, arXiv 2005.12729",
    f"`ppo/value_loss` {VALUE_LOSS_FACTOR:g} times that of the start, and nothing foreseen",
    _growing,
    _calmer,
    follows_from=TOO_FAST,
)
USELESS = Rule(
    "critic_useless",
    "The critic foresees nothing",
    "Its values explain none of the differences between returns (explained variance 0 or below), so it only adds "
    "noise to the advantages.",
    "VC-PPO, Yuan et al. 2025, arXiv 2503.01491; NVIDIA-NeMo/RL#3821",
    f"`ppo/explained_variance` 0 or below in {CRITIC_SHARE * CRITIC_WINDOW:.0f} of {CRITIC_WINDOW} iterations, from "
    f"the {CRITIC_ROWS}th on",
    _useless,
    _remedies,
    follows_from=frozenset({"value_loss_growing"}),
)
