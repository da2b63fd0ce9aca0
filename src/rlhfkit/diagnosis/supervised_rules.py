"""Rules over the curves of pre-training, fine-tuning and the reward model."""

import math

from rlhfkit.diagnosis.curves import WINDOW, Column, Curves
from rlhfkit.diagnosis.finding import Evidence, Remedy, Rule, Settings, setting_of
from rlhfkit.diagnosis.limits import (
    COIN_ACCURACY,
    COIN_SHARE_DONE,
    DIVERGED_FACTOR,
    FLAT_LOSS,
    LEAST_UPDATES,
    OVERFITTING_FACTOR,
    OVERFITTING_NATS,
    OVERFITTING_ROWS,
)
from rlhfkit.diagnosis.trends import shown

__all__ = ["PRETRAIN_RULES", "REWARD_MODEL_RULES", "SUPERVISED_RULES"]

COIN = FLAT_LOSS * math.log(2)
"""Loss per pair of a coin."""


def _tenth(column: Column) -> int:
    return max(WINDOW, len(column) // 10)


def _overfitting(curves: Curves, stage: Settings) -> tuple[Evidence, ...]:
    held_out, training = curves["validation/loss"], curves["loss"]
    if len(held_out) < OVERFITTING_ROWS or len(training) < LEAST_UPDATES:
        return ()
    lowest, now = min(held_out.values), held_out.recent(2)
    if now <= OVERFITTING_FACTOR * lowest or now - lowest <= OVERFITTING_NATS or held_out.values[-1] <= lowest:
        return ()
    if training.recent(_tenth(training)) >= training.start(_tenth(training)):
        return ()  # it learns nothing at all, or diverges
    at = held_out.iterations[held_out.values.index(lowest)]
    return (
        Evidence(
            "validation/loss",
            (at, held_out.iterations[-1]),
            f"rose from {shown(lowest)} to {shown(now)} while the training loss fell to "
            f"{shown(training.recent(_tenth(training)))}",
            {"lowest": lowest, "recent": now, "training": training.recent(_tenth(training))},
        ),
    )


def _diverged(curves: Curves, stage: Settings) -> tuple[Evidence, ...]:
    column = curves["loss"]
    if len(column) < LEAST_UPDATES:
        return ()
    num = max(LEAST_UPDATES, len(column) // 10)
    lowest, now = min(column.smoothed(num)), column.recent(num)
    start = column.start(1)
    if now <= start or now <= DIVERGED_FACTOR * min(lowest, start):
        return ()
    words = f"is {shown(now)}, at the start {shown(start)}, at its lowest {shown(min(lowest, start))}"
    return (Evidence("loss", column.last_iterations(num), words, {"recent": now, "start": start}),)


def _not_learning(curves: Curves, stage: Settings) -> tuple[Evidence, ...]:
    column = curves["loss"]
    if len(column) < LEAST_UPDATES or _diverged(curves, stage):
        return ()
    num = _tenth(column)
    if column.recent(num) <= FLAT_LOSS * column.start(num):
        return ()
    words = f"is {shown(column.recent(num))}, at the start {shown(column.start(num))}"
    numbers = {"start": column.start(num), "recent": column.recent(num)}
    return (Evidence("loss", (column.iterations[0], column.iterations[-1]), words, numbers),)


def _still_a_coin(curves: Curves, stage: Settings) -> tuple[Evidence, ...]:
    loss, accuracy = curves["loss"], curves["accuracy"]
    planned = stage.get("num_updates")
    if len(loss) < LEAST_UPDATES or planned is None or len(loss) < COIN_SHARE_DONE * planned:
        return ()
    if not accuracy or _diverged(curves, stage):
        return ()
    num = max(LEAST_UPDATES, len(loss) // 4)
    if loss.recent(num) < COIN or accuracy.recent(num) > COIN_ACCURACY:
        return ()
    words = f"is {shown(loss.recent(num))} and the accuracy {accuracy.recent(num):.0%}; a coin has 0.693 and 50 %"
    numbers = {"loss": loss.recent(num), "accuracy": accuracy.recent(num)}
    return (Evidence("loss", loss.last_iterations(num), words, numbers),)


def _rate(stage: Settings, factor: float) -> tuple[Remedy, ...]:
    now, name = setting_of(stage, "optim", "learning_rate"), stage.get("name", "sft")
    if not isinstance(now, float):  # "auto", of a run that did not note what that was
        return ()
    return (Remedy(f"{name}.optim.learning_rate", shown(now * factor), shown(now)),)


def _less_training(curves: Curves, stage: Settings) -> tuple[Remedy, ...]:
    epochs, name = stage.get("epochs") or 1, stage.get("name", "sft")
    return (Remedy(f"{name}.epochs", "1", str(epochs)),) if epochs > 1 else _rate(stage, 0.3)


OVERFITTING = Rule(
    "overfitting",
    "It learns the rows by heart",
    "The loss on held-out rows rises while that of training falls: what is learnt from here on holds for the training "
    "rows alone.",
    "Ouyang et al. 2022, arXiv 2203.02155, appendix C; Stiennon et al. 2020, arXiv 2009.01325: one epoch for reward "
    "models",
    f"`validation/loss` {OVERFITTING_FACTOR - 1:.0%} above its lowest while the training loss falls",
    _overfitting,
    _less_training,
    advice=("give this stage more rows",),
)
DIVERGED = Rule(
    "diverged",
    "The training diverges",
    "The loss is above where it began: the learning rate is too high.",
    "Goodfellow et al. 2016, Deep Learning, section 11.4.1",
    "the loss is above where it began",
    _diverged,
    lambda curves, stage: _rate(stage, 0.1),
)
NOT_LEARNING = Rule(
    "not_learning",
    "It does not learn",
    "The weights began at random, and the loss is where it began: the learning rate is too low.",
    "Goodfellow et al. 2016, Deep Learning, section 11.4.1",
    "the loss is where it began",
    _not_learning,
    lambda curves, stage: _rate(stage, 10),
)
STILL_A_COIN = Rule(
    "not_learning",
    "The reward model is still a coin",
    "It does not even tell its training pairs apart: the learning rate is too low, or the choices are noise.",
    f"Stiennon et al. 2020, arXiv 2009.01325; in Huang et al. 2024, arXiv 2403.17031, accuracy is {0.63:.0%} and more",
    f"the accuracy on its own training pairs is below {COIN_ACCURACY:.0%} after {COIN_SHARE_DONE:.0%} of the updates",
    _still_a_coin,
    lambda curves, stage: _rate(stage, 10),
    advice=("give pairs of which people agree which is better",),
)

PRETRAIN_RULES: tuple[Rule, ...] = (DIVERGED, NOT_LEARNING, OVERFITTING)
SUPERVISED_RULES: tuple[Rule, ...] = (DIVERGED, OVERFITTING)  # fine-tuning may begin where there is little to learn
REWARD_MODEL_RULES: tuple[Rule, ...] = (DIVERGED, STILL_A_COIN, OVERFITTING)
