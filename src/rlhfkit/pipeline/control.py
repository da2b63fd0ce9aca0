"""A control task, seed by seed: train, evaluate, record; what is finished is not done again."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from rlhfkit.config.control import ControlRecipe, EnvConfig, NetworkConfig
from rlhfkit.envs.check import check_gymnasium_env
from rlhfkit.envs.control import make_envs, make_raw_env, needs_new_each_episode
from rlhfkit.errors import CheckpointError, EnvError
from rlhfkit.evaluation.control import episode_returns, quick_return, record_episode, summarize
from rlhfkit.machine.progress import Progress
from rlhfkit.machine.seeding import derive_seed, seed_everything
from rlhfkit.machine.watchdog import Watchdog, phase
from rlhfkit.models.control import ControlPolicy
from rlhfkit.rollout.control import ControlRollout
from rlhfkit.rundir.atomic import read_json, write_atomically, write_directory_atomically, write_json
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.log import RunLog
from rlhfkit.rundir.manifest import Manifest
from rlhfkit.rundir.results import ControlEvaluation, SeedResult
from rlhfkit.training.checkpoint import Checkpoints
from rlhfkit.training.out_of_memory import memory_told
from rlhfkit.training.ppo import PpoTrainer, optimizers_for, train_ppo
from rlhfkit.training.rates import announced_ppo

__all__ = [
    "ControlPipeline",
    "PreparedControl",
    "check_control",
    "control_trainer",
    "load_control_policy",
    "save_control_policy",
]


@dataclass
class PreparedControl:
    """One training, ready for its next iteration."""

    seed: int
    trainer: PpoTrainer
    checkpoints: Checkpoints
    start: float = field(default_factory=time.monotonic)
    """When this start of it began."""

    @property
    def labels(self) -> dict[str, int]:
        """What tells its lines of the log from those of the other seeds."""
        return {"seed": self.seed}

    @property
    def policy(self) -> ControlPolicy:
        """What is trained."""
        assert isinstance(self.trainer.policy, ControlPolicy)
        return self.trainer.policy

    @property
    def rollout(self) -> ControlRollout:
        """What acts in the environments."""
        assert isinstance(self.trainer.rollout, ControlRollout)
        return self.trainer.rollout


@dataclass
class ControlPipeline:
    """One run: what the seeds share."""

    recipe: ControlRecipe
    run: RunDir
    log: RunLog
    progress: Progress
    until: int | None = None
    """As for `training.ppo.iterations`."""

    def __post_init__(self) -> None:
        # The networks are too small to share out: a second thread costs more than it brings.
        torch.set_num_threads(1)
        self.manifest = Manifest(self.run, seed=self.recipe.seed, device="cpu", num_threads=1)

    @property
    def seeds(self) -> range:
        """The seeds to train."""
        return range(self.recipe.seed, self.recipe.seed + self.recipe.num_seeds)

    def do(self) -> None:
        """Train and evaluate every seed that is not finished."""
        if "control" in self.run.finished_stages():
            self.progress.note("control: finished before")
            return
        start = time.monotonic()
        watchdog = Watchdog(self.recipe.watchdog, self.run.stacks, warn=self.progress.warn)
        with (
            self.manifest.stop_timed("control"),
            self.manifest.error_noted("control"),
            watchdog,
            memory_told("control", self.recipe),
            phase("control"),
        ):
            for number, seed in enumerate(self.seeds):
                if not self._done(seed):
                    self._train(seed, is_first=number == 0)
            self.evaluate()
        seconds = self.manifest.seconds_of("control", time.monotonic() - start)
        self.manifest.add_stage("control", seconds=seconds)
        self.run.finish_stage("control", {"seconds": seconds, "num_seeds": len(self.seeds)})

    def _done(self, seed: int) -> bool:
        return (self._directory(seed) / "training.json").exists()

    def _directory(self, seed: int) -> Path:
        return self.run.model("policy") / f"seed-{seed}"

    def _train(self, seed: int, *, is_first: bool) -> None:
        """One training → `policy/seed-N/`."""
        prepared = self.prepared(seed, is_first=is_first)
        trainer = prepared.trainer
        with self.progress.stage(
            f"{self.recipe.name} seed {seed}",
            total=trainer.config.iterations,
            unit="iteration",
            completed=trainer.iteration,
        ) as stage:
            train_ppo(
                trainer,
                log=self.log,
                checkpoints=prepared.checkpoints,
                progress=stage,
                stage="control",
                labels=prepared.labels,
                until=self.until,
            )
        self.keep(prepared)

    def prepared(self, seed: int, *, is_first: bool = True) -> "PreparedControl":
        """Everything of a training but the iterations; where it was stopped before, put back to its last checkpoint.

        `is_first` of the run's seeds; the others begin where the log of the one before ends.
        """
        recipe = self.recipe
        trainer = control_trainer(recipe, seed, warn=self.progress.warn)
        if is_first:
            announced_ppo(recipe.ppo, trainer.policy, stage="control", progress=self.progress, manifest=self.manifest)
        checkpoints = Checkpoints(self.run.checkpoints / "control" / f"seed-{seed}", warn=self.progress.warn)
        if not trainer.resume(checkpoints, self.log):
            if is_first:
                self.log.forget("control")
            else:
                self.log.truncate(read_json(self._directory(seed - 1) / "training.json")["log"])
        return PreparedControl(seed, trainer, checkpoints)

    def keep(self, prepared: "PreparedControl") -> None:
        """What a training that is done has made → `policy/seed-N/`."""
        trainer, seed = prepared.trainer, prepared.seed
        if trainer.outcome:
            self.progress.warn(f"seed {seed} stopped after {trainer.iteration} iterations: {trainer.outcome}")
        elif trainer.kept is not None:
            self.progress.note(f"seed {seed} is done; {trainer.kept.words}")
        record = {
            "env_steps": prepared.rollout.env_steps,
            "training_seconds": round(time.monotonic() - prepared.start, 2),
            "log": self.log.position(),
            **({} if trainer.kept is None else trainer.kept.as_facts()),
        }
        prepared.rollout.envs.close()
        with write_directory_atomically(self._directory(seed)) as directory:
            save_control_policy(prepared.policy, directory, self.recipe)
            write_json(directory / "training.json", record)

    def evaluate(self) -> None:
        """Every seed's policy in held-out episodes → `evaluation.json`, and the median episode as `episode.gif`."""
        recipe = self.recipe
        results: list[SeedResult] = []
        episodes: list[tuple[float, int, int]] = []
        num = recipe.evaluation.num_episodes
        with self.progress.stage("evaluate", total=len(self.seeds), unit="seed") as progress:
            for seed in self.seeds:
                policy = load_control_policy(self._directory(seed))
                returns = episode_returns(policy, recipe.env, num_episodes=num, seed=seed, warn=self.progress.warn)
                training = read_json(self._directory(seed) / "training.json")
                results.append(
                    summarize(
                        seed,
                        returns,
                        env_steps=training["env_steps"],
                        training_seconds=training["training_seconds"],
                    )
                )
                episodes += [(episode_return, seed, index) for index, episode_return in enumerate(returns)]
                progress.advance(1, f"return {results[-1].episode_return.mean:.1f}")
        median, seed, index = sorted(episodes)[len(episodes) // 2]
        gif = None
        if recipe.evaluation.record:
            why = ""
            try:
                gif = record_episode(load_control_policy(self._directory(seed)), recipe.env, seed=seed, index=index)
            except EnvError as error:  # a picture less is no reason to lose the numbers
                why = f": {error}"
            if gif is None:
                self.progress.note(f"{recipe.env.id} cannot be drawn, so no episode is recorded{why}")
            else:
                write_atomically(self.run.episode, gif)
        evaluation = ControlEvaluation(
            env_id=recipe.env.id,
            seeds=tuple(results),
            recorded_seed=None if gif is None else seed,
            recorded_return=None if gif is None else median,
        )
        write_atomically(self.run.evaluation, evaluation.model_dump_json(indent=2) + "\n")


def check_control(recipe: ControlRecipe) -> tuple[str, ...]:
    """What is unusual about the environment, once all that the run needs has been made and tried, and thrown away.

    Raises: EnvError where the environment breaks its contract; ConfigError, MissingDependencyError.
    """
    env, twin = make_raw_env(recipe.env), make_raw_env(recipe.env)
    notes = check_gymnasium_env(env, twin=twin) if recipe.env.check else ()
    env.close()
    twin.close()
    trainer = control_trainer(recipe, recipe.seed)
    assert isinstance(trainer.rollout, ControlRollout)
    trainer.rollout.envs.close()
    return notes


def control_trainer(recipe: ControlRecipe, seed: int, *, warn: Callable[[str], None] = lambda text: None) -> PpoTrainer:
    """Policy, environments and optimizers of one training; `warn` hears where it cannot go on exactly.

    Raises: EnvError, MissingDependencyError where the environment cannot be had.
    """
    config = recipe.ppo
    raw = make_raw_env(recipe.env)
    raw.close()
    envs = make_envs(
        recipe.env,
        config.num_envs,
        lambda n, k: derive_seed(seed, "episode", n, k),
        new_each_episode=needs_new_each_episode(recipe.env),
    )
    seed_everything(derive_seed(seed, "weights"))
    policy = ControlPolicy(
        envs.observations.shape[1],
        envs.action_space,
        recipe.network,
        shared_trunk=config.value.network == "shared",
        observation_space=raw.observation_space,
    )
    rollout = ControlRollout(
        policy,
        envs,
        num_steps=config.rollout_steps,
        gamma=config.gamma,
        seed=seed,
        normalize_observations=recipe.env.normalize_observations,
        normalize_rewards=recipe.env.normalize_rewards,
        warn=warn,
    )
    return PpoTrainer(
        policy,
        rollout,
        config,
        optimizers_for(policy, config, seed=seed),
        seed,
        measure=lambda: quick_return(policy, recipe.env, seed=seed),
        put_back_statistics=rollout.put_back_statistics,
    )


def save_control_policy(policy: ControlPolicy, directory: Path, recipe: ControlRecipe) -> None:
    """Write weights and statistics, and what it takes to build the network again."""
    save_file(policy.state_dict(), directory / "policy.safetensors")
    write_json(
        directory / "policy.json",
        {
            "env": recipe.env.model_dump(),
            "network": recipe.network.model_dump(),
            "shared_trunk": policy.shared_trunk,
            "normalizes": policy.normalizes,
            "num_inputs": len(policy.observation_mean),
        },
    )


def load_control_policy(directory: str | Path, *, seed: int | None = None) -> ControlPolicy:
    """The policy that a finished control run trained; `predict` gives its actions.

    `directory` is the run's, or a policy's inside it (`policy/seed-0`). Of a run with several seeds `seed` says which;
    the first by default.
    Raises: CheckpointError where there is none; EnvError where its environment cannot be had.

    Example:
        >>> import numpy
        >>> from rlhfkit import ControlPPOConfig, ControlTrainer, load_control_policy
        >>> config = ControlPPOConfig(env_steps=128, num_envs=4, rollout_steps=32, minibatch_steps=64)
        >>> ControlTrainer("CartPole-v1", config=config).train().save(out_dir)
        >>> int(load_control_policy(out_dir).predict(numpy.zeros(4, numpy.float32))) in (0, 1)
        True
    """
    directory = _directory_of_policy(Path(directory), seed)
    made: dict[str, Any] = read_json(directory / "policy.json")
    env = make_raw_env(EnvConfig.model_validate(made["env"]))
    network = NetworkConfig.model_validate(made["network"])
    policy = ControlPolicy(
        made["num_inputs"],
        env.action_space,
        network,
        shared_trunk=made["shared_trunk"],
        observation_space=env.observation_space,
    )
    policy.load_state_dict(load_file(directory / "policy.safetensors"))
    policy.normalizes = made["normalizes"]
    env.close()
    return policy.eval()


def _directory_of_policy(directory: Path, seed: int | None) -> Path:
    if (directory / "policy.json").exists() and seed is None:
        return directory
    found = {
        int(path.parent.name.removeprefix("seed-")): path.parent
        for path in (*directory.glob("policy/seed-*/policy.json"), *directory.glob("seed-*/policy.json"))
    }
    if found and (seed is None or seed in found):
        return found[min(found) if seed is None else seed]
    seeds = f"policies of the seeds {sorted(found)}" if found else "no control policy"
    wanted = "policy.json and policy.safetensors" if seed is None else f"one of seed {seed}"
    raise CheckpointError(
        f"{directory} holds {seeds}; expected {wanted}; give the directory of a finished control run, as runs/cartpole"
    )
