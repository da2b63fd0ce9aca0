"""`ControlTrainer`: PPO on a task of Gymnasium's."""

import copy
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import gymnasium
import torch
from gymnasium.envs.registration import EnvSpec

from rlhfkit.api.given import settings_of
from rlhfkit.api.places import Place, closer
from rlhfkit.api.recipes import loaded_recipe
from rlhfkit.api.show import control_html
from rlhfkit.api.training import Training
from rlhfkit.api.words import Words
from rlhfkit.config.control import ControlPpoConfig, ControlRecipe, EnvConfig, NetworkConfig
from rlhfkit.distributed.joining import ranks_asked_for
from rlhfkit.errors import ConfigError, EnvError
from rlhfkit.evaluation.control import episode_returns, summarize
from rlhfkit.machine.progress import Progress, StageProgress
from rlhfkit.models.control import ControlPolicy
from rlhfkit.pipeline.control import ControlPipeline, PreparedControl, check_control, save_control_policy
from rlhfkit.pipeline.opening import note_changes, open_log
from rlhfkit.report.page import report_or_warn
from rlhfkit.rundir.atomic import place_to_save, write_directory_atomically
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.results import SeedResult
from rlhfkit.training.best_in_memory import BestInMemory
from rlhfkit.training.ppo import iterations

__all__ = ["ControlTrainer"]

Env = gymnasium.Env[Any, Any]

WORDS = Words(config=("ppo", ControlPpoConfig), network=("network", NetworkConfig), env=("env", EnvConfig))


@WORDS.of_class
class ControlTrainer(AbstractContextManager["ControlTrainer"]):
    """Trains a small actor-critic by PPO in a Gymnasium environment.

    Example:
        >>> from rlhfkit import ControlPPOConfig, ControlTrainer
        >>> config = ControlPPOConfig(num_envs=4, rollout_steps=32, minibatch_steps=64)
        >>> trainer = ControlTrainer("CartPole-v1", env_steps=512, config=config)
        >>> for metrics in trainer:  # trainer.train() runs all of them with a progress bar
        ...     episode_return = metrics["episode_return/mean"]
        >>> len(trainer.history)
        4
        >>> import gymnasium
        >>> observation, _ = gymnasium.make("CartPole-v1").reset(seed=0)
        >>> int(trainer.policy.predict(observation, deterministic=True)) in (0, 1)
        True
    """

    def __init__(
        self,
        env: str | Env | EnvConfig | Callable[[], Env],
        *,
        env_steps: int | None = None,
        config: ControlPpoConfig | None = None,
        network: NetworkConfig | None = None,
        seed: int = 0,
        run_dir: str | Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Ready for the first iteration; in a `run_dir` that holds this training already, for the next one.

        Args:
            env: an id of Gymnasium's, an environment, or a function that makes one; `EnvConfig` has further settings,
                such as `normalize_observations`. An environment is copied, since several run side by side.
            env_steps: steps of all environments together, rounded up to whole rollouts; by default `config`'s.
            config: the recipe's section `ppo` of a control task.
            network: the recipe's section `network`.
            seed: all randomness follows from it.
            run_dir: where log, checkpoints, policy and report go; a training that was stopped goes on from there, with
                the same bits as if it had not been. Without it nothing stays on the disk.
            progress: what shows notes, warnings and bars; `Progress(quiet=True)` shows nothing.

        Raises: EnvError where the environment breaks Gymnasium's contract, ConfigError where settings do not fit,
            CheckpointError where `run_dir` holds something else.
        """
        if (size := ranks_asked_for().size) > 1:
            raise ConfigError(
                f"{size} processes were started, and ControlTrainer works in one: its networks are small, and its "
                "environments have processes of their own (EnvConfig.asynchronous); start it without torchrun"
            )
        settings = settings_of("config", config, ControlPpoConfig, taker="ControlTrainer")
        if env_steps is not None:
            settings = ControlPpoConfig(**{**settings.model_dump(), "env_steps": env_steps})
        net = settings_of("network", network, NetworkConfig, taker="ControlTrainer")
        described, self._spec = _described(env)
        self.recipe = ControlRecipe(name="control", env=described, network=net, ppo=settings, seed=seed)
        """Every setting."""
        self._progress = (progress or Progress()).in_words(WORDS.said)
        self._place = Place(run_dir)
        self.run_dir = RunDir(self._place.path)
        """Its files."""
        with ExitStack() as stack, _single_threaded(self._spec):
            loaded = loaded_recipe(self.recipe, by="ControlTrainer")
            note_changes(loaded, self.run_dir, fresh=False, progress=self._progress)
            for note in check_control(self.recipe):
                self._progress.note(note)
            opening = open_log(
                loaded, self.run_dir, fresh=False, progress=self._progress, tensorboard=self._place.stays
            )
            log = stack.enter_context(opening)
            pipeline = ControlPipeline(self.recipe, self.run_dir, log, self._progress)
            self._prepared = pipeline.prepared(seed)
            if not self._place.stays:
                self._prepared.checkpoints = BestInMemory()
            self._training = Training(
                self._prepared.trainer,
                partial(_iterations, pipeline, self._prepared),
                name=self.recipe.env.id,
                logged=log.rows("control", labels=self._prepared.labels),
                run_dir=self.run_dir.path if self._place.stays else None,
                progress=self._progress,
                around=partial(_single_threaded, self._spec),
                finish=partial(_finish, pipeline, self._prepared, self._place.stays),
            )
            stack.callback(self._training.close)
            self._close = closer(self, stack.pop_all(), self._place)

    @property
    def policy(self) -> ControlPolicy:
        """What is trained; `policy.predict(observation, deterministic=True)` gives the environment's own action."""
        return self._prepared.policy

    @property
    def history(self) -> list[dict[str, float]]:
        """Metrics of all iterations that are complete, in order; with `run_dir` also those of earlier starts."""
        return self._training.history

    def __iter__(self) -> Iterator[dict[str, float]]:
        """The metrics of each iteration that is left."""
        return self

    def __next__(self) -> dict[str, float]:
        """The metrics of the next iteration. Raises: TrainingError where a number is not finite."""
        return self._training.step()

    def train(self) -> "ControlTrainer":
        """This trainer, once it has run all iterations that are left, with a progress bar."""
        self._training.train()
        return self

    def evaluate(self, *, num_episodes: int = 100) -> SeedResult:
        """What the likeliest actions earn in episodes that training never saw: mean return with a 95 % interval.

        Raises: EnvError where an episode does not end.
        """
        with _single_threaded(self._spec):
            returns = episode_returns(self.policy, self.recipe.env, num_episodes=num_episodes, seed=self.recipe.seed)
        return summarize(
            self.recipe.seed,
            returns,
            env_steps=self._prepared.rollout.env_steps,
            training_seconds=_seconds(self._training),
        )

    def save(self, directory: str | Path) -> None:
        """Write the policy to a directory, from which `load_control_policy` reads it."""
        with write_directory_atomically(place_to_save(directory)) as temporary:
            save_control_policy(self.policy, temporary, self.recipe)

    def close(self) -> None:
        """Let go of the run directory; the policy stays usable. Also at the end of a `with` block."""
        self._close()

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        done = f"{self._prepared.trainer.iteration}/{self._training.total} iterations"
        return f"ControlTrainer({self.recipe.env.id!r}, {done})"

    def _repr_html_(self) -> str:
        return control_html(repr(self), self.history)


@contextmanager
def _single_threaded(spec: EnvSpec | None) -> Iterator[None]:
    """What holds while we compute: one thread, as the networks are too small for more, and our environment's id."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    if spec is not None:  # somebody's newer function may have the same name
        gymnasium.registry[spec.id] = spec
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _iterations(
    pipeline: ControlPipeline, prepared: PreparedControl, progress: StageProgress, interrupted: Callable[[], bool]
) -> Generator[dict[str, float]]:
    return iterations(
        prepared.trainer,
        log=pipeline.log,
        checkpoints=prepared.checkpoints,
        progress=progress,
        stage="control",
        labels=prepared.labels,
        interrupted=interrupted,
    )


def _finish(pipeline: ControlPipeline, prepared: PreparedControl, stays: bool, training: Training) -> None:
    """Keep and measure what was trained, unless it does not stay, or was kept before."""
    run = pipeline.run
    if not stays:
        prepared.rollout.envs.close()
    elif "control" not in run.finished_stages():
        pipeline.keep(prepared)
        pipeline.evaluate()
        run.finish_stage("control", {"seconds": round(_seconds(training), 1), "num_seeds": 1})
        report_or_warn(run, pipeline.progress.warn)


def _seconds(training: Training) -> float:
    return sum(metrics["time/iteration_seconds"] for metrics in training.history)


def _described(env: str | Env | EnvConfig | Callable[[], Env]) -> tuple[EnvConfig, EnvSpec | None]:
    """The settings of an environment; what nobody has registered gets an id, and the entry that belongs to it.

    Raises: ConfigError where it is none.
    """
    match env:
        case EnvConfig():
            return env, None
        case str():
            return EnvConfig(id=env), None
        case gymnasium.Env() if env.spec is not None and env.spec.id in gymnasium.registry:
            spec = env.spec
            if not spec.additional_wrappers:
                return EnvConfig(id=spec.id, kwargs=spec.kwargs, max_episode_steps=spec.max_episode_steps), None
            return _registered(lambda: gymnasium.make(spec, disable_env_checker=True), type(env.unwrapped))
        case gymnasium.Env():
            return _registered(lambda: _copied(env), type(env.unwrapped))
        case _ if callable(env):
            return _registered(env, env)
    raise ConfigError(
        f"env is of type {type(env).__name__}; expected an id of Gymnasium's, an environment, or a function that makes "
        "one"
    )


def _registered(make: Callable[[], Env], named: object) -> tuple[EnvConfig, EnvSpec]:
    name = re.sub(r"\W+", "-", getattr(named, "__qualname__", type(named).__name__)).strip("-")
    spec = EnvSpec(f"rlhfkit/{name}-v0", entry_point=cast("Any", make))
    return EnvConfig(id=spec.id), spec


def _copied(env: Env) -> Env:
    try:
        return copy.deepcopy(env)
    except Exception as error:
        raise EnvError(
            f"{type(env.unwrapped).__name__} cannot be copied ({type(error).__name__}: {error}), and several run side "
            "by side; give a function that makes one"
        ) from error
