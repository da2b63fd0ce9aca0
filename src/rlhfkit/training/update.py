"""One update of PPO: several epochs of minibatches on one experience."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlhfkit.config.ppo import PpoConfig
from rlhfkit.distributed.ranks import ranks
from rlhfkit.errors import TrainingError
from rlhfkit.machine.seeding import derive_seed, shuffled
from rlhfkit.metrics import Metrics
from rlhfkit.models.policy import PolicyOutput
from rlhfkit.padding import microbatches
from rlhfkit.ppo import (
    approx_kl,
    cispo_loss,
    clip_fraction,
    explained_variance,
    kl_loss,
    loss_denominator,
    masked_mean,
    policy_loss,
    ratio_max_deviation,
    token_weights,
    value_loss,
)
from rlhfkit.rollout.experience import Experience

if TYPE_CHECKING:
    from rlhfkit.training.ppo import PpoTrainer

__all__ = ["is_of_critic", "only_critic_learns", "update"]


def update(trainer: "PpoTrainer", experience: Experience, advantages: Tensor, returns: Tensor) -> dict[str, float]:
    """Several epochs of minibatch updates on one experience; metrics of the update.

    The loss of a minibatch is a mean over its tokens, or over what `loss_aggregation` says, whatever the microbatches,
    and the ranks, it is computed in.
    """
    config = trainer.config
    only_critic = only_critic_learns(trainer)
    metrics, metrics_of_epoch = Metrics(), Metrics()
    explained = explained_variance(experience.old_values, returns, experience.mask)
    summary = {"ppo/explained_variance": float(explained)}
    if experience.steps_are_independent:
        advantages, returns = (x[experience.mask][:, None] for x in (advantages, returns))
        experience = experience.in_single_steps()
    mask = experience.mask
    trainer.update_logprobs = torch.full_like(experience.old_logprobs, math.nan) if trainer.observers else None
    num_epochs = 0
    for epoch in range(config.epochs):
        metrics_of_epoch = Metrics()
        needs_distance = config.target_kl is not None or epoch == config.epochs - 1
        for number, rows in enumerate(_minibatches(trainer, epoch, mask)):
            is_first = "ppo/ratio_first_epoch_max_deviation" not in summary
            deviation = _backward(
                trainer,
                (experience, advantages, returns),
                rows,
                metrics_of_epoch,
                epoch=epoch,
                with_distance=needs_distance,
                with_ratio=is_first,
            )
            if trainer.ptx is not None and not only_critic:
                trainer.ptx.backward(_place_in_run(trainer, epoch, number), metrics_of_epoch)
            if is_first:
                summary["ppo/ratio_first_epoch_max_deviation"] = max(ranks().gather(deviation))
            if only_critic:
                # Where the critic shares the actor's trunk, its loss would move that too.
                trainer.optimizers["policy"].forget_gradients(lambda name: not is_of_critic(name))
            for name, optimizer in trainer.optimizers.items():
                if only_critic and name == "policy" and "value" in trainer.optimizers:
                    continue
                learning_rate = optimizer.learning_rate
                metrics_of_epoch.add(f"{name}/grad_norm", optimizer.step())
                summary[f"{name}/learning_rate"] = learning_rate
            if trainer.ema is not None:
                trainer.ema.update()
        num_epochs += 1
        metrics_of_epoch = ranks().merged(metrics_of_epoch)
        metrics.merge(metrics_of_epoch)
        if config.target_kl is not None and metrics_of_epoch.means()["ppo/approx_kl"] > config.target_kl:
            break
    last = metrics_of_epoch.means()
    summary |= metrics.means()
    # What an update did in the end is what its last epoch saw; a mean over epochs would hide it.
    summary |= {name: last[name] for name in ("ppo/approx_kl", "ppo/clip_fraction")}
    return {**summary, "ppo/num_epochs": float(num_epochs)}


def _place_in_run(trainer: "PpoTrainer", epoch: int, number: int) -> int:
    """The number of a minibatch over the whole run, as if none was left out."""
    per_epoch = trainer.config.updates_per_iteration // trainer.config.epochs
    return trainer.iteration * trainer.config.updates_per_iteration + epoch * per_epoch + number


def _backward(
    trainer: "PpoTrainer",
    batch: tuple[Experience, Tensor, Tensor],
    rows: Tensor,
    metrics: Metrics,
    *,
    epoch: int,
    with_distance: bool,
    with_ratio: bool,
) -> float:
    """Leave the gradient of this rank's rows of a minibatch; how far their ratios are from 1 at most, if asked for.

    Raises: TrainingError where the loss is not finite.
    """
    experience, advantages, returns = batch
    mask = experience.mask
    denominators, deviation = _denominators(trainer, mask[rows]), 0.0
    own = _microbatches(experience, rows, trainer.microbatch_tokens)
    for part, counts in ranks().in_step(own, rows[:1]):
        output = trainer.policy.evaluate(experience.inputs[part], with_entropy=trainer.entropy_coef > 0)
        loss = _loss(output, experience, advantages, returns, part, denominators, trainer)
        if not math.isfinite(loss["total"].item()):
            parts = ", ".join(f"{name} {value.item():g}" for name, value in loss.items())
            raise TrainingError(
                f"the PPO loss is not finite in iteration {trainer.iteration}, epoch {epoch} ({parts}); lower "
                "the learning rates, or look for extreme scores in the metrics"
            )
        if not counts:
            torch.autograd.backward(0.0 * loss["total"])
            continue
        for name in (name for name in loss if name != "total"):
            # The parts of a minibatch add up to its loss; counted once, they make the mean over minibatches.
            metrics.add(f"ppo/{name}_loss", loss[name], len(part) / len(rows))
        if with_distance:
            _observe_distance(metrics, output, experience, part, trainer)
            if trainer.update_logprobs is not None:
                trainer.update_logprobs[part] = output.logprobs.detach()
        if with_ratio:
            ratio = ratio_max_deviation(output.logprobs.detach(), experience.old_logprobs[part], mask[part])
            deviation = max(deviation, float(ratio))
        torch.autograd.backward(loss["total"])
    return deviation


def only_critic_learns(trainer: "PpoTrainer") -> bool:
    """Whether this iteration is one of those in which the policy stays as it is."""
    return trainer.config.estimator == "gae" and trainer.iteration < trainer.config.value.warmup_iterations


def _denominators(trainer: "PpoTrainer", mask: Tensor) -> tuple[Tensor, Tensor]:
    """What the losses of policy and critic in a minibatch of this mask are divided by, wherever its rows are."""
    config = trainer.config
    return loss_denominator(mask, config.loss_aggregation, constant_tokens=config.loss_tokens), mask.sum()


def _loss(
    output: PolicyOutput,
    experience: Experience,
    advantages: Tensor,
    returns: Tensor,
    part: Tensor,
    denominators: tuple[Tensor, Tensor],
    trainer: "PpoTrainer",
) -> dict[str, Tensor]:
    """The parts of the loss and their total; each is a sum over the microbatch's tokens / the minibatch's count."""
    config, only_critic = trainer.config, only_critic_learns(trainer)
    mask, (of_policy, of_value) = experience.mask[part], denominators
    shares = token_weights(mask, config.loss_aggregation)
    policy = _policy_loss(output.logprobs, experience, advantages, part, shares, of_policy, trainer)
    total = torch.zeros_like(policy) if only_critic else policy
    if output.entropy is not None and not only_critic:
        entropy = output.entropy if shares is None else output.entropy * shares
        total = total - trainer.entropy_coef * masked_mean(entropy, mask, of_policy)
    losses = {"policy": policy}
    if experience.ref_logprobs is not None and isinstance(config, PpoConfig):
        losses["kl"] = kl_loss(
            output.logprobs,
            experience.old_logprobs[part],
            experience.ref_logprobs[part],
            mask,
            kind=config.kl.estimator,
            denominator=of_policy,
            weights=_both(shares, experience.importance_weights, part),
        )
        if not only_critic:
            total = total + trainer.kl_coef * losses["kl"]
    if config.estimator == "gae":
        losses["value"] = value_loss(
            output.values,
            experience.old_values[part],
            returns[part],
            mask,
            value_clip_range=config.value.clip_range or None,
            denominator=of_value,
        )
        # To an optimizer of its own the coefficient would mean nothing.
        total = total + losses["value"] * (config.value.coef if config.value_optim is None else 1.0)
    return {**losses, "total": total}


def _policy_loss(
    logprobs: Tensor,
    experience: Experience,
    advantages: Tensor,
    part: Tensor,
    shares: Tensor | None,
    denominator: Tensor,
    trainer: "PpoTrainer",
) -> Tensor:
    """The objective that the recipe names; `shares` are those of the aggregation."""
    config, weights = trainer.config, _both(shares, experience.importance_weights, part)
    batch = logprobs, experience.old_logprobs[part], advantages[part], experience.mask[part]
    clip_range, high = trainer.clip_range, trainer.clip_range_high
    if config.objective == "cispo":
        return cispo_loss(*batch, clip_range=clip_range, clip_range_high=high, denominator=denominator, weights=weights)
    return policy_loss(
        *batch,
        clip_range=clip_range,
        clip_range_high=high,
        ratio=config.ratio,
        dual_clip=config.dual_clip,
        denominator=denominator,
        weights=weights,
    )


def _both(shares: Tensor | None, of_sampler: Tensor | None, part: Tensor) -> Tensor | None:
    """Weights of tokens by the aggregation and by what sampled; None where all are 1."""
    if of_sampler is None:
        return shares
    return of_sampler[part] if shares is None else of_sampler[part] * shares


def _observe_distance(
    metrics: Metrics, output: PolicyOutput, experience: Experience, part: Tensor, trainer: "PpoTrainer"
) -> None:
    """How far the policy has moved from the one that acted."""
    mask, old, logprobs = experience.mask[part], experience.old_logprobs[part], output.logprobs.detach()
    count = mask.sum()
    metrics.add("ppo/approx_kl", approx_kl(logprobs, old, mask, denominator=1.0), count)
    clipped = clip_fraction(
        logprobs,
        old,
        mask,
        clip_range=trainer.clip_range,
        clip_range_high=trainer.clip_range_high,
        ratio=trainer.config.ratio,
        denominator=1.0,
    )
    metrics.add("ppo/clip_fraction", clipped, count)


def _minibatches(trainer: "PpoTrainer", epoch: int, mask: Tensor) -> Iterator[Tensor]:
    """Indices of the rows of each minibatch, in another order each epoch; the responses to one prompt may part."""
    order = shuffled(len(mask), derive_seed(trainer.seed, "minibatches", trainer.iteration, epoch))
    return iter(torch.split(torch.tensor(order, device=mask.device), trainer.config.minibatch_rows))


def _microbatches(experience: Experience, rows: Tensor, max_tokens: int | None) -> Iterator[Tensor]:
    """This rank's rows of a minibatch in parts of like length that fit into memory."""
    rows = rows[ranks().rank :: ranks().size]
    if max_tokens is None or not len(rows):
        yield from [rows] if len(rows) else []
        return
    lengths = experience.inputs[rows].lengths().tolist()
    for group in microbatches(lengths, max_tokens=max_tokens, device=rows.device):
        yield rows[torch.tensor(group, device=rows.device)]


def is_of_critic(name: str) -> bool:
    """Whether a parameter of a policy belongs to its critic."""
    return name.startswith("critic.")
