"""The loop that SFT, pre-training and the reward model share: minibatches, updates, validation, checkpoints."""

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from rlhfkit.config.training import LoopConfig
from rlhfkit.distributed.ranks import ranks
from rlhfkit.errors import DataError, TrainingError
from rlhfkit.machine.interrupts import interrupts_wait
from rlhfkit.machine.progress import Progress, StageProgress
from rlhfkit.machine.seeding import derive_seed, shuffled
from rlhfkit.metrics import Metrics
from rlhfkit.rundir.log import RunLog
from rlhfkit.training.checkpoint import Checkpoints, load_trainable, prefixed, subset, trainable_tensors
from rlhfkit.training.optim import Optimizer
from rlhfkit.training.reactions import SupervisedWatch

__all__ = [
    "SupervisedTask",
    "num_supervised_updates",
    "num_training_rows",
    "num_validations",
    "split_validation",
    "train_supervised",
]

NUM_VALIDATIONS = 10


@dataclass(frozen=True)
class SupervisedTask:
    """What one supervised stage adds to the loop."""

    stage: str
    what: str
    """What is trained, in words."""
    module: nn.Module
    num_rows: int
    minibatch_rows: int
    backward: Callable[[Sequence[int], Metrics], None]
    """Forward and backward of this rank's share of the rows of a minibatch, in as many microbatches as it likes.

    The loss is divided by what the whole minibatch counts; adds to the metrics."""
    validate: Callable[[Metrics], None]
    """Adds the metrics of this rank's share of the rows held out."""
    detail: Callable[[dict[str, float]], str]
    """One short phrase for the progress line."""
    evaluate: Callable[[int], Mapping[str, float]] | None = None
    """Metrics of the weights after the iteration of this number, asked for when the rows held out are measured."""


def num_training_rows(num_rows: int, validation_share: float) -> int:
    """Rows that are left to train on; at least one, where there is one."""
    return max(num_rows - round(validation_share * num_rows), min(1, num_rows))


def num_supervised_updates(num_rows: int, minibatch_rows: int, epochs: int) -> int:
    """Optimizer steps of a supervised stage that trains on `num_rows`, those held out not counted."""
    return epochs * math.ceil(num_rows / minibatch_rows)


def num_validations(num_updates: int) -> int:
    """How often a supervised stage measures its held-out rows; the last time after the last update."""
    return math.ceil(num_updates / _validation_interval(num_updates))


def _validation_interval(num_updates: int) -> int:
    return max(1, num_updates // NUM_VALIDATIONS)


def split_validation(
    num_rows: int, share: float, seed: int, *, groups: Sequence[Hashable] | None = None
) -> tuple[list[int], list[int]]:
    """(rows to train on, rows held out); rows of a group, as of one prompt, are on one side.

    Groups are held out in a random order while they fit into the share. At least one row stays on the training side;
    where one group has all rows, or each is larger than the share, none is held out.
    """
    order = shuffled(num_rows, derive_seed(seed, "validation"))
    num_held_out = num_rows - num_training_rows(num_rows, share)
    members: dict[Hashable, list[int]] = {}
    for row in order:
        members.setdefault(row if groups is None else groups[row], []).append(row)
    held_out: list[int] = []
    for rows in members.values():
        if len(held_out) + len(rows) <= num_held_out:
            held_out += rows
    return sorted(set(order) - set(held_out)), sorted(held_out)


def train_supervised(
    task: SupervisedTask,
    config: LoopConfig,
    *,
    seed: int,
    log: RunLog,
    checkpoints: Checkpoints,
    progress: Progress,
) -> dict[str, float]:
    """Run the updates that are left, from the newest checkpoint on; the last validation metrics.

    Raises: DataError where there are no rows; TrainingError where a loss or a gradient is not finite; the last
    checkpoint is from before. KeyboardInterrupt after Ctrl-C, once the update is saved.
    """
    num_updates = num_supervised_updates(task.num_rows, task.minibatch_rows, config.epochs)
    optimizer = Optimizer(
        task.module.named_parameters(), config.optim, num_updates=num_updates, what=task.what, seed=seed
    )
    start = _resume(task, optimizer, checkpoints, log)
    with progress.stage(task.stage, total=num_updates, unit="update", completed=start) as stage_progress:
        return _updates(
            task, config, optimizer, seed=seed, log=log, checkpoints=checkpoints, progress=stage_progress, start=start
        )


def _updates(
    task: SupervisedTask,
    config: LoopConfig,
    optimizer: Optimizer,
    *,
    seed: int,
    log: RunLog,
    checkpoints: Checkpoints,
    progress: StageProgress,
    start: int,
) -> dict[str, float]:
    """Updates from number `start` on; the last validation metrics."""
    if task.num_rows == 0:
        raise DataError(f"the stage {task.stage} has no rows to learn from; give more data, or raise its max_tokens")
    per_epoch = math.ceil(task.num_rows / task.minibatch_rows)
    num_updates = per_epoch * config.epochs
    validate_every = _validation_interval(num_updates)
    last_save = time.monotonic()
    validation: dict[str, float] = {}
    settings = {**config.model_dump(), "num_updates": num_updates}
    watch = SupervisedWatch(task.stage, settings, log.rows(task.stage) if start else (), progress.warn)
    with checkpoints, interrupts_wait("this update", says=ranks().is_first) as interrupted:
        for iteration in range(start, num_updates):
            epoch, place = divmod(iteration, per_epoch)
            order = shuffled(task.num_rows, derive_seed(seed, task.stage, "epoch", epoch))
            rows = order[place * task.minibatch_rows : (place + 1) * task.minibatch_rows]
            metrics = Metrics()
            learning_rate = optimizer.learning_rate
            task.backward(rows, metrics)
            metrics = ranks().merged(metrics)
            loss = metrics.means()["loss"]
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss of stage {task.stage} is {loss} in iteration {iteration}, whose update was not made; "
                    "lower its optim.learning_rate"
                )
            grad_norm = optimizer.step()
            values = {**metrics.means(), "learning_rate": learning_rate, "grad_norm": grad_norm}
            if (iteration + 1) % validate_every == 0 or iteration + 1 == num_updates:
                held_out = Metrics()
                task.validate(held_out)
                held_out_means = ranks().merged(held_out).means()
                validation = {f"validation/{name}": value for name, value in held_out_means.items()}
                values |= validation
                if task.evaluate is not None:
                    values |= task.evaluate(iteration)
            log.write(task.stage, iteration, values)
            watch.after(iteration, values)
            progress.advance(1, task.detail({**validation, **values}))
            is_time = time.monotonic() - last_save > 60 * config.checkpoint_minutes and iteration + 1 < num_updates
            is_interrupted, is_time = ranks().merged_signals(interrupted(), is_time)
            if is_interrupted or is_time:
                tensors = prefixed("module", trainable_tensors(task.module)) | prefixed("optimizer", optimizer.state())
                checkpoints.save(iteration + 1, tensors, {"log": log.position()})
                last_save = time.monotonic()
            if is_interrupted:
                raise KeyboardInterrupt
    return validation


def _resume(task: SupervisedTask, optimizer: Optimizer, checkpoints: Checkpoints, log: RunLog) -> int:
    """Put weights, optimizer and log back to the newest checkpoint; the number of the next update, 0 without one."""
    checkpoint = checkpoints.load_newest()
    if checkpoint is None:
        log.forget(task.stage)
        return 0
    weights = subset("module", checkpoint.tensors)
    load_trainable(task.module, weights)
    optimizer.load_state(subset("optimizer", checkpoint.tensors), weights=weights)
    log.truncate(checkpoint.state["log"])
    ranks().wait()  # the others read the log
    return checkpoint.iteration
