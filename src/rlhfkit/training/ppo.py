"""Proximal policy optimization: collect, estimate advantages, update, again."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from rlhfkit.config.schema import PpoConfig
from rlhfkit.errors import TrainingError
from rlhfkit.metrics import Metrics, RunLog
from rlhfkit.models.policy import Policy, PolicyOutput
from rlhfkit.padding import length_buckets
from rlhfkit.ppo import (
    AdaptiveKL,
    FixedKL,
    approx_kl,
    clip_fraction,
    explained_variance,
    gae,
    grpo_advantages,
    masked_mean,
    policy_loss,
    ratio_max_deviation,
    rloo_advantages,
    spread_over_tokens,
    value_loss,
    whiten,
)
from rlhfkit.progress import StageProgress
from rlhfkit.rollout.experience import Experience
from rlhfkit.seeding import derive_seed, shuffled
from rlhfkit.training.checkpoint import (
    Checkpoints,
    HasParameters,
    load_trainable,
    prefixed,
    subset,
    trainable_tensors,
)
from rlhfkit.training.optim import Optimizer

__all__ = [
    "ActorCritic",
    "PpoTrainer",
    "Rollout",
    "advantages_and_returns",
    "optimizers_for",
    "train_ppo",
    "update",
]

# Iterations above `max_ref_kl` in a row before the run stops: a single rollout may be an outlier.
KL_PATIENCE = 3


class ActorCritic(Policy[Any], HasParameters, Protocol):
    """A policy as the trainer needs it: a module that has its critic, if any, under the name `critic`.

    Both `TextPolicy` and a control policy are one.
    """


class Rollout(Protocol):
    """Makes experience."""

    def collect(
        self, iteration: int, *, kl_coef: float, on_finished: Callable[[int], None] | None = None
    ) -> Experience:
        """The experience of one iteration."""
        ...


@dataclass
class PpoTrainer:
    """What a run of PPO holds: the objects that learn, and the few numbers that change."""

    policy: ActorCritic
    rollout: Rollout
    config: PpoConfig
    optimizers: dict[str, Optimizer]
    """As `optimizers_for` makes them."""
    seed: int
    kl: FixedKL | AdaptiveKL
    kl_coef: float
    iteration: int = 0
    """Iterations that are complete."""
    num_above_max_kl: int = 0
    """How many of the last iterations in a row were above `max_ref_kl`."""

    @property
    def stopped(self) -> str | None:
        """Why there shall be no further iteration, however many were planned; None while there may be."""
        if self.num_above_max_kl < KL_PATIENCE:
            return None
        return (
            f"KL to the reference was above ppo.max_ref_kl = {self.config.max_ref_kl:g} nats per sequence for "
            f"{KL_PATIENCE} iterations in a row; raise ppo.kl.coef or lower the learning rate"
        )

    def tensors(self) -> dict[str, Tensor]:
        """Weights and optimizer states, for a checkpoint."""
        tensors = prefixed("policy", trainable_tensors(self.policy))
        for name, optimizer in self.optimizers.items():
            tensors |= prefixed(f"optimizer.{name}", optimizer.state())
        return tensors

    def state(self) -> dict[str, Any]:
        """The numbers, for a checkpoint."""
        return {"kl_coef": self.kl_coef, "num_above_max_kl": self.num_above_max_kl}

    def resume(self, checkpoints: Checkpoints, log: RunLog) -> None:
        """Put everything back to the newest checkpoint, if there is one; the log forgets what came after it."""
        checkpoint = checkpoints.load_newest()
        if checkpoint is None:
            log.forget("ppo")
            return
        load_trainable(self.policy, subset("policy", checkpoint.tensors))
        for name, optimizer in self.optimizers.items():
            optimizer.load_state(subset(f"optimizer.{name}", checkpoint.tensors))
        self.iteration, self.kl_coef = checkpoint.iteration, checkpoint.state["kl_coef"]
        self.num_above_max_kl = checkpoint.state["num_above_max_kl"]
        log.truncate(checkpoint.state["log"])


def train_ppo(
    trainer: PpoTrainer,
    *,
    log: RunLog,
    checkpoints: Checkpoints,
    progress: StageProgress,
    check_first: Callable[[Experience], None],
) -> str | None:
    """Run all iterations that are left; why it stopped before the last, if it did.

    `check_first` sees the very first experience and raises TrainingError where the run is doomed.
    Raises: TrainingError where something is not finite; the last checkpoint is from before.
    """
    config = trainer.config
    last_save = time.monotonic()
    while trainer.iteration < config.iterations and trainer.stopped is None:
        start = time.perf_counter()
        iteration = trainer.iteration
        experience = trainer.rollout.collect(iteration, kl_coef=trainer.kl_coef)
        if iteration == 0:
            check_first(experience)
        advantages, returns = advantages_and_returns(experience, config)
        metrics = {**experience.metrics, "kl_coef": trainer.kl_coef}
        metrics |= update(trainer, experience, advantages, returns)
        ref_kl = float(experience.ref_kl.mean())
        is_above = config.max_ref_kl is not None and ref_kl > config.max_ref_kl
        trainer.num_above_max_kl = trainer.num_above_max_kl + 1 if is_above else 0
        if not _only_critic_learns(trainer):
            # A policy that may not move has no KL, which says nothing about the coefficient.
            trainer.kl_coef = trainer.kl.next(trainer.kl_coef, ref_kl, len(experience.ref_kl))
        trainer.iteration += 1
        metrics["time/iteration_seconds"] = time.perf_counter() - start
        log.write("ppo", iteration, metrics)
        log.write_samples("ppo", iteration, experience.samples)
        progress.advance(1, f"score {metrics['score/mean']:.2f} · KL {ref_kl:.1f} nats")
        is_last = trainer.stopped is not None or trainer.iteration == config.iterations
        if is_last or time.monotonic() - last_save > 60 * config.checkpoint_minutes:
            checkpoints.save(trainer.iteration, trainer.tensors(), {**trainer.state(), "log": log.position()})
            last_save = time.monotonic()
    return trainer.stopped


def advantages_and_returns(experience: Experience, config: PpoConfig) -> tuple[Tensor, Tensor]:
    """Advantages (B, T), whitened over the whole rollout, and returns (B, T) = unwhitened advantages + old values.

    Without a critic the advantage of a response, its rewards summed and compared within its group, stands at each of
    its tokens; the returns are then of no use and zero.
    """
    mask, rewards = experience.mask, experience.rewards
    if config.estimator != "gae":
        totals = rewards.sum(1)
        estimate = rloo_advantages if config.estimator == "rloo" else grpo_advantages
        advantages = spread_over_tokens(estimate(totals, group_size=config.group_size), mask)
        return advantages, torch.zeros_like(advantages)
    if config.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    advantages = gae(
        rewards,
        experience.old_values,
        experience.next_values,
        experience.terminated,
        experience.ended,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        mask=mask,
    )
    return whiten(advantages, mask), advantages + experience.old_values


def update(trainer: PpoTrainer, experience: Experience, advantages: Tensor, returns: Tensor) -> dict[str, float]:
    """Several epochs of minibatch updates on one experience; metrics of the update.

    The loss of a minibatch is a mean over its tokens, whatever the microbatches it is computed in.
    """
    config, mask = trainer.config, experience.mask
    only_critic = _only_critic_learns(trainer)
    metrics, metrics_of_epoch = Metrics(), Metrics()
    summary = {"ppo/explained_variance": float(explained_variance(experience.old_values, returns, mask))}
    num_epochs = 0
    for epoch in range(config.epochs):
        metrics_of_epoch = Metrics()
        for rows in _minibatches(trainer, epoch, len(mask)):
            denominator = mask[rows].sum()
            deviation = 0.0
            for part in _microbatches(experience, rows, config.microbatch_tokens):
                output = trainer.policy.evaluate(experience.inputs[part])
                loss = _loss(output, experience, advantages, returns, part, denominator, config, only_critic)
                if not torch.isfinite(loss["total"]):
                    parts = ", ".join(f"{name} {value.item():g}" for name, value in loss.items())
                    raise TrainingError(
                        f"the PPO loss is not finite in iteration {trainer.iteration}, epoch {epoch} ({parts}); lower "
                        "the learning rates, or look for extreme scores in the metrics"
                    )
                _observe(metrics_of_epoch, output, experience, part, loss, len(rows), config.clip_range)
                deviation = max(
                    deviation,
                    float(ratio_max_deviation(output.logprobs.detach(), experience.old_logprobs[part], mask[part])),
                )
                torch.autograd.backward(loss["total"])
            summary.setdefault("ppo/ratio_first_epoch_max_deviation", deviation)
            if only_critic:
                _drop_gradients_of_actor(trainer.policy)
            for name, optimizer in trainer.optimizers.items():
                if only_critic and name == "policy" and "value" in trainer.optimizers:
                    continue
                learning_rate = optimizer.learning_rate
                metrics_of_epoch.add(f"{name}/grad_norm", optimizer.step())
                summary[f"{name}/learning_rate"] = learning_rate
        num_epochs += 1
        metrics.merge(metrics_of_epoch)
        if config.target_kl is not None and metrics_of_epoch.means()["ppo/approx_kl"] > config.target_kl:
            break
    last = metrics_of_epoch.means()
    summary |= metrics.means()
    # What an update did in the end is what its last epoch saw; a mean over epochs would hide it.
    summary |= {name: last[name] for name in ("ppo/approx_kl", "ppo/clip_fraction")}
    return {**summary, "ppo/num_epochs": float(num_epochs)}


def _only_critic_learns(trainer: PpoTrainer) -> bool:
    return trainer.config.estimator == "gae" and trainer.iteration < trainer.config.value.warmup_iterations


def _loss(
    output: PolicyOutput,
    experience: Experience,
    advantages: Tensor,
    returns: Tensor,
    part: Tensor,
    denominator: Tensor,
    config: PpoConfig,
    only_critic: bool,
) -> dict[str, Tensor]:
    """The parts of the loss and their total; each is a sum over the microbatch's tokens / the minibatch's count."""
    mask = experience.mask[part]
    policy = policy_loss(
        output.logprobs,
        experience.old_logprobs[part],
        advantages[part],
        mask,
        clip_range=config.clip_range,
        dual_clip=config.dual_clip,
        denominator=denominator,
    )
    entropy = masked_mean(output.entropy, mask, denominator)
    total = torch.zeros_like(policy) if only_critic else policy
    if config.entropy_coef and not only_critic:
        total = total - config.entropy_coef * entropy
    losses = {"policy": policy}
    if config.estimator == "gae":
        losses["value"] = value_loss(
            output.values,
            experience.old_values[part],
            returns[part],
            mask,
            value_clip_range=config.value.clip_range or None,
            denominator=denominator,
        )
        # A network of its own has an optimizer of its own, to which the coefficient would mean nothing.
        total = total + losses["value"] * (config.value.coef if config.value.network == "shared" else 1.0)
    return {**losses, "total": total}


def _observe(
    metrics: Metrics,
    output: PolicyOutput,
    experience: Experience,
    part: Tensor,
    loss: dict[str, Tensor],
    minibatch_rows: int,
    clip_range: float,
) -> None:
    mask, old = experience.mask[part], experience.old_logprobs[part]
    count = mask.sum()
    logprobs = output.logprobs.detach()
    metrics.add("ppo/approx_kl", approx_kl(logprobs, old, mask, denominator=1.0), count)
    metrics.add("ppo/clip_fraction", clip_fraction(logprobs, old, mask, clip_range=clip_range, denominator=1.0), count)
    for name in ("policy", "value"):
        if name in loss:
            # The parts of a minibatch add up to its loss; counting a minibatch once makes the mean over minibatches.
            metrics.add(f"ppo/{name}_loss", loss[name], len(part) / minibatch_rows)


def _minibatches(trainer: PpoTrainer, epoch: int, num_rows: int) -> Iterator[list[int]]:
    """Rows of each minibatch, in another order each epoch; the responses to one prompt may part."""
    order = shuffled(num_rows, derive_seed(trainer.seed, "minibatches", trainer.iteration, epoch))
    size = min(trainer.config.minibatch_episodes, num_rows)
    for start in range(0, num_rows, size):
        yield order[start : start + size]


def _microbatches(experience: Experience, rows: list[int], max_tokens: int) -> Iterator[Tensor]:
    """The rows of a minibatch in parts of like length that fit into memory."""
    device = experience.mask.device
    indices = torch.tensor(rows, device=device)
    lengths = experience.inputs[indices].lengths().tolist()
    for group in length_buckets(lengths, max_tokens=max_tokens):
        yield indices[torch.tensor(group, device=device)]


def _is_of_critic(name: str) -> bool:
    return name.startswith("critic.")


def _drop_gradients_of_actor(policy: ActorCritic) -> None:
    """Where the critic shares the actor's trunk, its loss would move that too."""
    for name, parameter in policy.named_parameters():
        if not _is_of_critic(name):
            parameter.grad = None


def optimizers_for(policy: ActorCritic, config: PpoConfig) -> dict[str, Optimizer]:
    """`policy`, and `value` for a critic that is a network of its own; their schedules end with the last iteration."""
    per_iteration = config.epochs * math.ceil(config.rollout_episodes / config.minibatch_episodes)
    parameters = list(policy.named_parameters())
    if config.estimator != "gae" or config.value.network == "shared":
        num_updates = per_iteration * config.iterations
        return {"policy": Optimizer(parameters, config.optim, num_updates=num_updates, what="policy")}
    return {
        "policy": Optimizer(
            [(name, parameter) for name, parameter in parameters if not _is_of_critic(name)],
            config.optim,
            num_updates=per_iteration * max(0, config.iterations - config.value.warmup_iterations),
            what="policy",
        ),
        "value": Optimizer(
            [(name, parameter) for name, parameter in parameters if _is_of_critic(name)],
            config.value.optim,
            num_updates=per_iteration * config.iterations,
            what="value network",
        ),
    }
