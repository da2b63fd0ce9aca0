"""What several rules ask of the curves and of the recipe, and the words for it."""

from typing import Any

from rlhfkit.diagnosis.curves import WINDOW, Column, Curves
from rlhfkit.diagnosis.finding import Evidence, Remedy, Settings, setting_of
from rlhfkit.diagnosis.limits import FLAT_SCORES, KL_LIMIT, LIGHT_KL, USUAL_KL_COEF

__all__ = [
    "above",
    "change",
    "clip_silences_tokens",
    "has_risen",
    "kl_remedies",
    "objective",
    "other_rate",
    "rise",
    "scale",
    "setting_elsewhere",
    "shaped_scale",
    "share_done",
    "shown",
    "slower",
]

LEARNING_RATE = ("ppo", "optim", "learning_rate")


def shown(number: float) -> str:
    """Three digits."""
    return f"{number:.3g}"


def objective(curves: Curves) -> tuple[str, Column]:
    """What is maximised: name and curve."""
    name = "score/mean" if curves.has("score/mean") else "episode_return/mean"
    return name, curves[name]


def scale(curves: Curves) -> float:
    """A difference of the objective that means something: the deviation of scores, or the size of the return."""
    if curves.has("score/std"):
        return max(curves["score/std"].start(), FLAT_SCORES)
    return max(abs(objective(curves)[1].start()), FLAT_SCORES)


def has_risen(curves: Curves, by: float) -> bool:
    """Whether the objective is `by` of its scale above its start."""
    _, column = objective(curves)
    return bool(column) and column.recent() > column.start() + by * scale(curves)


def rise(curves: Curves) -> Evidence:
    """The objective at its start and of late."""
    name, column = objective(curves)
    start, now = column.start(), column.recent()
    return Evidence(
        name,
        (column.iterations[0], column.iterations[-1]),
        f"went from {shown(start)} to {shown(now)}",
        {"start": start, "recent": now},
    )


def share_done(curves: Curves, ppo: Settings) -> float:
    """How much of what was planned is done."""
    if curves.has("env_steps"):
        return float(curves["env_steps"].values[-1] / (ppo.get("env_steps") or 1))
    return float((curves["iteration"].values[-1] + 1) / (ppo.get("iterations") or 1))


def change(column: Column, metric: str, num: int = WINDOW) -> Evidence:
    """A metric of late, beside its start."""
    start, now = column.start(num), column.recent(num)
    return Evidence(
        metric,
        column.last_iterations(num),
        f"is {shown(now)}, at the start {shown(start)}",
        {"start": start, "recent": now},
    )


def above(column: Column, metric: str, value: float, limit: float, num: int = WINDOW) -> Evidence:
    """A metric of late, beside its limit."""
    return Evidence(
        metric,
        column.last_iterations(num),
        f"is {shown(value)}, expected at most {shown(limit)}",
        {"recent": value, "limit": limit},
    )


def setting_elsewhere(settings: Settings, *path: str) -> Any:
    """A setting outside the training's own section; None where the whole recipe is not known."""
    return setting_of(settings, "recipe", *path)


def other_rate(ppo: Settings, path: tuple[str, ...], factor: float, note: str = "") -> tuple[Remedy, ...]:
    """A learning rate times `factor`; nothing where there is none, or it is still "auto"."""
    now = setting_of(ppo, *path[1:])
    return (Remedy(".".join(path), shown(now * factor), shown(now), note=note),) if isinstance(now, float) else ()


def slower(ppo: Settings, factor: float) -> tuple[Remedy, ...]:
    """The policy's learning rate divided by `factor`."""
    return other_rate(ppo, LEARNING_RATE, 1 / factor)


def kl_remedies(curves: Curves, ppo: Settings) -> tuple[Remedy, ...]:
    """A stronger KL penalty, on the scale of the scores, and a lower rate."""
    coef = setting_of(ppo, "kl", "coef") or 0.0
    size = shaped_scale(curves, ppo)
    # What is usual where scores have deviation 1 holds nothing back where they have 10,000.
    least = USUAL_KL_COEF if LIGHT_KL * size <= USUAL_KL_COEF * KL_LIMIT else USUAL_KL_COEF * size
    target = setting_of(ppo, "kl", "target")
    nearer = () if target is None else (Remedy("ppo.kl.target", shown(target / 2), shown(target)),)
    return Remedy("ppo.kl.coef", shown(max(2 * coef, least)), shown(coef)), *nearer, *slower(ppo, 2)


def clip_silences_tokens(ppo: Settings) -> bool:
    """Whether tokens outside the clip range lose their gradient one by one.

    CISPO's keep it. GSPO clips whole responses, and far more of them than PPO does tokens (Zheng et al. 2025).
    """
    return bool(ppo.get("ratio", "token") == "token" and ppo.get("objective", "clip") == "clip")


def _kl_meets_deviations(ppo: Settings) -> bool:
    """As `PpoConfig.kl_meets_deviations`, of a run's table, which may be older than a setting."""
    estimator = ppo.get("estimator", "gae")
    if estimator == "grpo":
        return bool(ppo.get("normalize_std", True))
    return bool(setting_of(ppo, "kl", "place") == "loss" and estimator != "rloo")


def shaped_scale(curves: Curves, ppo: Settings) -> float:
    """Deviation of the scores at the start, in the units in which the KL penalty is subtracted from them."""
    if _kl_meets_deviations(ppo):
        return 1.0
    return curves["score/shaped_std"].start() if curves.has("score/shaped_std") else 1.0
