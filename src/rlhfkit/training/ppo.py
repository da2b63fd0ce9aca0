"""Proximal policy optimization: collect, estimate advantages, update, again."""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

from torch import Tensor

from rlhfkit.config.constraints import ConstraintConfig
from rlhfkit.config.control import ControlPpoConfig
from rlhfkit.config.ppo import AdaptiveKLConfig, FixedKLConfig, KLConfig, PpoConfig
from rlhfkit.diagnosis import ROLLED_BACK_TO
from rlhfkit.diagnosis.limits import KL_PATIENCE
from rlhfkit.distributed.ranks import ranks, waited_seconds
from rlhfkit.errors import ConfigError
from rlhfkit.machine.interrupts import Paused, interrupts_wait
from rlhfkit.machine.progress import StageProgress
from rlhfkit.machine.watchdog import phase
from rlhfkit.models.policy import Policy
from rlhfkit.ppo import (
    AdaptiveEntropy,
    AdaptiveKL,
    FixedKL,
    Lagrangian,
    Multiplier,
)
from rlhfkit.rollout.experience import Experience
from rlhfkit.rundir.log import RunLog
from rlhfkit.training.advantages import advantage_std, raw_advantages_and_returns, whitened
from rlhfkit.training.best import Kept, Ranked, end_with_best
from rlhfkit.training.checkpoint import (
    Checkpoints,
    HasParameters,
    load_trainable,
    prefixed,
    subset,
    trainable_tensors,
)
from rlhfkit.training.ema import Ema
from rlhfkit.training.observers import OBSERVING_SECONDS, Observer, observed
from rlhfkit.training.optim import Optimizer
from rlhfkit.training.preflight import slow_critic
from rlhfkit.training.ptx import Ptx
from rlhfkit.training.rates import decided_ppo
from rlhfkit.training.reactions import Watch
from rlhfkit.training.update import is_of_critic, only_critic_learns, update

__all__ = [
    "ActorCritic",
    "PpoTrainer",
    "Rollout",
    "constraint_rule",
    "iterations",
    "kl_controller",
    "optimizers_for",
    "run_iteration",
    "train_ppo",
]


class ActorCritic(Policy[Any], HasParameters, Protocol):
    """A policy as the trainer needs it: a module that has its critic, if any, under the name `critic`.

    Both `TextPolicy` and a control policy are one.
    """


class Rollout(Protocol):
    """Makes experience."""

    def collect(
        self, iteration: int, *, kl_coef: float, on_finished: Callable[[int], None] | None = None
    ) -> Experience:
        """The experience of one iteration; one that knows constraints is told their `multipliers` too, by `Moves`."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What an iteration leaves behind for the next, for a checkpoint; nothing where iterations are independent."""
        ...

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Continue from what `state` gave."""
        ...

    def weights_were_put_back(self) -> None:
        """The policy has older weights again; what others have sampled in advance is worth nothing."""
        ...


@dataclass
class PpoTrainer:
    """What a run of PPO holds: the objects that learn, and the few numbers that change."""

    policy: ActorCritic
    rollout: Rollout
    config: PpoConfig | ControlPpoConfig
    optimizers: dict[str, Optimizer]
    """As `optimizers_for` makes them."""
    seed: int
    kl: FixedKL | AdaptiveKL | None = None
    """What moves `kl_coef`; None without a reference."""
    kl_coef: float = 0.0
    entropy: AdaptiveEntropy | None = field(init=False)
    """What moves `entropy_coef`; None where it stays as it is."""
    entropy_coef: float = field(init=False)
    """Bonus per nat of entropy in this iteration."""
    entropy_level: float = field(init=False)
    """What it would be with an entropy at its target."""
    constraints: Sequence[Lagrangian] = ()
    """What moves the multipliers of the rollout's constraints, in order."""
    multipliers: tuple[Multiplier, ...] = field(init=False)
    """Those of the last rollout."""
    iteration: int = 0
    """Iterations that are complete."""
    num_above_max_kl: int = 0
    """How many of the last iterations in a row were above `max_ref_kl`."""
    ptx: Ptx | None = None
    """Texts that the policy goes on learning."""
    ema: Ema | None = field(init=False)
    """The average of the policy's weights; None where nobody asked for it."""
    measure: Callable[[], float] | None = None
    """Mean return of episodes that the present weights play from beginning to end, where rollouts cut them."""
    put_back_statistics: Callable[[dict[str, Tensor]], None] | None = None
    """Has the policy read observations as in the rollout that began with what `rollout.state` gave."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """The whole recipe as a table, where there is one, for remedies outside of `config`."""
    observers: Sequence[Observer] = ()
    """Who looks at each iteration."""
    update_logprobs: Tensor | None = field(init=False, default=None)
    """(B, T) of the sampled tokens as the last epoch of the last update saw them, for the observers; NaN where another
    rank did."""
    watch: Watch = field(init=False)
    """Says when training goes wrong, and does what the recipe lets it."""
    outcome: str | None = field(init=False, default=None)
    """Why training ended before the last iteration, and which weights are there now; None where it did not."""
    kept: Kept | None = field(init=False, default=None)
    """Which weights are there now, once training has ended; None where they are the last ones."""

    def __post_init__(self) -> None:
        self.config = decided_ppo(self.config, self.policy)
        self.watch = Watch(self.config, self.recipe)
        self.multipliers = tuple(rule.initial for rule in self.constraints)
        self.entropy, self.entropy_coef = _entropy_rule(self.config), self.config.entropy_coef
        self.entropy_level = self.entropy_coef
        self.ema = _ema_of(self.config, self.optimizers)

    @property
    def stopped(self) -> str | None:
        """Why there shall be no further iteration, however many were planned; None while there may be."""
        if self.num_above_max_kl < KL_PATIENCE:
            return self.watch.stopped
        return (
            f"KL to the reference was above ppo.max_ref_kl = {self.config.max_ref_kl:g} nats per sequence for "
            f"{KL_PATIENCE} iterations in a row; raise ppo.kl.coef or lower the learning rate"
        )

    @property
    def is_done(self) -> bool:
        """Whether there is no further iteration."""
        return self.iteration >= self.config.iterations or self.stopped is not None

    @property
    def microbatch_tokens(self) -> int | None:
        """Tokens in a forward and backward pass; None for all of a minibatch."""
        tokens = self.config.microbatch_tokens
        if tokens == "auto":
            raise ConfigError('ppo.microbatch_tokens = "auto" is not decided yet; set it to what memory has room for')
        return tokens

    @property
    def clip_range(self) -> float:
        """The clip range of this iteration, below 1."""
        return self.config.clip_range * self._clip_left

    @property
    def clip_range_high(self) -> float:
        """The same above 1."""
        high = self.config.clip_range_high
        return (self.config.clip_range if high is None else high) * self._clip_left

    @property
    def _clip_left(self) -> float:
        return 1 - self.iteration / self.config.iterations if self.config.clip_schedule == "linear" else 1.0

    def tensors(self) -> dict[str, Tensor]:
        """Weights, optimizer states and what the rollout remembers, for a checkpoint."""
        tensors = prefixed("policy", trainable_tensors(self.policy)) | prefixed("rollout", self.rollout.state())
        for name, optimizer in self.optimizers.items():
            tensors |= prefixed(f"optimizer.{name}", optimizer.state())
        return tensors if self.ema is None else tensors | prefixed("ema", self.ema.state())

    def state(self) -> dict[str, Any]:
        """The numbers, for a checkpoint."""
        return {
            "kl_coef": self.kl_coef,
            "entropy_level": self.entropy_level,
            "num_above_max_kl": self.num_above_max_kl,
            "multipliers": [asdict(multiplier) for multiplier in self.multipliers],
            "watch": self.watch.state(),
        }

    def resume(self, checkpoints: Checkpoints, log: RunLog) -> bool:
        """Put everything back to the newest checkpoint that is whole, if there is one.

        The log forgets what came after it, and so do the checkpoints: the best of a future that is lost is no more.
        """
        checkpoint = checkpoints.load_newest()
        if checkpoint is None:
            return False
        checkpoints.drop_after(checkpoint.iteration)
        weights = subset("policy", checkpoint.tensors)
        load_trainable(self.policy, weights)
        self.rollout.load_state(dict(subset("rollout", checkpoint.tensors)))
        for name, optimizer in self.optimizers.items():
            optimizer.load_state(subset(f"optimizer.{name}", checkpoint.tensors), weights=weights)
        if self.ema is not None:
            self.ema.load_state(subset("ema", checkpoint.tensors))
        self.iteration, self.kl_coef = checkpoint.iteration, checkpoint.state["kl_coef"]
        self.entropy_level = checkpoint.state.get("entropy_level", self.config.entropy_coef)
        self.num_above_max_kl = checkpoint.state["num_above_max_kl"]
        self.multipliers = tuple(Multiplier(**state) for state in checkpoint.state.get("multipliers", ()))
        self.watch.load_state(checkpoint.state.get("watch"), self.optimizers)
        log.truncate(checkpoint.state["log"])
        ranks().wait()  # the others read the log
        return True


def train_ppo(
    trainer: PpoTrainer,
    *,
    log: RunLog,
    checkpoints: Checkpoints,
    progress: StageProgress,
    check_first: Callable[[Experience], None] | None = None,
    after_first: Callable[[], None] = lambda: None,
    stage: str = "ppo",
    labels: Mapping[str, int] = MappingProxyType({}),
    until: int | None = None,
) -> str | None:
    """Run all iterations that are left; why it stopped before the last, if it did.

    `after_first` is called after the first iteration of this start; for the rest see `iterations`.
    Raises: as `iterations`. KeyboardInterrupt after Ctrl-C, once the iteration is saved.
    """
    with interrupts_wait("this iteration", says=ranks().is_first) as interrupted:
        running = iterations(
            trainer,
            log=log,
            checkpoints=checkpoints,
            progress=progress,
            check_first=check_first,
            stage=stage,
            labels=labels,
            until=until,
            interrupted=interrupted,
        )
        with closing(running):  # or the last checkpoint would be awaited whenever nobody holds the generator any more
            for number, _ in enumerate(running):
                if number == 0:
                    after_first()
    return trainer.outcome


def iterations(
    trainer: PpoTrainer,
    *,
    log: RunLog,
    checkpoints: Checkpoints,
    progress: StageProgress,
    check_first: Callable[[Experience], None] | None = None,
    stage: str = "ppo",
    labels: Mapping[str, int] = MappingProxyType({}),
    until: int | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Generator[dict[str, float]]:
    """Metrics of each iteration that is left, when it is logged and, where it is time, saved.

    `check_first` sees the very first experience and raises TrainingError where the run is doomed. `labels` tell the
    log's lines of one training from those of another in the same stage. `until`: as many iterations in all, if there
    are more, and then a pause. `interrupted` asks for a checkpoint at once, and for an end after it. Close it to wait
    for the last checkpoint.
    Raises: TrainingError where something is not finite; the last checkpoint is from before. KeyboardInterrupt where
    one was asked for, and Paused at `until`, once the iteration is saved.
    """
    config, watch, done_before = trainer.config, trainer.watch, trainer.iteration
    last_save, saved = time.monotonic(), trainer.iteration or None

    def seen_first(experience: Experience) -> None:
        log.write_samples(stage, 0, experience.samples)  # before the check, which sends people to look at them
        if check_first is not None:
            check_first(experience)
        if config.estimator == "gae":
            _, returns = raw_advantages_and_returns(experience, config)
            if slow := slow_critic(experience, returns, config.value.clip_range):
                progress.warn(slow)

    watch.recall(log.rows(stage, labels=labels) if trainer.iteration else ())
    with checkpoints:
        while not trainer.is_done:
            iteration = trainer.iteration
            if until is not None and iteration >= until:
                checkpoints.wait()  # or a disk that is full would be a warning beside a pause
                raise Paused(_words_of_pause(iteration, config.iterations, is_news=iteration > done_before))
            # Only the rollout says what the weights before it are worth, and the update after it changes them.
            is_look, is_saved = watch.looks_at(iteration), saved == iteration
            taken = None
            if is_look and not is_saved:
                taken = checkpoints.take(iteration, trainer.tensors(), _state(trainer, log))
            ranked = Ranked(watch, trainer.measure) if is_look or (is_saved and not watch.keeps_best) else None
            experience, metrics = run_iteration(trainer, check_first=seen_first, before_update=ranked)
            metrics |= (reacted := watch.after(iteration, metrics, trainer, checkpoints, progress.warn))
            if ROLLED_BACK_TO in reacted:
                trainer.rollout.weights_were_put_back()
            log.write(stage, iteration, metrics, labels=labels)
            if iteration:
                log.write_samples(stage, iteration, experience.samples)
            progress.advance(1, experience.headline)
            if ranked is not None:
                ranked.keep_if_best(iteration, taken, checkpoints)
            is_time = time.monotonic() - last_save > 60 * config.checkpoint_minutes
            is_interrupted, is_time = ranks().merged_signals(interrupted(), is_time)
            is_last = trainer.is_done or trainer.iteration == until
            if checkpoints.keep and (is_last or is_interrupted or is_time):
                checkpoints.save(trainer.iteration, trainer.tensors(), _state(trainer, log))
                last_save, saved = time.monotonic(), trainer.iteration
            yield metrics
            if is_interrupted and ranks().any(interrupted()):  # or somebody's own loop has heard of it, and goes on
                raise KeyboardInterrupt
    if trainer.stopped is not None or config.end_with == "best":
        of_which = "before that" if trainer.stopped is not None else f"by {config.watch.best_metric}"
        put_back = trainer.put_back_statistics
        trainer.kept = end_with_best(watch, trainer.policy, checkpoints, put_back, of_which=of_which, ema=trainer.ema)
    if trainer.stopped is not None and trainer.kept is not None:
        trainer.outcome = f"{trainer.stopped}; {trainer.kept.words}"


def _words_of_pause(iteration: int, iterations: int, *, is_news: bool) -> str:
    done = f"{iteration} of {iterations} iterations"
    return f"PPO is paused after {done}" if is_news else f"nothing was left to do: PPO has {done} already"


def _state(trainer: PpoTrainer, log: RunLog) -> dict[str, Any]:
    return {**trainer.state(), "log": log.position()}


def run_iteration(
    trainer: PpoTrainer,
    *,
    check_first: Callable[[Experience], None] | None = None,
    before_update: Callable[[Experience], None] | None = None,
) -> tuple[Experience, dict[str, float]]:
    """Collect, estimate advantages, update: what was experienced, and the metrics.

    `before_update` sees the experience while the policy still has the weights that acted.
    Raises: TrainingError where something is not finite.
    """
    start, waited = time.perf_counter(), waited_seconds()
    held: dict[str, Any] = {"multipliers": partial(_moved, trainer)} if trainer.constraints else {}
    with phase("rollout"):
        experience = trainer.rollout.collect(trainer.iteration, kl_coef=trainer.kl_coef, **held)
    if trainer.iteration == 0 and check_first is not None:
        check_first(experience)
    seen_before = observed((each.before_update for each in trainer.observers), trainer, experience)
    experience.metrics.update(seen_before)
    if before_update is not None:
        before_update(experience)
    raw, returns = raw_advantages_and_returns(experience, trainer.config)
    advantages = whitened(raw, experience.mask, trainer.config)
    _keep_schedules_in_time(trainer)
    if trainer.entropy is not None:
        _steer_entropy(trainer, trainer.entropy, experience.metrics["ppo/entropy"])
    with phase("update"):
        metrics = {**experience.metrics, **update(trainer, experience, advantages, returns)}
    metrics["ppo/advantage_std"] = advantage_std(raw, experience.mask)
    if trainer.kl is not None and experience.ref_kl is not None:
        metrics["kl_coef"] = trainer.kl_coef
        _hold_to_reference(trainer, trainer.kl, experience.ref_kl)
    if trainer.entropy is not None:
        metrics["entropy_coef"] = trainer.entropy_coef
    trainer.multipliers = experience.multipliers
    if trainer.observers:
        metrics |= observed((each.after_update for each in trainer.observers), trainer, experience)
        metrics[OBSERVING_SECONDS] += seen_before[OBSERVING_SECONDS]
    trainer.iteration += 1
    metrics["time/iteration_seconds"] = time.perf_counter() - start - metrics.get(OBSERVING_SECONDS, 0.0)
    metrics |= ranks().waiting(waited, metrics["time/iteration_seconds"])
    # What is decided by the numbers is decided by the same ones everywhere, whatever the hardware rounds.
    return experience, ranks().from_first(metrics)


def _keep_schedules_in_time(trainer: PpoTrainer) -> None:
    """Begin each iteration at its planned place of the learning rates' schedules, as `clip_schedule` does.

    Where `target_kl` has ended epochs early, or steps were left out, fewer updates were made than planned; counted by
    them alone, a rate would never come to its end.
    """
    for name, optimizer in trainer.optimizers.items():
        optimizer.skip_to(_planned_updates(trainer.config, name, trainer.iteration))


def _planned_updates(config: PpoConfig | ControlPpoConfig, optimizer: str, iterations: int) -> int:
    """Updates of an optimizer in the first `iterations`, if none is cut short."""
    waits = optimizer == "policy" and config.value_optim is not None  # while the critic's own warms up
    learning = max(0, iterations - config.value.warmup_iterations) if waits else iterations
    return config.updates_per_iteration * learning


def _hold_to_reference(trainer: PpoTrainer, kl: FixedKL | AdaptiveKL, ref_kls: Tensor) -> None:
    """Move the coefficient, and count the iterations that were too far away."""
    ref_kl, limit = float(ref_kls.mean()), trainer.config.max_ref_kl
    trainer.num_above_max_kl = trainer.num_above_max_kl + 1 if limit is not None and ref_kl > limit else 0
    if not only_critic_learns(trainer):
        # A policy that may not move has no KL, which says nothing about the coefficient.
        trainer.kl_coef = kl.next(trainer.kl_coef, ref_kl, len(ref_kls))


def _steer_entropy(trainer: PpoTrainer, rule: AdaptiveEntropy, entropy: float) -> None:
    """Set the coefficient for the update on this rollout."""
    if not only_critic_learns(trainer):  # a policy that may not move does not answer
        trainer.entropy_level = rule.next(trainer.entropy_level, entropy)
    trainer.entropy_coef = rule.coef(trainer.entropy_level, entropy)


def _entropy_rule(config: PpoConfig | ControlPpoConfig) -> AdaptiveEntropy | None:
    target = config.entropy_target if isinstance(config, PpoConfig) else None
    return None if target is None else AdaptiveEntropy(config.entropy_coef, target)


def _ema_of(config: PpoConfig | ControlPpoConfig, optimizers: Mapping[str, Optimizer]) -> Ema | None:
    decay = config.ema if isinstance(config, PpoConfig) else None
    if decay is None:
        return None
    optimizer = optimizers["policy"]
    return Ema(optimizer, [name for name in optimizer.parameters if not is_of_critic(name)], decay=decay)


def _moved(trainer: PpoTrainer, values: Sequence[Tensor]) -> tuple[Multiplier, ...]:
    """The multipliers of a rollout of which the constraints say `values`.

    They answer to the very rollout that PPO is about to learn from: an iteration later the policy would have moved on.
    While only the critic learns, which can correct nothing, no excess adds up.
    """
    states = zip(trainer.constraints, trainer.multipliers, values, strict=True)
    adds_up = not only_critic_learns(trainer)
    return tuple(rule.next(multiplier, seen, adds_up=adds_up) for rule, multiplier, seen in states)


def constraint_rule(config: ConstraintConfig) -> Lagrangian:
    """What moves the multiplier of a constraint."""
    return Lagrangian(
        limit=config.limit,
        is_upper=config.at_most is not None,
        learning_rate=config.learning_rate,
        damping=config.damping,
        decay=config.mean_decay,
        max_value=config.max_multiplier,
        initial_value=config.initial_multiplier,
        scale=config.scale,
    )


def optimizers_for(policy: ActorCritic, config: PpoConfig | ControlPpoConfig, *, seed: int) -> dict[str, Optimizer]:
    """`policy`, and `value` for a critic that has its own; their schedules end with the last iteration."""
    config = decided_ppo(config, policy)
    parameters = list(policy.named_parameters())
    num_updates = _planned_updates(config, "policy", config.iterations)
    if config.value_optim is None:
        return {"policy": Optimizer(parameters, config.optim, num_updates=num_updates, what="policy", seed=seed)}
    return {
        "policy": Optimizer(
            [(name, parameter) for name, parameter in parameters if not is_of_critic(name)],
            config.optim,
            num_updates=num_updates,
            what="policy",
            seed=seed,
        ),
        "value": Optimizer(
            [(name, parameter) for name, parameter in parameters if is_of_critic(name)],
            config.value_optim,
            num_updates=_planned_updates(config, "value", config.iterations),
            what="value network",
            seed=seed,
        ),
    }


def kl_controller(config: KLConfig) -> FixedKL | AdaptiveKL:
    """What moves the KL coefficient."""
    match config:
        case FixedKLConfig():
            return FixedKL(config.coef)
        case AdaptiveKLConfig():
            return AdaptiveKL(config.coef, config.target, config.horizon_episodes)
