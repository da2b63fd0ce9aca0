"""The rules of `rlhfkit.diagnosis` while a run trains: they warn, and do what the recipe lets them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rlhfkit.config.control import ControlPpoConfig
from rlhfkit.config.evaluation import is_evaluated
from rlhfkit.config.ppo import PpoConfig
from rlhfkit.config.watch import Action, ControlWatchConfig, WatchConfig
from rlhfkit.diagnosis import (
    ROLLED_BACK_TO,
    Finding,
    Replay,
    setting_of,
)
from rlhfkit.diagnosis.rule_sets import rules_of
from rlhfkit.errors import CheckpointError, ConfigError
from rlhfkit.metrics import rounded
from rlhfkit.rollout.experience import Experience
from rlhfkit.training.checkpoint import Checkpoints, HasParameters, load_trainable, subset
from rlhfkit.training.ema import Ema
from rlhfkit.training.kl_marks import comes_to_a_mark
from rlhfkit.training.optim import Optimizer

__all__ = ["SupervisedWatch", "Watch", "Watched", "weights_of"]

Warn = Callable[[str], None]
# The return of an episode is not known before the first one ends.
MAY_BE_MISSING = ("episode_return/mean", "episode_steps/mean")


class Watched(Protocol):
    """What a rule may change; a `PpoTrainer` is one."""

    policy: Any
    optimizers: dict[str, Optimizer]
    kl_coef: float
    ema: Ema | None


@dataclass
class Reactions:
    """How often a rule has acted, and when last."""

    count: int = 0
    last_iteration: int = 0


@dataclass
class Watch:
    """The rules over one training of PPO."""

    config: PpoConfig | ControlPpoConfig
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """The whole recipe as a table, where it is known: remedies are often outside of `config`."""
    stopped: str | None = None
    """Why a rule has ended the stage."""
    learning_rate_factor: float = 1.0
    """What the rules have made of the learning rates."""
    named: list[str] = field(default_factory=list)
    """Rules that have warned; each does so once."""
    reactions: dict[str, Reactions] = field(default_factory=dict)
    best: float | None = None
    """What the weights of the best checkpoint earned, if there is one."""
    best_iteration: int = 0
    """Iterations that it has behind it; these weights acted in the iteration of this number."""

    def __post_init__(self) -> None:
        is_control = isinstance(self.config, ControlPpoConfig)
        self._rules = rules_of("control" if is_control else "ppo")
        self._replay = Replay(self._rules, {**self.config.model_dump(mode="json"), "recipe": self.recipe})
        self._is_healthy = True

    @property
    def settings(self) -> WatchConfig | ControlWatchConfig:
        """What the recipe lets the rules do."""
        return self.config.watch

    def after(
        self, iteration: int, metrics: Mapping[str, Any], trainer: Watched, checkpoints: Checkpoints, warn: Warn
    ) -> dict[str, float]:
        """What was seen and done after an iteration, as further metrics of it.

        The rules see numbers as they are written, so that a resumed run, which reads them back, sees the same.
        """
        row = {"iteration": iteration, **{name: rounded(value) for name, value in metrics.items()}}
        seen = self._replay.add(row)
        logged: dict[str, float] = {}
        wanted: dict[str, tuple[Action, ...]] = {}
        findings: dict[str, Finding] = {}
        for name in seen:
            finding = findings[name] = self._replay.finding(name, seen)
            if actions := self._actions(finding, iteration):
                wanted[name] = actions
        done = self._act(wanted, iteration, trainer, checkpoints, warn, logged)
        for name, finding in findings.items():
            if self.settings.reaction(name) and (name not in self.named or name in wanted):
                warn(_warning(iteration, finding, done if name in wanted else ()))
                logged[f"watch/{name}"] = 1.0
                self.named += [name] if name not in self.named else []
        self._replay.roll_back({"iteration": iteration, **logged})
        self._is_healthy = not seen
        return logged

    @property
    def keeps_best(self) -> bool:
        """Whether something may go back to the best weights, in the middle or at the end."""
        may_stop = self.settings.may_stop or self.config.max_ref_kl is not None
        return self.settings.may_roll_back or may_stop or self.config.end_with == "best"

    @property
    def _best_max_ref_kl(self) -> float | None:
        """Beyond it no weights are the best."""
        limit = self.settings.best_max_ref_kl
        return self.config.max_ref_kl if limit is None else limit

    def looks_at(self, iteration: int) -> bool:
        """Whether the weights that act in an iteration are ranked.

        In fixed iterations, never by the clock, so that a resumed run goes back to the same ones. The weights that
        training began with count where a limit of the KL may be passed before there are others, or a run ends with the
        best.
        """
        is_time = iteration % self.settings.best_every_iterations == 0
        if self._is_ranked_by_evaluation:
            every = setting_of(self.recipe, "evaluation", "every_iterations") or 0
            is_time = is_evaluated(iteration, every=every, iterations=self.config.iterations) or self.is_at_mark
        start_counts = self._best_max_ref_kl is not None or self.config.end_with == "best"
        return self.keeps_best and is_time and (iteration > 0 or start_counts)

    @property
    def is_at_mark(self) -> bool:
        """Whether the next iteration is evaluated on the way for its KL, which comes near the limit of the best."""
        budget = self.settings.best_max_ref_kl
        if budget is None or not self._is_ranked_by_evaluation:
            return False
        return comes_to_a_mark(self._replay.curves["ref_kl/sequence"].values, budget)

    @property
    def _is_ranked_by_evaluation(self) -> bool:
        return self.settings.best_metric.removeprefix("-").startswith("evaluation/")

    def worth(self, experience: Experience, measure: Callable[[], float] | None) -> float | None:
        """What the weights that made an experience are ranked by, higher is better; None where it is not known yet.

        None as well where they are ranked by an evaluation whose responses break a constraint: a judge's score does not
        say what that is worth. (The objective of a rollout does: it is less what the excess would cost at most.)
        `measure` plays episodes for it, where those of the experience are partly of older weights.
        Raises: ConfigError where `best_metric` is no metric of a rollout.
        """
        name = self.settings.best_metric.removeprefix("-")
        if self._is_ranked_by_evaluation and self._breaks_a_constraint(experience.metrics):
            return None
        if name == "episode_return/mean" and measure is not None:
            value = measure()
        else:
            self._check_best_metric(name, experience.metrics)
            if name not in experience.metrics:
                return None
            value = experience.metrics[name]
        return -value if self.settings.best_metric.startswith("-") else value

    def _breaks_a_constraint(self, metrics: Mapping[str, float]) -> bool:
        """Whether the mean of an evaluation on the way is on the wrong side of a limit of PPO."""
        constraints = self.config.constraints if isinstance(self.config, PpoConfig) else ()
        held = [(each, metrics.get(f"evaluation/constraint/{each.name}")) for each in constraints]
        return any(
            value is not None and (value < each.limit if each.at_most is None else value > each.limit)
            for each, value in held
        )

    def distance(self, experience: Experience) -> float | None:
        """The KL of the weights that made an experience, for the limit of the best, in nats per sequence."""
        if self.settings.best_max_ref_kl is not None and self._is_ranked_by_evaluation:
            return experience.metrics.get("evaluation/ref_kl")  # of the very responses that are ranked
        return None if experience.ref_kl is None else float(experience.ref_kl.mean())

    def rank(self, iteration: int, worth: float | None, ref_kl: float | None) -> float | None:
        """`worth`, if it makes the weights that acted in an iteration the best so far.

        Asked once an iteration, after `after`. Where the KL is above the limit, or a rule that may roll back or stop
        has something to say against, no weights are the best, however high the reward.
        """
        limit = self._best_max_ref_kl
        is_beyond = limit is not None and ref_kl is not None and ref_kl > limit
        may_not = (self.settings.may_roll_back or self.settings.may_stop) and not self._is_healthy
        if worth is None or is_beyond or may_not or (self.best is not None and worth <= self.best):
            return None
        self.best, self.best_iteration = worth, iteration
        return worth

    # ── for a checkpoint ─────────────────────────────────────────────────────────────────────────────────────────────

    def state(self) -> dict[str, Any]:
        """What `load_state` needs beside the rows that were logged."""
        return {
            "stopped": self.stopped,
            "learning_rate_factor": self.learning_rate_factor,
            "named": list(self.named),
            "reactions": {name: [one.count, one.last_iteration] for name, one in self.reactions.items()},
            "best": self.best,
            "best_iteration": self.best_iteration,
        }

    def load_state(self, state: Mapping[str, Any] | None, optimizers: Mapping[str, Optimizer]) -> None:
        """Continue from what `state` gave; from nothing where the checkpoint is older than these rules."""
        if state is None:
            return
        self.stopped, self.named = state["stopped"], list(state["named"])
        self.reactions = {name: Reactions(*numbers) for name, numbers in state["reactions"].items()}
        self.best, self.best_iteration = state["best"], state["best_iteration"]
        self._set_learning_rates(state["learning_rate_factor"], optimizers)

    def recall(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Read what was logged before, if that has not been done."""
        if self._replay.curves.num_rows:
            return
        for row in rows:
            self._replay.curves.add(row)
            self._replay.roll_back(row)

    # ── to act ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _actions(self, finding: Finding, iteration: int) -> tuple[Action, ...]:
        """What a rule does now. One whose trouble comes from that of another leaves it to the other."""
        name = finding.rule
        actions = tuple(action for action in self.settings.reaction(name) if action != "warn")
        before = self.reactions.get(name)
        if not actions or finding.follows_from:
            return ()
        if before is not None:
            is_waiting = iteration - before.last_iteration < self.settings.patience_iterations
            if is_waiting or before.count >= self.settings.max_reactions:
                return ()
        elif not self.settings.max_reactions:
            return ()
        count = before.count + 1 if before else 1
        self.reactions[name] = Reactions(count, iteration)
        return actions

    def _act(
        self,
        wanted: Mapping[str, tuple[Action, ...]],
        iteration: int,
        trainer: Watched,
        checkpoints: Checkpoints,
        warn: Warn,
        logged: dict[str, float],
    ) -> tuple[str, ...]:
        """What was done, in words; `logged` gets it in numbers."""
        actions = {action for several in wanted.values() for action in several}
        done: list[str] = []
        if "roll_back" in actions:
            done.append(self._roll_back(trainer, checkpoints, warn, logged))
        if "lower_learning_rate" in actions:
            factor = self.learning_rate_factor * self.settings.learning_rate_factor
            self._set_learning_rates(factor, trainer.optimizers)
            logged["watch/learning_rate_factor"] = factor
            done.append(f"the learning rates are {factor:g} of the recipe's from here on")
        if "raise_kl_coef" in actions and isinstance(self.settings, WatchConfig):
            trainer.kl_coef = max(trainer.kl_coef * self.settings.kl_coef_factor, self.settings.least_kl_coef)
            logged["watch/kl_coef"] = trainer.kl_coef
            done.append(f"the KL coefficient is {trainer.kl_coef:g} from here on")
        if "stop" in actions:
            rules = [name for name, several in wanted.items() if "stop" in several]
            self.stopped = (
                f"ppo.watch.{rules[0]} says stop in iteration {iteration}; `rlhfkit diagnose` says what to change"
            )
            logged["watch/stopped"] = 1.0
            done.append("the stage ends here")
        return tuple(done)

    def _set_learning_rates(self, factor: float, optimizers: Mapping[str, Optimizer]) -> None:
        self.learning_rate_factor = factor
        for optimizer in optimizers.values():
            optimizer.factor = factor

    def _roll_back(self, trainer: Watched, checkpoints: Checkpoints, warn: Warn, logged: dict[str, float]) -> str:
        """Put back weights and optimizers; time, schedules, data and environments go on, so that it ends some day."""
        if self.best is None:
            return "there is no checkpoint yet to go back to"
        try:
            checkpoint = checkpoints.load_best()
        except CheckpointError as error:
            warn(str(error))
            checkpoint = None
        if checkpoint is None or checkpoint.iteration != self.best_iteration:
            return f"the checkpoint of iteration {self.best_iteration} cannot be gone back to"
        weights = subset("policy", checkpoint.tensors)
        load_trainable(_parameters_of(trainer), weights)
        for name, optimizer in trainer.optimizers.items():
            updates_done = optimizer.updates_done
            optimizer.load_state(subset(f"optimizer.{name}", checkpoint.tensors), weights=weights)
            optimizer.updates_done = updates_done
        if trainer.ema is not None:
            trainer.ema.load_state(subset("ema", checkpoint.tensors))
        logged[ROLLED_BACK_TO] = float(checkpoint.iteration - 1)
        return f"the weights are {weights_of(checkpoint.iteration)} again, the best so far"

    def _check_best_metric(self, name: str, metrics: Mapping[str, object]) -> None:
        """Raises: ConfigError where there is no such metric."""
        was_evaluated = any(key.startswith("evaluation/") for key in metrics)
        is_missing = self._is_ranked_by_evaluation and not was_evaluated  # as where a checkpoint falls between two
        if name not in metrics and name not in MAY_BE_MISSING and not is_missing:
            known = ", ".join(sorted(key for key in metrics if not key.startswith(("time/", "sampler/"))))
            raise ConfigError(f"ppo.watch.best_metric = {name!r} is no metric of a rollout; choose one of {known}")


def weights_of(iterations: int) -> str:
    """The weights that have so many iterations behind them, in words."""
    return f"those after iteration {iterations - 1}" if iterations else "those that PPO began with"


def _parameters_of(trainer: Watched) -> HasParameters:
    policy: HasParameters = trainer.policy
    return policy


def _warning(iteration: int, finding: Finding, done: tuple[str, ...]) -> str:
    """One line: what, the numbers, and what to do, or what was done."""
    numbers = "; ".join(f"{evidence.metric} {evidence.words}" for evidence in finding.evidence)
    follows = f" (may follow from {finding.follows_from[0]})" if finding.follows_from else ""
    said = "; ".join(done) if done else f"if that is not meant, {finding.first_step()}"
    return f"iteration {iteration}: {finding.title} ({finding.rule}){follows}: {numbers}; {said}"


class SupervisedWatch:
    """The rules over a supervised stage; they only warn, once in each process."""

    def __init__(
        self, stage: str, settings: Mapping[str, Any], rows: Iterable[Mapping[str, object]], warn: Warn
    ) -> None:
        """Begin with the `rows` of the updates before; `settings` has `num_updates` beside those of the recipe."""
        self._replay = Replay(rules_of(stage), {"name": stage, **settings})
        self._warn = warn
        self._told: set[str] = set()
        for row in rows:
            self._replay.curves.add(row)

    def after(self, iteration: int, metrics: Mapping[str, Any]) -> None:
        """Take the metrics of an update."""
        seen = self._replay.add({"iteration": iteration, **metrics})
        for name in (name for name in seen if name not in self._told):
            self._warn(_warning(iteration, self._replay.finding(name, seen), ()))
            self._told.add(name)
