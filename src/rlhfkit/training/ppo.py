"""Proximal policy optimization: collect, estimate advantages, update, again."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rlhfkit.config.schema import PpoConfig
from rlhfkit.errors import TrainingError
from rlhfkit.metrics import Metrics, RunLog
from rlhfkit.models.policy import PolicyOutput
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
from rlhfkit.training.checkpoint import Checkpoints, load_trainable, prefixed, subset, trainable_tensors
from rlhfkit.training.optim import Optimizer

__all__ = [
    "ActorCritic",
    "PpoTrainer",
    "Rollout",
    "advantages_and_returns",
    "num_policy_updates",
    "train_ppo",
    "update",
]

# Iterations above `max_ref_kl` in a row before the run stops: a single rollout may be an outlier.
KL_PATIENCE = 3


class ActorCritic(Protocol):
    """A policy as the trainer needs it; both `TextPolicy` and a control policy are one."""

    def evaluate(self, inputs: Any) -> PolicyOutput:
        """Logprobs, entropy and values (B, T), with gradients."""
        ...


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

    policy: nn.Module
    """An `ActorCritic`."""
    rollout: Rollout
    config: PpoConfig
    optimizers: dict[str, Optimizer]
    """One for the policy, and one for a value network of its own."""
    seed: int
    kl: FixedKL | AdaptiveKL
    kl_coef: float
    iteration: int = 0
    """Iterations that are complete."""
    num_above_max_kl: int = 0
    """How many of the last iterations in a row were above `max_ref_kl`."""

    def tensors(self) -> dict[str, Tensor]:
        """Weights and optimizer states, for a checkpoint."""
        tensors = prefixed("policy", trainable_tensors(self.policy))
        for name, optimizer in self.optimizers.items():
            tensors |= prefixed(f"optimizer.{name}", optimizer.state())
        return tensors

    def state(self) -> dict[str, Any]:
        """The numbers, for a checkpoint."""
        return {"kl_coef": self.kl_coef, "num_above_max_kl": self.num_above_max_kl}

    def load(self, iteration: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        load_trainable(self.policy, subset("policy", tensors))
        for name, optimizer in self.optimizers.items():
            optimizer.load_state(subset(f"optimizer.{name}", tensors))
        self.iteration, self.kl_coef, self.num_above_max_kl = iteration, state["kl_coef"], state["num_above_max_kl"]


def train_ppo(
    trainer: PpoTrainer,
    *,
    log: RunLog,
    checkpoints: Checkpoints,
    progress: StageProgress,
    check_first: Callable[[Experience], None],
) -> str | None:
    """Run all iterations that are left; why it stopped early, if it did.

    `check_first` sees the very first experience and raises TrainingError where the run is doomed.
    Raises: TrainingError where something is not finite; the last checkpoint is from before.
    """
    config = trainer.config
    last_save = time.monotonic()
    while trainer.iteration < config.iterations:
        start = time.perf_counter()
        iteration = trainer.iteration
        experience = trainer.rollout.collect(iteration, kl_coef=trainer.kl_coef)
        if iteration == 0:
            check_first(experience)
        advantages, returns = advantages_and_returns(experience, config)
        metrics = {**experience.metrics, "kl_coef": trainer.kl_coef}
        metrics |= update(trainer, experience, advantages, returns)
        trainer.kl_coef = trainer.kl.next(trainer.kl_coef, float(experience.ref_kl.mean()), len(experience.ref_kl))
        trainer.iteration += 1
        metrics["time/iteration_seconds"] = time.perf_counter() - start
        log.write("ppo", iteration, metrics)
        log.write_samples("ppo", iteration, experience.samples)
        progress.advance(1, f"score {metrics['score/mean']:.2f} · KL {metrics['ref_kl/sequence']:.1f} nats")
        stop = _above_max_kl(trainer, metrics["ref_kl/sequence"])
        is_last = stop is not None or trainer.iteration == config.iterations
        if is_last or time.monotonic() - last_save > 60 * config.checkpoint_minutes:
            checkpoints.save(trainer.iteration, trainer.tensors(), {**trainer.state(), "log": log.position()})
            last_save = time.monotonic()
        if stop is not None:
            return stop
    return None


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
    critic_only = trainer.iteration < config.value.warmup_iterations
    metrics, metrics_of_epoch = Metrics(), Metrics()
    summary = {"ppo/explained_variance": float(explained_variance(experience.old_values, returns, mask))}
    num_epochs = 0
    for epoch in range(config.epochs):
        metrics_of_epoch = Metrics()
        for rows in _minibatches(trainer, epoch, len(mask)):
            denominator = mask[rows].sum()
            deviation = 0.0
            for part in _microbatches(experience, rows, config.microbatch_tokens):
                output: PolicyOutput = trainer.policy.evaluate(experience.inputs[part])  # type: ignore[operator]
                loss = _loss(output, experience, advantages, returns, part, denominator, config, critic_only)
                _observe(metrics_of_epoch, output, experience, part, loss, len(rows), config.clip_range)
                deviation = max(
                    deviation,
                    float(ratio_max_deviation(output.logprobs.detach(), experience.old_logprobs[part], mask[part])),
                )
                loss["total"].backward()  # type: ignore[no-untyped-call]
            summary.setdefault("ppo/ratio_first_epoch_max_deviation", deviation)
            for name, optimizer in trainer.optimizers.items():
                if critic_only and name == "policy" and "value" in trainer.optimizers:
                    continue
                learning_rate = optimizer.learning_rate
                metrics_of_epoch.add(f"{name}/grad_norm", optimizer.step())
                summary[f"{name}/learning_rate"] = learning_rate
            _drop_gradients(trainer.policy)
        num_epochs += 1
        metrics.merge(metrics_of_epoch)
        if config.target_kl is not None and metrics_of_epoch.means()["ppo/approx_kl"] > config.target_kl:
            break
    last = metrics_of_epoch.means()
    summary |= metrics.means()
    # What an update did in the end is what its last epoch saw; a mean over epochs would hide it.
    summary |= {name: last[name] for name in ("ppo/approx_kl", "ppo/clip_fraction")}
    return {**summary, "ppo/num_epochs": float(num_epochs)}


def _loss(
    output: PolicyOutput,
    experience: Experience,
    advantages: Tensor,
    returns: Tensor,
    part: Tensor,
    denominator: Tensor,
    config: PpoConfig,
    critic_only: bool,
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
    total = torch.zeros_like(policy) if critic_only else policy
    if config.entropy_coef and not critic_only:
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
    if not torch.isfinite(total):
        raise TrainingError(
            f"the PPO loss is {float(total)} (policy {float(policy)}); no update was made. Lower the learning rates, or "
            "look for extreme scores in the metrics"
        )
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


def _drop_gradients(policy: nn.Module) -> None:
    """Also of what no optimizer has: during the critic's warm-up the policy's would pile up."""
    for parameter in policy.parameters():
        parameter.grad = None


def _above_max_kl(trainer: PpoTrainer, ref_kl: float) -> str | None:
    limit = trainer.config.max_ref_kl
    if limit is None:
        return None
    trainer.num_above_max_kl = trainer.num_above_max_kl + 1 if ref_kl > limit else 0
    if trainer.num_above_max_kl < KL_PATIENCE:
        return None
    return (
        f"KL to the reference was above ppo.max_ref_kl = {limit} nats per sequence for {KL_PATIENCE} iterations "
        f"(now {ref_kl:.1f}); raise ppo.kl.coef or lower the learning rate"
    )


def num_policy_updates(config: PpoConfig) -> int:
    """Optimizer steps of a whole run, if no epoch stops early."""
    return config.iterations * config.epochs * math.ceil(config.rollout_episodes / config.minibatch_episodes)
